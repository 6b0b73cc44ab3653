"""Who sums which slice, and which version of it counts, at rank 0."""

import pytest

from psgc.aggregation import slices
from psgc.aggregation.map import Contributor
from psgc.errors import RunFailed
from psgc.server.owners import HEDGES, LATE, LEAST_LATE, LEAST_RATE, RATES, Owners

ALL = [0, 1, 2, 3]
MADE = [Contributor(rank, rank, 0) for rank in (3, 1, 2)]


@pytest.fixture(autouse=True)
def no_message_is_too_short(monkeypatch):
    monkeypatch.setattr(slices, "LEAST_SLICE", 8)


@pytest.fixture
def it():
    """Four ranks that own one of eight entries each, and more."""
    it = Owners(ALL, 8, 1, 8, timeout=10.0)
    it.begin(5)
    it.share(MADE, ALL, ALL, 100.0)
    return it


def owners(made):
    return [part.owner for part in made.slices]


def test_the_first_map_has_everything_in_order(it):
    made = it.map
    assert (made.iteration, made.attempt, made.receivers) == (5, 0, (0, 1, 2, 3))
    assert [one.rank for one in made.contributors] == [1, 2, 3]
    assert (owners(made), made.slices[0].start, made.slices[-1].stop) == (ALL, 0, 8)


def test_who_is_not_able_owns_nothing_but_receives():
    it = Owners(ALL, 8, 1, 8, timeout=10.0)
    made = it.share(MADE, ALL, [0, 1], 0.0)
    assert (owners(made), made.receivers, it.shares[2]) == ([0, 1], (0, 1, 2, 3), 0.0)


def test_what_is_missing_of_a_lost_owner_goes_to_another_one_and_the_version_that_is_first_counts(it):
    it.here(0, 2, 100.1)
    assert it.lost(2, [0, 1, 3], 100.2) is None
    made = it.lost(3, [0, 1], 100.3)
    assert (made.attempt, made.receivers, owners(made)) == (1, (0, 1), [1])
    assert made.slices[0][1:] == (6, 8)
    for number in (0, 1):
        it.here(0, number, 100.4)
    assert not it.is_complete
    it.here(1, 3, 100.5)
    it.here(0, 3, 100.6)
    assert it.is_complete
    assert it.versions == (0, 0, 0, 1)
    it.learn()
    assert it.rates == {0: 1.0, 1: 1.0, 2: 1.0, 3: RATES[0]}  # however soon the other one was there


def test_nothing_is_shared_again_when_everything_is_here(it):
    for number in range(4):
        it.here(0, number, 100.1)
    assert it.share(MADE[:2], ALL[:3], ALL[:3], 100.2) is None
    assert it.late(ALL, 999.0) is None


def test_with_other_contributors_only_what_is_missing_is_summed_again(it):
    it.here(0, 1, 100.1)
    made = it.share([MADE[0], Contributor(3, 1, 1)], [0, 2, 3], [0, 2, 3], 100.2)
    assert [part.start for part in made.slices] == [0, 4, 6]
    assert set(owners(made)) == {0, 2, 3}
    assert all(owner != before for owner, before in zip(owners(made), (0, 2, 3), strict=True))


def test_a_contributor_that_the_map_left_out_gets_every_slice_anew():
    it = Owners(ALL, 8, 1, 8, timeout=10.0)
    it.share(MADE[1:], ALL[:3], ALL[:3], 0.0)
    it.here(0, 1, 0.1)
    made = it.share([MADE[1], Contributor(3, 2, 1)], [0, 1], [0, 1], 0.2)
    assert (made.receivers, len(made.slices)) == ((0, 1, 3), 3)
    it.here(0, 0, 0.3)
    it.here(1, 2, 0.3)
    assert (it.others, it.is_complete) == ({2: 1}, False)
    for number in (0, 1):
        it.here(1, number, 0.4)
    assert it.versions == (1, 1, 1)


def test_half_of_the_slices_is_enough_to_see_who_is_late():
    it = Owners([0, 1], 8, 1, 8, timeout=10.0)
    it.begin(0)
    it.share([Contributor(1, 1, 0)], [0, 1], [0, 1], 0.0)
    assert it.late([0, 1], 1.0) is None
    it.here(0, 0, 0.01)
    assert owners(it.late([0, 1], 1.0)) == [0]


def test_what_moves_anywhere_is_progress(it):
    for second in range(100, 200):
        it.moved(second % 4, second, float(second))
        assert it.late(ALL, float(second)) is None
    it.moved(1, 5.0, 208.9)  # what has been known before
    assert it.late(ALL, 208.9) is None
    assert it.late(ALL, 209.0).attempt == 1
    it.here(0, 0, 215.0)
    assert it.late(ALL, 224.9) is None
    assert it.late(ALL, 225.0).attempt == 2


def test_a_contributor_that_rank_0_waits_for_is_no_reason_for_another_owner_than_itself(it):
    for number in range(2):
        it.here(0, number, 100.1)
    assert it.late(ALL, 105.0, awaited=lambda: {1}) is None
    made = it.late(ALL, 105.0, awaited=lambda: {2})
    assert made.slices[0][1:] == (4, 6)
    assert len(made.slices) == 1


def test_an_owner_whose_link_is_soon_through_keeps_its_slice_while_it_moves(it):
    for number in range(3):
        it.here(0, number, 101.0)
    accumulators, gradient = 6 + 2 * 2, 6 + 2 * 3  # entries to and from rank 3, which owns two of eight
    it.moved(3, 0.9 * 8 * (accumulators + gradient), 101.9)
    assert it.late(ALL, 102.8) is None  # 0.3 s are left
    assert it.late(ALL, 103.0).slices[0][1:] == (6, 8)  # nothing has moved for as long as the others needed


def test_an_owner_that_moves_but_has_much_left_is_late(it):
    for number in range(3):
        it.here(0, number, 101.0)
    it.moved(3, 0.6 * 8 * 22, 101.9)
    assert it.late(ALL, 102.0) is not None


def test_a_late_owner_is_hedged_after_a_while_that_doubles(it):
    for number in range(3):
        it.here(0, number, 100.0 + LEAST_LATE)
    usual = LATE * LEAST_LATE
    assert it.late(ALL, 100.0 + usual - 1e-6) is None
    made = it.late(ALL, 100.0 + usual)
    assert (made.attempt, len(made.slices), owners(made) == [3]) == (1, 1, False)
    assert it.late(ALL, 100.0 + usual + 2 * usual - 1e-6) is None
    again = it.late(ALL, 100.0 + usual + 2 * usual)
    assert again.attempt == 2
    assert owners(again) not in (owners(made), [3])


def test_a_slice_with_a_new_owner_goes_on_when_that_one_is_lost(it):
    for number in range(3):
        it.here(0, number, 100.1)
    (new,) = owners(it.late(ALL, 105.0))
    assert it.lost(3, [0, 1, 2], 105.1) is None
    assert owners(it.lost(new, [rank for rank in ALL if rank not in (3, new)], 105.2)) not in ([new], [3])


def test_each_iteration_may_change_its_owners(it):
    for iteration in range(HEDGES + 1):
        it.begin(iteration)
        it.share(MADE, ALL, ALL, 0.0)
        assert it.late(ALL, 10.0).attempt == 1


def test_after_a_long_redo_owners_have_time(it):
    for number in range(3):
        it.here(0, number, 100.1)
    it.share(MADE, ALL, ALL, 900.0)
    assert it.late(ALL, 900.1) is None
    assert it.late(ALL, 901.0).attempt == 2


def test_without_any_slice_only_the_timeout_counts_and_in_the_end_the_run_fails(it):
    now = 100.0
    for attempt in range(1, HEDGES + 1):
        assert it.late(ALL, now + 9.9) is None
        now += 10.0
        made = it.late(ALL, now)
        assert (made.attempt, len(made.slices), set(owners(made))) == (attempt, 4, set(ALL))
    with pytest.raises(RunFailed, match="of iteration 5 makes no progress: 4 of 4 slices"):
        it.late(ALL, now + 10.0)


def test_what_is_missing_goes_to_a_fast_link(it):
    for number, took in enumerate((0.9, 0.1, 0.9, 0.1)):
        it.here(0, number, 100.0 + took)
    it.learn()
    it.begin(6)
    it.share(MADE, ALL, ALL, 0.0)
    assert owners(it.lost(3, [0, 1, 2], 0.1)) == [1]


def test_slow_owners_get_less_and_get_it_back(it):
    for number, took in enumerate((0.1, 0.1, 0.1, 0.9)):
        it.here(0, number, 100.0 + took)
    it.learn()
    assert [it.rates[rank] for rank in ALL] == [1.0, 1.0, 1.0, RATES[0]]
    it.begin(6)
    slices = it.share(MADE, ALL, ALL, 0.0).slices
    assert slices[3].stop - slices[3].start < slices[0].stop - slices[0].start + 1
    for number in range(4):
        it.here(0, number, 0.1)
    it.learn()
    assert it.rates[3] == round(RATES[0] * RATES[1], 3)
    for _ in range(20):
        it.begin(7)
        for number, owner in enumerate(owners(it.share(MADE, ALL, ALL, 0.0))):
            it.here(0, number, 0.9 if owner == 3 else 0.1)
        it.learn()
    assert LEAST_RATE <= it.rates[3] < RATES[0]


def test_a_slow_owner_gets_less_also_after_many_iterations_that_were_summed_twice():
    """As with a worker that is lost and returns in each of them: all slices are late, and no owner is to blame."""
    it = Owners(ALL, 8000, 1, 8, timeout=10.0)

    def iteration(redone, took):
        it.begin(0)
        it.share(MADE, ALL, ALL, 0.0)
        if redone:
            it.share(MADE[1:], ALL, ALL, 0.0)
        for number, part in enumerate(it.map.slices):
            it.here(it.map.attempt, number, took[part.owner])
        it.learn()

    for _ in range(40):
        iteration(True, [0.1] * 4)
    for _ in range(10):
        iteration(False, [0.1, 0.1, 0.1, 0.9])
    iteration(False, [0.1] * 4)
    sizes = {part.owner: part.stop - part.start for part in it.map.slices}
    assert sizes.get(3, 0) < sizes[0]


def test_owners_of_a_host_need_together_what_its_link_carries():
    it = Owners(ALL, 8, 1, 8, timeout=10.0, hosts=(0, 0, 1, 1))
    it.begin(0)
    it.share(MADE, ALL, ALL, 0.0)
    needed = it._needed
    own = accumulators = gradient = 4  # entries: each host owns half of the vector
    # of its slices the sum of the other host comes and the gradient leaves; of the others the other way round
    assert needed[0] == needed[1] == 8 * (own + own + accumulators + gradient)


@pytest.fixture
def of_hosts():
    """Two hosts of two ranks; the slices of an iteration took 0.3 s."""
    it = Owners(ALL, 8, 1, 8, timeout=10.0, hosts=(0, 0, 1, 1))
    for iteration in range(2):
        it.begin(iteration)
        it.share(MADE, ALL, ALL, 100.0)
        for number in range(4 if iteration == 0 else 2):
            it.here(0, number, 100.3 - 0.2 * iteration)
        if iteration == 0:
            it.learn()
    return it


def test_the_other_host_is_late_only_when_its_link_would_be_through_long_since(of_hosts):
    late = 100.0 + LATE * 2 * 0.3  # a host has two ranks
    assert of_hosts.late(ALL, late - 1e-6) is None
    made = of_hosts.late(ALL, late)
    assert [part[1:] for part in made.slices] == [(4, 6), (6, 8)]
    assert not made.is_shared


def test_an_owner_whose_host_gets_on_keeps_its_slice(of_hosts):
    entries = 4 * 4  # each host owns half of the vector: sums come and gradients leave, and the other way round
    of_hosts.moved(2, 0.9 * 8 * entries, 101.0)  # the other rank of its host owns the other slice
    assert of_hosts.late(ALL, 101.59) is None
    assert len(of_hosts.late(ALL, 101.61).slices) == 2  # nothing has moved for as long as others needed


def test_of_what_the_link_of_a_host_carries_its_slices_tell_as_well():
    it = Owners(range(8), 16, 1, 8, timeout=10.0, hosts=(0, 0, 0, 0, 1, 1, 1, 1))
    it.begin(0)
    it.share([Contributor(rank, rank, 0) for rank in range(1, 8)], range(8), range(8), 0.0)
    for number in range(7):
        it.here(0, number, 1.0 if number < 4 else LATE * 4 - 0.1)
    assert it.late(range(8), LATE * 4) is None  # three of four took 7.9 s: the last one is soon here
    assert it.late(range(8), LATE * 4 + 4) is not None


def test_before_anything_is_known_of_the_links_of_hosts_they_have_time():
    it = Owners(ALL, 8, 1, 8, timeout=10.0, hosts=(0, 0, 1, 1))
    it.begin(0)
    it.share(MADE, ALL, ALL, 100.0)
    for number in range(2):
        it.here(0, number, 100.0)
    assert it.late(ALL, 103.9) is None
    assert it.late(ALL, 104.0) is not None


def test_the_ranks_of_a_host_are_slow_together():
    it = Owners(range(6), 12, 1, 8, timeout=10.0, hosts=(0, 0, 1, 1, 2, 2))
    it.begin(0)
    it.share([Contributor(rank, rank, 0) for rank in range(1, 6)], range(6), range(6), 0.0)
    for number, took in enumerate((0.01, 0.2, 0.2, 0.02, 0.1, 0.9)):
        it.here(0, number, took)
    it.learn()
    assert [it.rates[rank] for rank in range(6)] == [1.0] * 4 + [RATES[0]] * 2


def test_where_nothing_crosses_a_link_each_rank_of_the_host_is_late_by_itself():
    it = Owners(ALL, 8, 1, 8, timeout=10.0, hosts=(7, 7, 7, 7))
    it.begin(0)
    it.share(MADE, ALL, ALL, 100.0)
    for number in range(3):
        it.here(0, number, 100.0 + LEAST_LATE)
    assert it.late(ALL, 100.0 + LATE * LEAST_LATE - 1e-6) is None
    assert [part[1:] for part in it.late(ALL, 100.0 + LATE * LEAST_LATE).slices] == [(6, 8)]
    it.here(1, 3, 101.0)
    it.learn()
    assert [it.rates[rank] for rank in ALL] == [1.0, 1.0, 1.0, RATES[0]]


def test_the_others_of_a_host_are_not_slow_when_one_of_them_is_late():
    hosts = (0, 0, 1, 1, 2, 2)
    it = Owners(range(6), 12, 1, 8, timeout=10.0, hosts=hosts)
    it.begin(0)
    it.share([Contributor(rank, rank, 0) for rank in range(1, 6)], range(6), range(6), 0.0)
    for number in range(5):
        it.here(0, number, 0.1)
    assert it.lost(5, range(5), 0.2) is not None
    it.here(1, 5, 3.0)
    it.learn()
    assert [it.rates[rank] for rank in range(6)] == [1.0] * 5 + [RATES[0]]
