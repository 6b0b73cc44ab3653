"""Plans for chunks of different cost: balanced as far as holders allow, the longest first."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from psgc.schedules.decisions import balance, uneven
from psgc.schedules.progress import ChunkView, WorkerView


def planned(costs, holders, own, paces, wanted=1):
    """The workers after `balance`; own[i]: who was told chunk i."""
    chunks = [ChunkView(number, cost) for number, cost in enumerate(costs)]
    for chunk in chunks:
        chunk.begin(wanted)
    shares = [[chunk for chunk in chunks if own[chunk.number] == rank] for rank in range(len(paces))]
    workers = [WorkerView(rank, share, []) for rank, share in enumerate(shares)]
    for worker, pace in zip(workers, paces, strict=True):
        worker.begin(pace)
    balance(chunks, workers, [[workers[rank] for rank in ranks] for ranks in holders])
    return chunks, workers


def test_costs_count_as_equal_up_to_a_tenth():
    assert not uneven([1.0, 1.09])
    assert uneven([1.0, 1.2])
    assert not uneven([])


@given(st.data())
def test_every_chunk_goes_to_one_holder_longest_first_and_nobody_ends_later_than_the_longest_share_before(data):
    m, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    costs = data.draw(st.lists(st.floats(0.1, 10), min_size=n, max_size=n))
    paces = data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=m, max_size=m))
    holders = [data.draw(st.lists(st.integers(0, m - 1), min_size=1, unique=True)) for _ in range(n)]
    chunks, workers = planned(costs, holders, [ranks[0] for ranks in holders], paces)
    for chunk in chunks:
        (taker,) = chunk.takers
        assert taker.rank in holders[chunk.number]
        assert chunk in taker.told
    ends = []
    for worker in workers:
        told = [chunk.cost for chunk in worker.told]
        assert told == sorted(told, reverse=True)
        assert abs(worker.ahead - sum(told)) < 1e-9
        ends.append(worker.pace * sum(told))
    before = [
        pace * sum(cost for cost, ranks in zip(costs, holders, strict=True) if ranks[0] == rank)
        for rank, pace in enumerate(paces)
    ]
    assert max(ends) <= max(before) * (1 + 1e-9)
    for chunk in chunks:  # no further move helps
        (taker,) = chunk.takers
        for other in [workers[rank] for rank in holders[chunk.number] if rank != taker.rank]:
            assert other.pace * (other.ahead + chunk.cost) >= taker.pace * taker.ahead * (1 - 1e-6)


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=7))
def test_two_workers_that_may_do_any_chunk_come_near_the_best_plan(costs):
    """Where no move helps, the longer queue is at most 4/3 of the best (Finn and Horowitz, 1979)."""
    both = [[0, 1]] * len(costs)
    _, workers = planned(costs, both, [0] * len(costs), [1.0, 1.0])
    best = min(
        max(sum(c for c, who in zip(costs, plan, strict=True) if who == rank) for rank in (0, 1))
        for plan in product((0, 1), repeat=len(costs))
    )
    assert max(worker.ahead for worker in workers) <= 4 / 3 * best + 1e-9


def test_a_worker_without_a_pace_counts_as_the_usual_one():
    _, workers = planned([1.0] * 6, [[0, 1]] * 6, [0] * 6, [2.0, None])
    assert [len(worker.told) for worker in workers] == [3, 3]


def test_a_new_iteration_begins_with_the_own_share_alone():
    chunks = [ChunkView(number, 1.0) for number in range(3)]
    worker = WorkerView(1, chunks[:1], chunks[1:])
    for _ in range(2):
        for chunk in chunks:
            chunk.begin(1)
        worker.begin(2.0)
        assert (list(worker.told), worker.ahead, worker.running, worker.reports) == (chunks[:1], 1.0, None, 0)
        worker.start_next(0.0)
        worker.tell(chunks[1])
        worker.reports = 1
