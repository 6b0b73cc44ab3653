"""Schedules: what counts when, who is told to skip, and what `dynamic` makes of the paces it sees."""

from math import inf

import pytest

from psgc.schedules.schedule import Pass, Queue, Skip
from tests.unit.scheduling import done, dynamic


def two_workers(**arguments):
    """Each has a share of four chunks, and holds the other's too, its last first."""
    return dynamic({1: [0, 1, 2, 3], 2: [4, 5, 6, 7]}, {1: [7, 6, 5, 4], 2: [3, 2, 1, 0]}, **arguments)


def test_dynamic_leaves_equals_alone():
    schedule = two_workers()
    for _ in range(2):
        assert schedule.begin() == []
        for step, (first, second) in enumerate([(0, 4), (1, 5), (2, 6)], start=1):
            assert schedule.wake == inf
            assert done(schedule, 1, first, step, 1.0, [2]) == []
            assert done(schedule, 2, second, step, 1.0, [1]) == []
        assert schedule.wake == pytest.approx(3.9)  # shortly before they are through: nothing to back up
        assert schedule.tick(3.9) == []
        assert schedule.wake == inf


def test_dynamic_handles_reports_that_come_together_before_it_decides_anything():
    """Both have done three chunks. Heard one by one, the second worker would look slow, and lose chunks."""
    schedule = two_workers()
    assert schedule.begin() == []
    for worker, chunk in [(1, 0), (1, 1), (1, 2), (2, 4), (2, 5), (2, 6)]:
        schedule.counts(worker, chunk)
        assert schedule.committed(chunk, [3 - worker]) + schedule.freed(Pass(worker, (chunk,), 3.0, 1.0)) == []
    assert schedule.wake == 3.0
    assert schedule.tick(3.0) == []


def test_dynamic_takes_over_from_one_that_is_not_heard():
    """At 2 the first worker has done two chunks; the silent one is taken to need 4 more, and 6 for each of three."""
    schedule = two_workers()
    assert schedule.begin() == []
    assert done(schedule, 1, 0, 1.0, 1.0, [2]) == []  # the other may be as fast, its report under way
    assert done(schedule, 1, 1, 2.0, 1.0, [2]) == [
        Skip(2, 7, recovered=False),  # through at 5 instead of 6 + 18
        Skip(2, 6, recovered=False),  # at 6 instead of 6 + 12
        Skip(2, 5, recovered=False),  # at 7 instead of 6 + 6; but 4 is begun
        Queue(1, (2, 3, 7, 6, 5)),  # the silent one has nothing left, and would be late with any copy
    ]


def test_dynamic_begins_no_chunk_twice_without_need():
    """Who begins a chunk of another's share takes it off the other's queue, also when orders cross."""
    schedule = two_workers(estimates={1: 1.0, 2: 3.0})
    schedule.begin()
    for now, chunk in enumerate([0, 1, 2], start=1):
        assert done(schedule, 1, chunk, now, 1.0, [2]) == []
    # 2 did not hear in time and has done 6, while 1 begins with 3 and still has 7 and 6 before it
    assert done(schedule, 2, 6, 3.0, 3.0, [1]) == [Skip(1, 6, recovered=True)]
    # 2 is in 4 until 6, and would be through with 5 at 9
    assert done(schedule, 1, 3, 4.0, 1.0, [2]) == [Skip(2, 5, recovered=False), Queue(1, (7, 5))]


def test_equals_begin_nothing_twice_when_all_orders_cross_their_reports():
    """Three workers report at the same times, and have begun the next chunk by then; the fourth is silent."""
    shares = {rank: [*range(3 * rank - 3, 3 * rank)] for rank in (1, 2, 3, 4)}
    schedule = dynamic(shares, {rank: [i % 12 for i in range(3 * rank, 3 * rank + 9)] for rank in shares})
    for _ in range(2):
        queues = {rank: [*share] for rank, share in shares.items()}
        orders, begun = schedule.begin(), {rank: [] for rank in shares}
        for now in range(5):
            for rank in (1, 3, 4):
                begun[rank] += queues[rank][:1]
                if now:
                    chunk = begun[rank][now - 1]
                    schedule.counts(rank, chunk)
                    orders += schedule.committed(chunk, [other for other in shares if other != rank])
                    orders += schedule.freed(Pass(rank, (chunk,), float(now), 1.0))
            for order in orders + schedule.tick(float(now)):  # they have begun the next one by now
                chunks = order.chunks if isinstance(order, Queue) else queues[order.worker]
                not_to_do = {*begun[order.worker], order.chunk if isinstance(order, Skip) else None}
                queues[order.worker] = [chunk for chunk in chunks if chunk not in not_to_do]
            queues = {rank: [chunk for chunk in queue if chunk not in begun[rank]] for rank, queue in queues.items()}
            orders = []
        assert sorted(chunk for chunks in begun.values() for chunk in chunks) == [*range(12)]


def test_dynamic_backs_up_what_is_predicted_last():
    """Paces 1, 4 and 6, shares of two; the first holds everything, the others only their own."""
    paces = {1: 1.0, 2: 4.0, 3: 6.0}
    schedule = dynamic({1: [0, 1], 2: [2, 3], 3: [4, 5]}, {1: [5, 4, 3, 2], 2: [], 3: []}, paces)
    # through at 3 with 5 instead of 12, at 4 with 3 instead of 8; 3 may have begun chunk 4 already
    moved = [Skip(3, 5, recovered=False), Skip(2, 3, recovered=False)]
    assert schedule.begin() == [*moved, Queue(1, (0, 1, 5, 3))]
    assert done(schedule, 1, 0, 1.0, 1.0) == []
    assert done(schedule, 1, 1, 2.0, 1.0) == []
    # its last chunk until 4; then 2 is at its end with chunk 2, but chunk 4 is not there before 6
    assert done(schedule, 1, 5, 3.0, 1.0, [3]) == [Queue(1, (3, 4))]
    assert schedule.wake == pytest.approx(3.6)  # 2 is through at 4, 1 too, but its choice is due at 3.9
    assert schedule.tick(3.6) == []
    assert done(schedule, 1, 3, 4.0, 1.0, [2]) == []
    assert done(schedule, 2, 2, 4.0, 4.0, [1]) == []
    # the copy of 1 is there first, and what 3 is in is not needed
    assert done(schedule, 1, 4, 5.0, 1.0, [3]) == [Skip(3, 4, recovered=True)]


def test_dynamic_leaves_a_slow_worker_the_chunk_that_it_may_have_begun_already():
    """The first of its default queue, unless it is to do nothing: then others must gain as much as they take."""
    schedule = dynamic({1: [0, 1], 2: [2, 3, 4]}, {1: [2, 3], 2: []}, {1: 1.0, 2: 4.0})
    assert schedule.begin() == [Skip(2, 3, recovered=False), Queue(1, (0, 1, 3))]
    for pace, is_taken in ((9.0, True), (2.5, False)):
        schedule = dynamic({1: [0], 2: [1]}, {1: [1], 2: []}, {1: 1.0, 2: pace})
        assert (Skip(2, 1, recovered=False) in schedule.begin()) is is_taken


def test_dynamic_looks_again_when_a_worker_did_another_chunk_first():
    """1 rests, since 2 would be in chunk 1; but an order crossed the report, and 2 did chunk 2."""
    schedule = dynamic({1: [0], 2: [1, 2]}, {1: [1], 2: []}, {1: 1.0, 2: 1.4})
    schedule.begin()
    assert done(schedule, 1, 0, 1.0, 1.0) == []
    assert Queue(1, (1,)) in done(schedule, 2, 2, 1.4, 1.4)


@pytest.mark.parametrize(
    ("costs", "orders"), [([1.0, 1.09], []), ([1.0, 2.0, 1.0, 2.0], [Queue(1, (1, 0)), Queue(2, (3, 2))])]
)
def test_dynamic_plans_with_costs_that_it_was_told_if_they_differ(costs, orders):
    """The longest chunk first, where nothing is to be evened out."""
    half = len(costs) // 2
    own = {1: list(range(half)), 2: list(range(half, len(costs)))}
    schedule = dynamic(own, {1: [], 2: []})
    schedule.know_costs(costs)
    assert schedule.begin() == orders


def one_chunk_each():
    """Three workers that hold everything, with paces 1, 4 and 2: one chunk for each is no good guide."""
    backups = {worker: [chunk for chunk in (0, 1, 2) if chunk != worker - 1] for worker in (1, 2, 3)}
    return dynamic({1: [0], 2: [1], 3: [2]}, backups, {1: 1.0, 2: 4.0, 3: 2.0})


def test_who_rests_wakes_when_the_others_are_as_late_as_it_would_need():
    schedule = one_chunk_each()
    schedule.begin()
    assert schedule.wake == pytest.approx(1.8)  # 3 is free soon
    assert schedule.tick(1.8) == []  # 1 is late by 0.8 and has chunk 1 at 3.6; 3 would have it at 4
    assert schedule.wake == 5.0  # chunk 0 was due at 1, and 2 needs 4
    # as late as they are now: 1 has chunk 0 at 9, and then 1 at 10
    assert schedule.tick(5.0) == [Skip(1, 1, recovered=False), Queue(2, (1,))]


@pytest.mark.parametrize(("spread", "when"), [(1.0, 2.0), (3.0, 4.0)])
def test_a_late_chunk_is_copied_once_it_is_later_than_long_chunks_are(spread, when):
    """Both took 1 so far. A chunk that has taken 2 is copied, unless chunks of 3 occur: then one that has taken 4."""
    schedule = dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]}, {1: 1.0, 2: 1.0})
    schedule.learning.spread = spread
    schedule.begin()
    assert done(schedule, 1, 0, 1.0, 1.0, [2]) == []
    assert schedule.wake == pytest.approx(when, abs=0.05)
    assert schedule.tick(when) == [Queue(1, (1,))]


def test_who_has_no_pace_and_no_share_makes_a_copy_at_once():
    """Nobody else may ever do it, and nothing would wake this worker."""
    schedule = dynamic({1: [0], 2: []}, {1: [], 2: [0]})
    schedule.learning.lag = 0.1
    assert schedule.begin() == [Queue(2, (0,))]


def test_the_spread_follows_chunks_that_take_longer_than_those_before_them():
    schedule = dynamic({1: list(range(60))}, {1: []})
    schedule.begin()
    for chunk in range(60):
        done(schedule, 1, chunk, 0.0, 1.0 if chunk < 20 or chunk % 4 else 4.0)
        if chunk == 19:
            assert schedule.learning.spread == 1.0
    assert 1.5 < schedule.learning.spread < 3.0
    before = schedule.learning.spread
    schedule.begin()
    done(schedule, 1, 0, 0.0, 40.0)  # the worker may be another one than before
    assert schedule.learning.spread == before
    done(schedule, 1, 1, 0.0, 4000.0)  # once is no rule
    assert schedule.learning.spread == pytest.approx(1.25 * before)


def test_chunks_that_take_no_time_have_no_spread():
    schedule = dynamic({1: [0, 1, 2]}, {1: []})
    schedule.begin()
    for chunk, seconds in enumerate([0.0, 0.0, 1.0]):
        done(schedule, 1, chunk, 0.0, seconds)
    assert schedule.learning.spread == 1.0


def test_who_may_not_have_begun_what_is_recovered_wakes_too():
    """2 heard that its chunk 1 is recovered before it began it: it reports nothing, and 1 never comes."""
    schedule = dynamic({1: [0], 2: [1], 3: []}, {1: [], 2: [0], 3: [1]}, {1: 2.0, 2: 4.0, 3: 9.0})
    assert schedule.begin() == []
    assert done(schedule, 3, 1, 0.1, 0.1, [2]) == [Skip(2, 1, recovered=True)]
    orders = []
    while not orders and schedule.wake < inf:
        when = schedule.wake
        orders = schedule.tick(when)
    assert (when, orders) == (6.0, [Queue(2, (0,))])  # 1 was due at 2, and 2 needs 4


def test_who_may_not_have_begun_what_is_recovered_wakes_too_when_its_choice_was_made_before():
    """2 was to choose shortly before its chunk 1 was due, and nothing would have been gained. Then 1 is recovered."""
    schedule = dynamic({1: [0], 2: [1], 3: []}, {1: [], 2: [0], 3: [1]}, {1: 6.0, 2: 4.0, 3: 9.0})
    assert schedule.begin() == []
    assert schedule.wake == pytest.approx(3.6)
    assert schedule.tick(3.6) == []
    assert done(schedule, 3, 1, 3.8, 3.8, [2]) == [Skip(2, 1, recovered=True)]
    orders = []
    while not orders and schedule.wake < inf:
        when = schedule.wake
        orders = schedule.tick(when)
    assert (when, orders) == (10.0, [Queue(2, (0,))])  # 0 was due at 6, and 2 needs 4


def test_who_may_not_have_begun_its_first_chunk_is_told_another_when_that_is_recovered():
    """It would report nothing, and wait for a worker that is not heard."""
    schedule = dynamic({1: [0], 2: [1], 3: [2]}, {1: [1], 2: [2], 3: [0]})
    assert schedule.begin() == []
    assert done(schedule, 2, 1, 7.0, 1.0, [1]) == [Queue(2, (2,))]
    assert done(schedule, 2, 2, 12.0, 1.0, [3]) == [Skip(3, 2, True), Queue(3, (0,))]


def test_estimates_follow_within_a_few_chunks_and_survive():
    schedule = dynamic({1: list(range(6))}, {1: []})
    schedule.begin()
    seen = []
    for chunk, seconds in enumerate([1.0, 1.0, 4.0, 4.0, 4.0]):
        done(schedule, 1, chunk, 0.0, seconds)
        seen.append(schedule.estimates[1])
    assert seen == [1.0, 1.0, 1.75, 2.3125, 2.734375]
    schedule.begin()
    assert schedule.estimates == {1: 2.734375}


def test_paces_that_change_at_every_iteration_are_not_believed():
    """Two workers that take turns at being slow: after a few iterations each begins as for the first time."""
    schedule = dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]})
    for iteration in range(6):
        schedule.begin()
        quick = 1 + iteration % 2
        done(schedule, quick, quick - 1, 1.0, 1.0, [3 - quick])
        done(schedule, 3 - quick, 2 - quick, 9.0, 9.0)
    schedule.begin()
    assert schedule.estimates == {}


@pytest.mark.parametrize(("slow", "is_believed"), [(1, True), (4, False)])
def test_single_chunks_that_take_long_are_no_change_of_pace(slow, is_believed):
    """In turns the first chunk of an iteration or the last one takes 3, or all chunks of it do."""
    schedule = dynamic({1: [0, 1, 2, 3]}, {1: []})
    for iteration in range(8):
        schedule.begin()
        seconds = [3.0] * slow + [1.0] * (4 - slow)
        if iteration % 2:
            seconds = seconds[::-1] if slow < 4 else [1.0] * 4
        for chunk in range(4):
            done(schedule, 1, chunk, float(chunk), seconds[chunk])
    schedule.begin()
    assert (schedule.estimates != {}) is is_believed


def test_who_reports_nothing_for_longer_than_expected_is_a_surprise():
    schedule = dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]})
    schedule.begin()
    done(schedule, 1, 0, 1.0, 1.0)
    done(schedule, 2, 1, 1.0, 1.0)
    schedule.begin()
    assert schedule.estimates == {1: 1.0, 2: 1.0}
    done(schedule, 1, 0, 1.0, 1.0)
    done(schedule, 1, 1, 5.0, 1.0)  # and nothing from the other one
    schedule.begin()
    assert schedule.estimates == {}


def test_who_cannot_have_reported_before_the_end_is_no_surprise():
    schedule = dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]})
    schedule.begin()
    done(schedule, 1, 0, 1.0, 1.0)
    done(schedule, 2, 1, 9.0, 9.0)
    schedule.begin()
    done(schedule, 1, 0, 1.0, 1.0)
    done(schedule, 1, 1, 2.0, 1.0)
    schedule.begin()
    assert schedule.estimates == {1: 1.0, 2: 9.0}


def test_an_abandoned_chunk_teaches_as_well_and_is_not_done_again():
    schedule = two_workers(estimates={1: 1.0, 2: 1.0})
    schedule.begin()
    done(schedule, 1, 0, 1.0, 1.0, [2])
    schedule.committed(4, [2])
    assert schedule.freed(Pass(2, (4,), 2.0, 2.0)) == []
    assert schedule.estimates[2] == 1.25


@pytest.mark.parametrize(("order", "alarm"), [([0, 1], 2.9), ([1, 0], 2.9)])
def test_costs_are_taken_out_of_what_is_learned_and_into_what_is_predicted(order, alarm):
    """Chunk 0 takes twice as long as an average one: what took 2, or 1, is the same pace, and the end is at 3."""
    schedule = dynamic({1: order}, {1: []}, costs=[2.0, 1.0])
    schedule.begin()
    first = [2.0, 1.0][order[0]]
    done(schedule, 1, order[0], first, first)
    assert schedule.estimates == {1: 1.0}
    assert schedule.wake == pytest.approx(alarm)


def test_who_was_spared_a_chunk_before_it_began_is_in_the_next_but_one():
    schedule = dynamic({1: [0, 1, 2], 2: []}, {1: [], 2: [0]}, {1: 1.0, 2: 9.0})
    schedule.begin()
    assert done(schedule, 2, 0, 0.5, 0.5, [1]) == [Skip(1, 0, recovered=True)]
    assert done(schedule, 1, 1, 1.0, 1.0) == []
    assert schedule.wake == pytest.approx(1.9)  # shortly before the end of chunk 2, its last


def with_a_late_start(pace=1.0):
    """Worker 2 of two, with chunks 2 and 3 in one pass, is still in a pass of the iteration before."""
    schedule = dynamic({1: [0, 1], 2: [2, 3]}, {1: [2, 3], 2: [0, 1]}, {1: 1.0, 2: pace})
    schedule.allow_pieces(True)
    schedule.learning.fraction = lambda: 1.0
    schedule.begin()
    assert len(schedule.workers[2].piece) == 2
    schedule.delayed(2)
    return schedule


def test_others_take_over_from_a_worker_that_is_still_in_an_earlier_pass():
    """It has begun nothing, so none of its passes comes to nothing by that, and nobody waits until it is late."""
    schedule = with_a_late_start()
    for chunk in (0, 1):
        schedule.counts(1, chunk)
    orders = schedule.freed(Pass(1, (0, 1), 2.0, 2.0)) + schedule.tick(2.0)
    assert orders == [*(Skip(2, chunk, recovered=False) for chunk in (3, 2)), Queue(1, (3, 2))]
    assert schedule.begins_late(2, 3.0) == []
    assert schedule.workers[2].running is None


def test_a_worker_that_never_begins_is_not_waited_for():
    """Nothing is known of any worker."""
    schedule = dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]})
    schedule.begin()
    schedule.delayed(2)
    assert done(schedule, 1, 0, 1.0) == [Skip(2, 1, recovered=False), Queue(1, (1,))]


def test_a_worker_that_is_late_to_begin_need_not_do_what_is_recovered_by_then():
    schedule = dynamic({1: [0, 1], 2: [2, 3]}, {1: [2, 3], 2: [0, 1]}, {1: 1.0, 2: 1.0})
    schedule.allow_pieces(True)
    schedule.learning.fraction = lambda: 1.0
    schedule.begin()
    schedule.counts(1, 2)
    schedule.committed(2, [2])
    schedule.delayed(2)
    worker = schedule.workers[2]
    assert ([chunk.number for chunk in worker.told], worker.ahead) == ([3], 1.0)
    assert worker not in schedule.chunks[2].takers


def test_a_worker_begins_with_what_it_was_told_when_its_earlier_pass_has_ended():
    schedule = with_a_late_start()
    assert schedule.tick(0.5) == []
    assert schedule.begins_late(2, 0.5) == []
    worker = schedule.workers[2]
    assert ([chunk.number for chunk in worker.piece], worker.since, worker.is_delayed) == ([2, 3], 0.5, False)
    assert schedule.begins_late(2, 0.6) == []  # once
    assert worker.since == 0.5


def test_a_worker_whose_earlier_pass_lasted_until_nothing_was_left_rests():
    schedule = with_a_late_start()
    for chunk in (2, 3):
        schedule.counts(1, chunk)
        schedule.committed(chunk, [2])
    assert schedule.tick(1.0) == []
    assert schedule.begins_late(2, 1.5) == []
    assert schedule.workers[2].running is None


def test_that_a_worker_was_late_to_begin_says_nothing_about_its_pace():
    schedule = with_a_late_start()
    for chunk in range(4):
        schedule.counts(1, chunk)
    schedule.freed(Pass(1, (0, 1, 2, 3), 4.0, 4.0))
    schedule.begin()
    assert schedule.estimates == {1: 1.0, 2: 1.0}


def test_a_report_shows_that_a_worker_is_not_delayed():
    schedule = with_a_late_start()
    schedule.counts(2, 2)
    schedule.freed(Pass(2, (2,), 1.0, 1.0))
    assert not schedule.workers[2].is_delayed
    schedule.delayed(2)  # from before
    assert not schedule.workers[2].is_delayed
