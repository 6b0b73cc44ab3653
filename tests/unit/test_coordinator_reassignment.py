"""The coordinator when workers are lost: who takes over what in which role, and what the schedule hears."""

import pytest
from coordinating import Recording, begun, collecting, report

from psgc.schedules.schedule import Next, Queue
from psgc.server.events import Lost
from psgc.server.instructions import Commit, Finish, Invalidate, Reassign, Share

COMBINED = pytest.mark.parametrize("combined", [True, False], ids=["combined", "per_chunk"])


# reassignment


@COMBINED
def test_a_chunk_without_a_live_holder_goes_to_the_worker_that_holds_least_in_the_role_of_the_lost_one(combined):
    it = begun([[1], [2], [2], [3]], combined=combined)
    assert it.handle(Lost(1)) == [Reassign(3, 0, 1), Next(3, 0)]
    assert report(it, (3, 0)) == [Commit(0, (1,), ((3, 1),))]
    report(it, (3, 3), (2, 1))
    answers = report(it, (2, 2))
    assert answers[1:] == [Share(((2, 2, 0), (3, 1, 0), (3, 3, 0))) if combined else Finish()]


def test_a_new_holder_hears_how_often_its_chunk_was_invalidated():
    it = begun([[1, 2], [3], [4], [4]])
    report(it, (1, 0))
    assert it.handle(Lost(1)) == [Invalidate(2, 0, 1), Next(2, 0)]
    assert it.handle(Lost(2)) == [Reassign(3, 0, 1), Invalidate(3, 0, 1), Next(3, 0)]
    assert report(it, (3, 0), attempt=1) == [Commit(0, (1,), ((3, 1),))]


def test_a_worker_that_did_a_chunk_in_two_roles_is_replaced_by_two_workers():
    it = begun([[1, 2], [3, 4]], parts=2)
    report(it, (1, 0), (2, 0))
    it.handle(Lost(1))
    assert report(it, (2, 0), attempt=1) == [Commit(0, (1, 2), ((2, 1),))]
    reassigned = [Reassign(3, 0, 1), Reassign(4, 0, 2)]
    assert it.handle(Lost(2)) == [*reassigned, Invalidate(3, 0, 2), Invalidate(4, 0, 2), Next(3, 0), Next(4, 0)]
    assert report(it, (4, 0), attempt=2) == [Commit(0, (1, 2), ((4, 1),))]
    assert report(it, (3, 0), attempt=2) == [Commit(0, (1, 2), ((3, 2),))]


# what the schedule hears


def test_the_schedule_hears_what_a_loss_has_changed():
    schedule = Recording()
    it = begun([[1, 2, 3], [1, 2, 3], [1, 4], [4, 2]], parts=2, schedule=schedule)
    report(it, (1, 0), (2, 0), (1, 1), (4, 2))
    it.handle(Lost(1, now=7.0))
    ((loss, now),) = schedule.losses
    assert now == 7.0
    assert (loss.worker, loss.dropped, loss.collected) == (1, [1], False)
    assert loss.invalidated == {0: (1, [2, 3])}
    assert loss.reassigned == ((3, 2),)
    assert loss.holders == [[2, 3], [2, 3], [4, 3], [4, 2]]


def test_the_schedule_hears_whether_the_workers_had_stopped():
    schedule = Recording()
    it = collecting(schedule)
    it.handle(Lost(1))
    it.handle(Lost(2))
    assert [loss.collected for loss, _ in schedule.losses] == [True, False]


def test_dynamic_does_not_order_from_a_worker_that_was_lost_while_collecting():
    it = begun([[1, 2, 3], [2, 3, 1], [3, 1, 2]], name="dynamic")
    report(it, (1, 0), (3, 1), (3, 2))
    assert it.handle(Lost(2)) == []
    assert it.handle(Lost(1)) == [Invalidate(3, 0, 1), Queue(3, (0,))]
