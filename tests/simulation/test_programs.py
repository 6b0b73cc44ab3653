"""Programs on simulated links: closed forms, what was measured on real links, and one rank that stands for all."""

import pytest

from psgc.aggregation.slices import BLOCKS
from psgc.messages import RECORD
from psgc.simulation.programs import PROGRAMS, allreduce, coded_allreduce, server
from psgc.simulation.settings import LinkSettings, NetworkSettings

LINKS = {"rate": 25e6, "latency": 1e-4, "dim": 1_000_000, "itemsize": 4}
WHOLE = 0.16  # seconds for the whole vector over one link


def settings(chunks_per_worker=8, **links):
    network = LinkSettings(**LINKS | links)
    return NetworkSettings(network=network, workers=[8], chunks_per_worker=chunks_per_worker)


@pytest.mark.parametrize(
    ("program", "parts", "measured"),
    [
        ("allreduce", 1, 0.286),  # a ring of 8 ranks
        ("coded_allreduce", 1, 0.289),
        ("coded_allreduce", 2, 0.212),
    ],
)
def test_within_15_percent_of_what_was_measured_on_links_of_200_megabits(program, parts, measured):
    assert PROGRAMS[program](settings(), 8, parts).seconds == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("workers", [1, 2, 7, 8])
def test_a_ring_takes_2_m_minus_2_steps(workers):
    traffic = allreduce(settings(), workers, 1)
    assert traffic.seconds == pytest.approx(2 * (workers - 1) * (WHOLE / workers + 1e-4), rel=1e-4)
    assert traffic.link_bytes == pytest.approx([4 * (workers - 1) * 4e6 / workers] * workers, rel=1e-4)
    assert traffic.control == 0


def test_the_pieces_of_a_ring_are_all_entries():
    assert sum(allreduce(settings(dim=10), 4, 1).link_bytes) == 2 * (2 * 3) * 10 * 4


@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (8, 1), (8, 2), (5, 3)])
def test_all_that_the_server_sends_and_receives_goes_over_its_link(workers, parts):
    """The gradient goes out while accumulators come in, from the time on when a first block of all of them is there."""
    traffic = server(settings(), workers, parts)
    assert traffic.seconds == pytest.approx(workers * (WHOLE + WHOLE / parts / BLOCKS), rel=0.01)
    assert traffic.link_bytes[0] == sum(traffic.link_bytes[1:])
    chunks = 8 * workers
    assert traffic.control == 2 * chunks * parts + 4 * workers  # reports and commits; BEGIN, MAP, CLOSE, STEPPED


@pytest.mark.parametrize(("workers", "parts"), [(2, 1), (8, 1), (8, 2), (9, 4), (40, 2)])
def test_the_coded_allreduce_is_close_to_the_limit_of_a_link(workers, parts):
    traffic = coded_allreduce(settings(), workers, parts)
    limit = workers / (workers + 1) * (WHOLE + WHOLE / parts)  # a rank sends nothing to itself
    assert limit < traffic.seconds < 1.03 * limit
    assert max(traffic.link_bytes) < 1.2 * sum(traffic.link_bytes) / len(traffic.link_bytes)
    chunks = 8 * workers
    assert traffic.control == 2 * chunks * parts + 4 * workers


@pytest.mark.parametrize(("dim", "latencies"), [(1, 5), (100_000, 6)])
def test_six_latencies_until_everybody_may_step(dim, latencies):
    """BEGIN, report, MAP, accumulators, gradient, CLOSE. If rank 0 sums everything, the last two go together."""
    seconds = coded_allreduce(settings(dim=dim, latency=100.0), 8, 1).seconds
    assert seconds == pytest.approx(100.0 * latencies, rel=1e-3)


def test_what_goes_over_all_links_together():
    traffic = coded_allreduce(settings(dim=9_000_000), workers=8, parts=2)
    accumulators = 8 * 8 * 4_500_000 // 9  # 8 workers send all slices but their own; rank 0 has no accumulator
    gradient = 8 * 9_000_000
    assert sum(traffic.link_bytes) == 2 * (4 * (accumulators + gradient) + RECORD.itemsize * traffic.control)


def test_with_two_parts_less_is_moved_than_in_any_allreduce():
    ring, coded = allreduce(settings(), 64, 2), coded_allreduce(settings(), 64, 2)
    assert coded.seconds < 0.75 * ring.seconds
    assert max(coded.link_bytes) < 0.76 * max(ring.link_bytes)


@pytest.mark.parametrize("dim", [1, 5, 1000])
@pytest.mark.parametrize("program", PROGRAMS)
def test_fewer_entries_than_ranks_and_other_small_vectors(program, dim):
    for most in ({}, {"most": 1} if program == "coded_allreduce" else {}):
        traffic = PROGRAMS[program](settings(dim=dim), 8, 2, **most)
        assert 0 < traffic.seconds < 0.1


@pytest.mark.parametrize("workers", [2, 8, 63])
def test_a_ring_by_symmetry(workers):
    dim = 4 * 2520 * workers
    one_by_one, one = allreduce(settings(dim=dim), workers, 1), allreduce(settings(dim=dim), workers, 1, most=1)
    assert (one_by_one.by_symmetry, one.by_symmetry) == (False, True)
    assert one.seconds == pytest.approx(one_by_one.seconds)
    assert one.link_bytes == one_by_one.link_bytes


@pytest.mark.parametrize(("workers", "parts", "dim"), [(3, 1, 10**5), (8, 2, 10**6), (8, 3, 4 * 10**6), (63, 1, 10**6)])
def test_a_coded_allreduce_by_symmetry(workers, parts, dim):
    one_by_one = coded_allreduce(settings(dim=dim), workers, parts)
    one = coded_allreduce(settings(dim=dim), workers, parts, most=1)
    assert (one_by_one.by_symmetry, one.by_symmetry) == (False, True)
    assert one.seconds == pytest.approx(one_by_one.seconds, rel=0.01)
    assert one.control == one_by_one.control
    workers_bytes = one_by_one.link_bytes[1:]
    # rank 0 contributes as well, so that every rank receives one accumulator more of its slice
    assert max(one.link_bytes[1:]) == pytest.approx(max(workers_bytes) + 4 * dim // parts // (workers + 1), rel=0.01)


@pytest.mark.parametrize("program", [allreduce, coded_allreduce])
def test_of_a_host_one_vector_leaves_however_many_workers_it_has(program):
    """And one comes. Of a link that is slower than others no other one waits for a part of its own."""
    one = program(settings(chunks_per_worker=1), 8, 1)
    on_hosts = settings(chunks_per_worker=1).model_copy(update={"per_host": 4})
    many = program(on_hosts, 32, 1)
    assert len(many.link_bytes) == 8
    control = RECORD.itemsize * many.control
    assert max(many.link_bytes) < 4 * 4e6 * 7 / 8 + control + 8
    assert many.seconds == pytest.approx(one.seconds, rel=0.05)


@pytest.mark.parametrize("most", [{}, {"most": 1}])
def test_hosts_by_symmetry(most):
    on_hosts = settings(chunks_per_worker=1).model_copy(update={"per_host": 4})
    assert coded_allreduce(on_hosts, 32, 1, **most).seconds == pytest.approx(0.28, rel=0.03)


@pytest.mark.parametrize("per_host", [1, 4])
def test_a_slow_link_holds_up_a_ring_in_every_step_and_the_coded_allreduce_once(per_host):
    slow = settings(chunks_per_worker=1, slow=5.0).model_copy(update={"per_host": per_host})
    ring, coded = (program(slow, 8 * per_host, 1).seconds for program in (allreduce, coded_allreduce))
    assert not allreduce(slow, 8 * per_host, 1, most=1).by_symmetry
    assert not coded_allreduce(slow, 8 * per_host, 1, most=1).by_symmetry
    assert ring == pytest.approx(5 * 2 * WHOLE * 7 / 8, rel=0.01)
    assert 5 * WHOLE < coded < 0.9 * ring


def test_by_symmetry_all_begin_when_the_last_has_been_asked():
    how = settings(dim=250_000, chunks_per_worker=1, rate=25e6)
    one_by_one = coded_allreduce(how, 100, 1)
    one = coded_allreduce(how, 100, 1, most=1)
    assert (one_by_one.by_symmetry, one.by_symmetry) == (False, True)
    assert 0.99 * one_by_one.seconds < one.seconds < 1.3 * one_by_one.seconds
