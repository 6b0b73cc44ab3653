"""Approximate recovery in the coordinator: when an iteration may end, with which copies, and what comes too late."""

import pytest

from psgc.schedules import Schedule
from psgc.schedules.schedule import Queue
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Deadline, Lost, Report, Summed
from psgc.server.instructions import Commit, Discard, Finish, Invalidate, Share
from psgc.server.membership import Membership
from tests.unit.coordinating import begun, report

EVERYBODY = [[1, 2, 3]] * 3


@pytest.mark.parametrize("combined", [True, False])
def test_an_iteration_ends_at_the_deadline_with_the_copies_that_are_there(combined):
    it = begun(EVERYBODY, parts=2, combined=combined)
    report(it, (1, 0), (2, 0), (3, 1))
    share = Share(((1, 1, 0), (2, 2, 0), (3, 3, 0)))
    assert it.handle(Deadline()) == [Commit(1, (3,), ((3, 3),)), share if combined else Finish()]
    assert not combined or it.handle(Summed()) == [Finish()]
    assert (it.books.recovered, it.books.missing, it.books.incomplete()) == (1, 3, {1: (3,), 2: ()})
    assert it.books.used(3, 1)
    assert it.phase == "idle"


def test_the_deadline_waits_for_the_first_copy_even_if_that_is_lost_again():
    it = begun(EVERYBODY)
    assert it.handle(Deadline()) == []
    assert it.phase == "working"
    assert report(it, (2, 1))[-1] == Share(((2, 2, 0),))
    assert it.books.incomplete() == {0: (), 2: ()}
    it = begun(EVERYBODY, parts=2)
    report(it, (1, 0))
    it.handle(Lost(1))
    assert it.handle(Deadline()) == []
    assert report(it, (3, 0)) == [Commit(0, (3,), ((3, 3),)), Share(((3, 3, 0),))]


def test_as_many_copies_as_are_tolerated_may_be_missing():
    it = Coordinator(Membership(EVERYBODY, 2), Schedule({}), combined=False, tolerated=2)
    it.handle(Begin(0))
    report(it, (1, 0), (1, 1), (2, 1))
    assert it.phase == "working"
    assert report(it, (3, 2)) == [Commit(0, (1,), ((1, 1),)), Commit(2, (3,), ((3, 3),)), Finish()]
    assert it.books.missing == 2


def test_a_lost_copy_is_missing_again():
    it = begun([[1, 2, 3], [1, 2, 3]], parts=2)
    report(it, (1, 0), (1, 1), (2, 1))
    assert it.books.missing == 1
    it.handle(Lost(1))
    assert it.books.missing == 2  # the copy that chunk 1 needs is to be done again, see below
    report(it, (3, 1))
    assert it.handle(Deadline()) == []  # not before somebody has done it


def test_dynamic_has_nothing_done_after_the_deadline_but_what_is_invalidated():
    it = begun(EVERYBODY, name="dynamic")
    report(it, (1, 0))
    it.handle(Deadline())
    assert {order.chunks for order in it.handle(Lost(1)) if isinstance(order, Queue)} == {(0,)}


def test_nobody_does_what_was_left_out_when_its_holder_is_lost():
    it = begun([[1, 2], [1, 2], [3]])
    report(it, (1, 0), (2, 1))
    it.handle(Deadline())
    assert it.handle(Lost(3)) == []
    assert it.phase == "collecting"


def test_an_invalidated_chunk_is_waited_for_and_nothing_else_counts_meanwhile():
    it = begun(EVERYBODY)
    report(it, (1, 0), (2, 1))
    it.handle(Deadline())
    assert it.phase == "collecting"
    assert Invalidate(3, 0, 1) in it.handle(Lost(1))
    assert it.phase == "redoing"
    assert it.handle(Report(3, 0, 2)) == [Discard(3, 2)]  # was on its way; the worker has dropped it
    assert report(it, (3, 0), attempt=1) == [Commit(0, (1,), ((3, 1),), 1), Share(((2, 2, 0), (3, 1, 1)))]
    assert it.books.incomplete() == {2: ()}
    assert it.handle(Summed()) == [Finish()]
    assert it.books.missing == 1
