"""How much workers do in one pass, where a pass costs something besides its chunks: on a virtual clock."""

from itertools import product

import numpy as np
import pytest

from psgc.config import Coding
from psgc.plan import even_plan, make_plan
from psgc.schedules import SCHEDULES
from psgc.schedules.learning import Learning
from psgc.schedules.progress import ChunkView, Took, WorkerView
from psgc.schedules.schedule import Pass
from psgc.simulation.virtual import Passes, VirtualCluster

FIXED = 0.76  # of a perceptron on a CPU: what a pass costs besides its chunks, in chunks


def times(schedule, seconds, noise=0.0, iterations=12, fixed=FIXED, then=None):
    """What the iterations take, and in how many passes; 60 chunks. then: seconds of the second half."""
    plan = even_plan(Coding(replication=3), schedule, len(seconds), 60, 0)
    made = SCHEDULES[schedule](plan.queues, plan.backups, plan.holders(), 1)
    cluster = VirtualCluster(plan.holders(), plan.queues, 1, made, passes=Passes(True, fixed))
    rng, found = np.random.default_rng(0), []
    for iteration in range(iterations):
        usual = seconds if then is None or iteration < iterations // 2 else then
        now = {rank: each * np.exp(noise * rng.standard_normal()) for rank, each in enumerate(usual, 1)}
        took = cluster.recover(now).time
        found.append((took, len({(rank, when) for rank, _, when in cluster.begun})))
    return found


def test_without_copies_a_worker_does_its_share_in_one_pass():
    assert times("uncoded", [1, 1, 1, 1]) == [(15 + FIXED, 4)] * 12


@pytest.mark.parametrize(("seconds", "best"), [([1, 1, 1, 1], 15 + FIXED), ([1, 1, 1, 5], 60 / 3.2 + FIXED)])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_with_steady_paces_dynamic_comes_near_to_one_pass_for_each(seconds, best, noise):
    first, second, *others = times("dynamic", seconds, noise)
    assert (first[1], second[1] >= 60) == (60, True)  # nothing is known yet of their paces, and how steady they are
    assert np.mean([took for took, _ in others]) < 1.15 * best
    assert all(passes <= 16 for _, passes in others)


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_when_paces_jump_half_of_what_is_left_is_one_pass_since_passes_cost_something(noise):
    found = times("dynamic", [1, 1, 1, 1], noise, iterations=20)[5:]
    assert np.mean([took for took, _ in found]) < 0.8 * 15 * (1 + FIXED)  # which is what single chunks take, at best
    assert max(passes for _, passes in found) <= 4 * 7


def test_when_paces_jump_and_a_pass_costs_nothing_chunks_are_done_one_by_one():
    found = times("dynamic", [1, 1, 1, 1], noise=0.2, iterations=20, fixed=0.0)[5:]
    assert [passes for _, passes in found] == [60] * len(found)
    assert np.mean([took for took, _ in found]) < 16


def test_large_pieces_begin_once_two_iterations_were_compared_and_are_smaller_while_workers_come_late():
    learning, workers, found = Learning(), [WorkerView(1, [], []), WorkerView(2, [], [])], []
    for expected, pace in ((None, None), (None, 1.0), (1.0, 1.0), (1.0, 1.25), (1.25, 1.25)):
        learning.trusts_paces(workers, 1.25)  # of the iteration before
        found.append(learning.fraction())
        for worker in workers:
            worker.begin(expected)
            worker.took = Took(pace, 1.0, 1) if pace else Took()
    learning.trusts_paces(workers, 1.25)
    assert found[:4] == [0.0, 0.0, 0.0, 1.0]
    assert 0.5 < found[4] < learning.fraction() < 1.0


@pytest.mark.parametrize(("noise", "limit"), [(0.03, 1.1), (0.07, 1.15), (0.15, 1.2)])
def test_a_worker_that_is_known_to_be_slow_gets_what_it_can_do_though_paces_jump(noise, limit):
    """Its passes need not come to an end before the others have done them, and its pace is known all the same."""
    found = times("dynamic", [1, 1, 1, 5], noise, iterations=40)[4:]
    assert np.mean([took for took, _ in found]) < limit * (60 / 3.2 + FIXED)


@pytest.mark.parametrize("fixed", [0.25, FIXED])
def test_when_another_worker_becomes_the_slow_one_that_is_known_soon(fixed):
    found = times("dynamic", [1, 5, 1, 1], 0.03, 40, fixed, then=[1, 1, 5, 1])[4:]
    assert np.mean([took for took, _ in found]) < 1.25 * (60 / 3.2 + fixed)


def cluster_of(workers, chunks, fixed=0.0, breaks_off=True):
    plan = even_plan(Coding(replication=3), "dynamic", workers, chunks * workers, 0)
    made = SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1)
    passes = Passes(True, fixed)
    return VirtualCluster(plan.holders(), plan.queues, 1, made, breaks_off=breaks_off, passes=passes)


def paces(rng, workers, **others):
    """Seconds per chunk by rank, which differ by 0.3 %. others: factors, by r and a rank."""
    usual = {rank: float(np.exp(0.003 * rng.standard_normal())) for rank in range(1, workers + 1)}
    return {rank: each * others.get(f"r{rank}", 1.0) for rank, each in usual.items()}


@pytest.mark.parametrize(("fixed", "limit"), [(0.0, 1.42), (FIXED, 1.65)])
@pytest.mark.parametrize("seed", range(4))
def test_the_pass_of_a_worker_that_stops_is_copied_by_all_who_rest_at_once(fixed, limit, seed):
    """Each of them does one of its chunks. All begin when the pass is half as late as that takes."""
    cluster, rng = cluster_of(8, 4, fixed), np.random.default_rng(seed)
    usual = [cluster.recover(paces(rng, 8)).time for _ in range(8)][-1]
    assert cluster.recover(paces(rng, 8, r3=np.inf)).time < limit * usual
    copies = [(rank, when) for rank, _, when in cluster.begun if when > 0]
    assert len({rank for rank, _ in copies}) == 4
    assert max(when for _, when in copies) - min(when for _, when in copies) < 0.1


def test_when_many_can_copy_a_pass_each_does_as_much_though_not_all_can_do_each_chunk():
    cluster, rng = cluster_of(4, 8), np.random.default_rng(0)
    for _ in range(8):
        cluster.recover(paces(rng, 4))
    cluster.recover(paces(rng, 4, r2=np.inf))
    copies = [rank for rank, _, when in cluster.begun if when > 0]
    assert sorted(copies.count(rank) for rank in set(copies)) == [2, 3, 3]


def test_a_slow_worker_that_rests_leaves_copies_to_others_where_these_are_through_sooner():
    copies = []
    for seed, slow in product(range(6), (1, 2, 4, 5, 6, 7, 8)):
        cluster, rng = cluster_of(8, 4), np.random.default_rng(seed)
        for _ in range(12):
            cluster.recover(paces(rng, 8, **{f"r{slow}": 5.0}))
        cluster.recover(paces(rng, 8, **{f"r{slow}": 5.0, "r3": np.inf}))
        copies += [rank == slow for rank, _, when in cluster.begun if when > 0]
    assert np.mean(copies) < 1 / 16  # half of what an equal share is


def test_a_worker_that_has_stood_still_has_its_whole_share_again_after_its_next_report():
    """What its pass showed, which was not finished, is the least that a chunk took, and no measure of its pace."""
    cluster, rng, shares = cluster_of(8, 4, breaks_off=False), np.random.default_rng(1), []
    for iteration in range(16):
        cluster.recover(paces(rng, 8, r3=3.5 if iteration == 8 else 1.0))
        shares.append(sum(rank == 3 for rank, _, when in cluster.begun))
    fewer = [share for share in shares[9:] if share < 4]
    assert len(fewer) <= 2
    assert shares[-4:] == [4] * 4
    assert shares[9 + len(fewer) :] == [4] * (7 - len(fewer))


def test_a_pass_that_was_left_before_its_end_does_not_show_that_its_worker_is_quick():
    plan = make_plan(Coding(chunks_per_worker=4, replication=2), "dynamic", 2, seed=0)
    schedule = SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1)
    schedule.estimates.update({1: 1.0, 2: 1.0})
    schedule.begin()
    for seconds, pace in ((0.1, 1.0), (5.0, 2.0)):
        schedule.freed(Pass(1, (schedule.workers[1].running.number,), seconds, seconds, is_done=False))
        assert schedule.estimates[1] == pace


def test_the_worker_whose_report_ends_an_iteration_is_learnt_of():
    """A slow worker is always the last."""
    plan = make_plan(Coding(chunks_per_worker=1, replication=2), "dynamic", 2, seed=0)
    schedule = SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1)
    cluster = VirtualCluster(plan.holders(), plan.queues, 1, schedule)
    for seconds in (1.5, 1.7):
        cluster.recover({1: 1.0, 2: seconds})
    assert 1.5 < schedule.estimates[2] <= 1.7


def test_a_worker_that_always_begins_late_has_less_to_do_but_one_late_start_is_no_rule():
    plan = make_plan(Coding(chunks_per_worker=6, replication=2), "dynamic", 2, seed=0)
    schedule = SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1)
    slow, shares = schedule.workers[2], []
    for start in (0.0, 3.0, 0.0, 3.0, 3.0):
        schedule.estimates.update({1: 1.0, 2: 1.0})
        schedule.begin()
        shares.append(len(slow.told) + len(slow.piece))
        schedule.freed(Pass(2, (slow.running.number,), start + 1.0, 1.0, is_done=True))
    assert shares == [6, 6, 6, 6, 5]
    assert slow.starts == (0.0, 3.0, 3.0)


def test_what_a_pass_costs_besides_its_chunks_is_learnt():
    learning, worker = Learning(), WorkerView(1, [], [])
    chunks = [ChunkView(number, 1.0) for number in range(9)]
    worker.begin(2.0)
    learning.learn(worker, chunks[:8], 2.0 * (8 + FIXED), 0.0)
    worker.reports = 1
    learning.learn(worker, chunks[8:], 2.0 * (1 + FIXED), 0.0)
    assert learning.fixed == pytest.approx(FIXED)
    worker.begin(2.0, 0.5, learning.fixed)
    assert learning.learn(worker, chunks[:4], 2.0 * (4 + FIXED), 0.0) == pytest.approx(2.0)


def test_what_a_pass_costs_is_learnt_from_passes_that_differ_by_a_third():
    """As under a CPU quota. The mean of what the single passes say would be 0.4 or 1.2 in turns."""
    learning, rng, found = Learning(), np.random.default_rng(0), []
    chunks = [ChunkView(number, 1.0) for number in range(17)]
    for _ in range(400):
        worker = WorkerView(1, [], [])
        worker.begin(2.0)
        for piece in (chunks[:16], chunks[16:]):
            seconds = 2.0 * (len(piece) + FIXED) * rng.uniform(0.67, 1.33)
            learning.learn(worker, piece, seconds, 0.0)
        found.append(learning.fixed)
    assert np.std(found[50:]) < 0.2
    assert np.mean(found[50:]) == pytest.approx(FIXED, abs=0.1)
