"""Schedules when workers are lost: who does what in their stead, and what is still known of the others afterwards."""

from math import inf

import pytest

from psgc.schedules import SCHEDULES
from psgc.schedules.decisions import LEAST_REST, LONG_REST
from psgc.schedules.dynamic import DynamicSchedule
from psgc.schedules.schedule import Loss, Next, Pass, Queue, Skip
from tests.unit.scheduling import done, dynamic, holders_of

QUEUES = {1: [0, 1, 2], 2: [1, 2, 0], 3: [2, 0, 1]}
NAMES = ["uncoded", "random", "static", "skipping", "full"]


def loss(worker, holders=(), dropped=(), invalidated=None, reassigned=(), collected=False):
    return Loss(worker, dropped, invalidated or {}, reassigned, holders, collected)


def begun(name, queues=QUEUES, paces=()):
    """paces: by worker, seconds per chunk."""
    schedule = SCHEDULES[name](queues)
    schedule.begin()
    for worker, seconds in dict(paces).items():
        assert schedule.freed(Pass(worker, (9,), seconds, seconds)) == []
    return schedule


# the fixed orders


@pytest.mark.parametrize("name", NAMES)
def test_a_invalidated_chunk_goes_to_as_many_as_it_needs_the_fastest_of_them(name):
    schedule = begun(name, paces={1: 1.0, 2: 5.0, 3: 2.0})
    invalidated = {0: (1, [1, 2, 3]), 1: (2, [2, 3, 1])}
    assert schedule.lost(loss(4, invalidated=invalidated), now=1.0) == [Next(1, 0), Next(1, 1), Next(3, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_told_before_counts_when_the_rest_is_shared_out(name):
    schedule = begun(name, paces={1: 1.0, 2: 1.6})
    invalidated = {chunk: (1, [2, 1]) for chunk in range(4)}
    orders = schedule.lost(loss(4, invalidated=invalidated), now=1.0)
    assert orders == [Next(1, 0), Next(2, 1), Next(1, 2), Next(1, 3)]  # through at 1, 1.6, 2; then at 3 and not at 3.2


@pytest.mark.parametrize("name", NAMES)
def test_who_was_never_heard_of_is_taken_to_be_as_slow_as_any(name):
    schedule = begun(name, paces={1: 1.0, 3: 4.0})
    assert schedule.lost(loss(4, invalidated={0: (1, [2, 1])}), now=1.0) == [Next(1, 0)]
    assert schedule.lost(loss(5, invalidated={1: (1, [3, 2])}), now=1.0) == [Next(2, 1)]
    assert begun(name).lost(loss(4, invalidated={0: (1, [3, 2])}), now=1.0) == [Next(2, 0)]


@pytest.mark.parametrize("name", NAMES)
def test_who_was_told_a_chunk_that_is_lost_once_more_does_it_again(name):
    """The other would be sooner by now, but its copy is further."""
    schedule = begun(name, paces={1: 1.0, 2: 1.5})
    assert schedule.lost(loss(4, invalidated={0: (1, [1, 2])}), now=1.0) == [Next(1, 0)]
    assert schedule.lost(loss(5, invalidated={0: (1, [1, 2])}), now=1.0) == [Next(1, 0)]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_told_in_an_iteration_is_not_known_in_the_next_but_the_paces_are(name):
    schedule = begun(name, paces={1: 1.0, 2: 1.5})
    assert schedule.lost(loss(4, invalidated={0: (1, [1, 2])}), now=1.0) == [Next(1, 0)]
    schedule.begin()
    assert schedule.lost(loss(5, invalidated={1: (1, [1, 2])}), now=1.0) == [Next(1, 1)]


def test_who_shares_out_anew_knows_the_paces():
    schedule = SCHEDULES["static"](QUEUES)
    schedule.inherit(begun("static", paces={1: 3.0, 2: 1.0}))
    schedule.begin()
    assert schedule.lost(loss(4, invalidated={0: (1, [1, 2])}), now=1.0) == [Next(2, 0)]
    schedule.freed(Pass(1, (0,), 0.5, 0.5))
    schedule.begin()
    assert schedule.lost(loss(4, invalidated={0: (1, [1, 2])}), now=1.0) == [Next(1, 0)]


# full


def test_what_a_lost_worker_did_is_counted_at_once_when_it_is_done_in_its_stead():
    schedule = begun("full")
    assert schedule.counts(1, 0) == ()
    schedule.lost(loss(4, reassigned=[(1, 5)], invalidated={2: (1, [1, 2])}), now=1.0)
    assert list(schedule.counts(1, 5)) == [5]  # reassigned
    assert list(schedule.counts(2, 2)) == [2]  # recovered before
    assert list(schedule.counts(1, 2)) == [2]
    assert list(schedule.counts(1, 1)) == [0, 1]  # the whole load now, without what counted before
    assert list(schedule.counts(1, 6)) == [6]  # whatever else it is told


def test_what_was_done_of_a_load_and_is_invalidated_is_missing_to_the_load():
    schedule = begun("full")
    assert [schedule.counts(2, chunk) for chunk in (1, 2)] == [(), ()]
    orders = schedule.lost(loss(4, invalidated={1: (1, [1, 2]), 0: (1, [3])}), now=1.0)
    assert orders == [Next(1, 1), Next(3, 0), Next(2, 1)]
    assert list(schedule.counts(2, 0)) == [0]
    assert list(schedule.counts(2, 1)) == [2, 1]  # it is through


def test_what_counted_already_and_is_invalidated_counts_again():
    schedule = begun("full")
    schedule.lost(loss(4, invalidated={1: (1, [1])}), now=1.0)
    assert list(schedule.counts(1, 1)) == [1]
    schedule.lost(loss(5, invalidated={1: (1, [1])}), now=1.0)
    assert list(schedule.counts(1, 1)) == [1]
    schedule.lost(loss(6, invalidated={1: (1, [1])}), now=1.0)
    assert [list(schedule.counts(1, chunk)) for chunk in (0, 2)] == [[], []]
    assert list(schedule.counts(1, 1)) == [0, 2, 1]


def test_a_copy_of_the_load_from_before_a_invalidateing_is_done_again():
    schedule = begun("full")
    assert schedule.freed(Pass(1, (0,), 1.0, 1.0, is_done=False)) == [Next(1, 0)]
    schedule.counts(1, 0)
    assert schedule.freed(Pass(1, (0,), 2.0, 1.0, is_done=False)) == []
    assert schedule.freed(Pass(1, (7,), 2.0, 1.0, is_done=False)) == []  # reassigned before: not of its load


def test_full_forgets_at_the_next_iteration_what_counted_and_what_was_urgent():
    schedule = begun("full")
    schedule.lost(loss(4, invalidated={0: (1, [1])}), now=1.0)
    assert list(schedule.counts(1, 0)) == [0]
    schedule.begin()
    assert [list(schedule.counts(1, chunk)) for chunk in (0, 1, 2)] == [[], [], [0, 1, 2]]


# dynamic


def begun_dynamic(own, backups, estimates, parts=1):
    schedule = dynamic(own, backups, estimates, parts=parts)
    schedule.begin()
    return schedule, holders_of(own, backups)


def without(holders, worker):
    return [[w for w in of if w != worker] for of in holders]


def three(estimates=(), parts=1):
    """Own shares of two chunks; everybody holds everything."""
    own = {1: [0, 1], 2: [2, 3], 3: [4, 5]}
    backups = {worker: [chunk for chunk in range(6) if chunk not in own[worker]] for worker in own}
    return begun_dynamic(own, backups, estimates or {1: 1.0, 2: 1.0, 3: 1.0}, parts)


def test_dynamic_goes_on_with_what_the_others_were_told_and_takes_over_the_rest_when_they_are_through():
    schedule, holders = three()
    assert schedule.lost(loss(3, without(holders, 3)), now=0.5) == []
    assert done(schedule, 1, 0, 1.0, 1.0, [2]) == [Queue(1, (1, 4))]  # its last chunk has begun: what comes next
    assert done(schedule, 2, 2, 1.0, 1.0, [1]) == [Queue(2, (3, 5))]


def test_dynamic_lets_who_rests_do_what_is_invalidated():
    schedule, holders = begun_dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]}, {1: 1.0, 2: 1.0})
    done(schedule, 1, 0, 1.0, 1.0, [2])
    done(schedule, 2, 1, 1.0, 1.0, [1])
    orders = schedule.lost(loss(1, without(holders, 1), invalidated={0: (1, [2])}, collected=True), now=2.0)
    assert orders == [Queue(2, (0,))]
    assert done(schedule, 2, 0, 3.0, 3.0, []) == []


def test_dynamic_has_who_did_a_chunk_that_is_invalidated_do_it_again():
    schedule, holders = begun_dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]}, {1: 1.0, 2: 1.0})
    done(schedule, 1, 0, 1.0, others=[2])
    done(schedule, 2, 1, 1.0, others=[1])
    schedule.freed(Pass(2, (0,), 2.0, 1.0))  # a copy that came too late, and was dropped
    orders = schedule.lost(loss(1, without(holders, 1), invalidated={0: (1, [2])}, collected=True), now=3.0)
    assert orders == [Queue(2, (0,))]


def test_dynamic_knows_that_nobody_is_in_anything_once_all_was_collected():
    """2 was in chunk 1 when it was recovered, until 4 for all that was known; it begins what is invalidated at once."""
    schedule, holders = begun_dynamic({1: [0], 2: [1], 3: []}, {1: [], 2: [0], 3: [1]}, {1: 2.0, 2: 4.0, 3: 9.0})
    done(schedule, 3, 1, 0.1, 0.1, [2])
    done(schedule, 1, 0, 0.2, 0.2, [2])
    orders = schedule.lost(loss(1, without(holders, 1), invalidated={0: (1, [2])}, collected=True), now=1.0)
    assert orders == [Queue(2, (0,))]


def test_dynamic_tells_who_is_in_a_invalidated_chunk_to_go_on_with_it():
    """It may have dropped the chunk, recovered as it was, before it began it."""
    schedule, holders = begun_dynamic({1: [0, 3], 2: [], 3: [1, 2]}, {1: [], 2: [0], 3: []}, {1: 1.0, 2: 3.0, 3: 5.0})
    assert done(schedule, 2, 0, 0.5, 0.5, [1]) == [Skip(1, 0, True)]
    orders = schedule.lost(loss(2, without(holders, 2), invalidated={0: (1, [1])}), now=0.7)
    assert orders == [Queue(1, (0, 3))]


def test_dynamic_has_a_dropped_copy_done_by_another():
    """Chunk 0 needs two copies. 2, by far the slowest, rests until the copy of 1 is lost."""
    schedule, holders = begun_dynamic(
        {1: [0], 2: [0], 3: []}, {1: [], 2: [], 3: [0]}, {1: 1.0, 2: 9.0, 3: 1.0}, parts=2
    )
    assert list(schedule.counts(1, 0)) == [0]
    schedule.freed(Pass(1, (0,), 1.0, 1.0))
    assert schedule.lost(loss(1, without(holders, 1), dropped=[0]), now=1.0) == [Queue(2, (0,))]


def test_dynamic_lets_a_new_holder_do_what_was_reassigned():
    schedule, _ = begun_dynamic({1: [0], 2: [1]}, {1: [], 2: []}, {1: 1.0, 2: 1.0})
    orders = schedule.lost(loss(1, [[2], [2]], reassigned=[(2, 0)]), now=0.5)
    assert orders == [Queue(2, (1, 0))]


def test_dynamic_begins_the_next_iteration_with_what_it_knew_of_those_who_are_left():
    before, _ = three({1: 1.0, 2: 2.0, 3: 3.0})
    done(before, 1, 0, 1.0, 1.0, [2, 3])
    after, _ = begun_dynamic({1: [0], 3: [1], 4: [2]}, {1: [], 3: [], 4: []}, {})
    after.inherit(before)
    after.begin()
    assert after.estimates == {1: 1.0, 3: 3.0}


def test_a_lost_worker_wakes_nobody():
    schedule, holders = begun_dynamic({1: [0], 2: [1]}, {1: [1], 2: [0]}, {1: 1.0, 2: 4.0})
    assert schedule.wake < inf
    schedule.lost(loss(1, without(holders, 1)), now=0.1)
    while schedule.wake < inf:
        assert all(order.worker == 2 for order in schedule.tick(schedule.wake))


# copies that do not agree (verify)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_disputed_is_done_next_by_whoever_is_through_first(name):
    schedule = begun(name, paces={1: 1.0, 2: 5.0, 3: 2.0})
    assert schedule.disputed(0, 2, [2, 3], 1.0) == [Next(3, 0)]
    assert schedule.disputed(0, 2, [2, 3], 1.0) == [Next(3, 0)]  # the one that was told
    assert schedule.disputed(1, 2, [2, 3], 1.0) == [Next(3, 1)]
    assert schedule.disputed(0, 2, [2], 1.0) == [Next(2, 0)]


def test_full_has_nobody_do_again_what_will_count_with_its_load():
    schedule = begun("full")
    assert schedule.counts(2, 1) == ()
    assert schedule.disputed(1, 2, [2], 1.0) == []
    assert schedule.disputed(1, 2, [2, 3], 1.0) == [Next(3, 1)]
    assert list(schedule.counts(3, 1)) == [1]  # at once


def with_checks(holders, parts=1, checked=()):
    """Every worker's own share: the chunks that it is the first to hold."""
    workers = sorted({worker for of in holders for worker in of})
    own = {worker: [chunk for chunk, of in enumerate(holders) if of[0] == worker] for worker in workers}
    backups = {worker: [chunk for chunk, of in enumerate(holders) if worker in of[1:]] for worker in workers}
    schedule = DynamicSchedule(own, backups, holders, parts)
    return schedule, schedule.begin(checked)


def test_dynamic_has_a_checked_chunk_done_by_one_more():
    assert with_checks([[1, 2], [2, 1]], checked=[0])[1][0] == Queue(2, (1, 0))
    assert with_checks([[1], [2, 1]])[1] == []  # no second copy of what has begun before anything is known


def test_dynamic_has_nobody_do_a_chunk_whose_copies_are_being_compared():
    schedule, _ = with_checks([[1, 2, 3], [2, 3, 1], [3, 1, 2]], checked=[0])
    for worker in (1, 2):
        schedule.counts(worker, 0)
        schedule.freed(Pass(worker, (0,), 1.0, 1.0))
    orders = done(schedule, 3, 2, 1.0)
    assert not any(0 in order.chunks for order in orders if isinstance(order, Queue))


def resting(holders, workers, parts=1, costs=()):
    schedule, _ = with_checks(holders, parts)
    if costs:
        schedule.know_costs(costs)
    schedule.rest(workers)
    return schedule, schedule.begin()


@pytest.mark.parametrize("costs", [(), (1.0, 2.0, 3.0)])
def test_dynamic_gives_the_share_of_who_is_to_rest_to_others_for_one_iteration(costs):
    schedule, orders = resting([[1, 2, 3], [2, 3, 1], [3, 1, 2]], {1}, costs=costs)
    told = {order.worker: order.chunks for order in orders if isinstance(order, Queue)}
    assert told[1] == ()
    assert {chunk for worker in (2, 3) for chunk in told.get(worker, (worker - 1,))} == {0, 1, 2}
    assert all(order.worker != 1 for order in schedule.freed(Pass(2, (1,), 1.0, 1.0)))
    assert not any(order.worker == 1 and order.chunks == () for order in schedule.begin() if isinstance(order, Queue))


def test_dynamic_is_not_surprised_that_who_rests_reports_nothing():
    schedule, _ = with_checks([[1, 2, 3], [2, 3, 1], [3, 1, 2]])
    for worker in (1, 2, 3):
        done(schedule, worker, worker - 1, 1.0)
    schedule.rest({1})
    schedule.begin()
    for worker, chunk in ((2, 1), (3, 2), (2, 0)):
        done(schedule, worker, chunk, 5.0)
    schedule.begin()
    assert schedule.estimates.keys() == {1, 2, 3}


def test_dynamic_lets_nobody_rest_from_what_fewer_than_two_others_hold():
    _, orders = resting([[1, 2], [2, 3, 1], [3, 1, 2]], {1})
    assert not any(order.worker == 1 for order in orders)
    _, orders = resting([[1, 2, 3], [2, 3, 1], [3, 1, 2]], {1, 2})
    assert not any(order == Queue(1, ()) for order in orders)


def test_dynamic_tells_who_rests_what_is_left_of_its_share():
    """It once did chunks that others had got, so that their passes were worthless."""
    _, orders = resting([[1, 2, 3], [1, 2], [2, 3, 1], [3, 1, 2]], {1})
    assert [order.chunks for order in orders if isinstance(order, Queue) and order.worker == 1] == [(1,)]


def test_dynamic_has_who_rests_do_what_is_lost():
    schedule, _ = resting([[1, 2, 3], [2, 3, 1], [3, 1, 2]], {1})
    orders = []
    for lost in (2, 3):
        left = [1, 3] if lost == 2 else [1]
        loss = Loss(lost, dropped=[], invalidated={}, reassigned=[], holders=[left] * 3, collected=False)
        orders += schedule.lost(loss, 1.0) + schedule.tick(1.0)
    assert any(order.worker == 1 and order.chunks for order in orders if isinstance(order, Queue))


@pytest.mark.parametrize("seconds", [1.0, 0.01])
def test_dynamic_has_who_rests_do_what_is_left_when_the_others_stop(seconds):
    """Once it waited until they were lost."""
    holders = [[1, 2, 3], [2, 3, 1], [3, 1, 2]]
    schedule, _ = with_checks(holders)
    for worker in (1, 2, 3):
        done(schedule, worker, worker - 1, seconds)
    schedule.rest({1})
    schedule.begin()
    told = {}
    while 1 not in told and schedule.wake < inf:
        now = schedule.wake
        told |= {order.worker: now for order in schedule.tick(now) if isinstance(order, Queue) and order.chunks}
    assert told[1] == max(LEAST_REST, LONG_REST * seconds)
    assert schedule.wake > told[1]


def test_dynamic_has_a_disputed_chunk_done_by_who_rests_also_if_was_reassigned_it():
    holders = [[1], [2], [3]]
    schedule, _ = with_checks(holders)
    done(schedule, 1, 0, 1.0)
    done(schedule, 3, 2, 1.0)
    holders[0].append(3)
    assert schedule.disputed(0, 2, [3], 2.0) == [Queue(3, (0,))]
