"""Approximate recovery in the coordinator: when an iteration may end, with which copies, and what comes too late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.errors import ProtocolError
from psgc.schedules import Schedule
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Deadline, Delivered, Lost, Report
from psgc.server.instructions import Add, Collect, Commit, Discard, Finish, Invalidate
from psgc.server.membership import Membership
from tests.unit.coordinating import begun, report

EVERYBODY = [[1, 2, 3]] * 3


def test_settled_per_chunk_ends_at_once_with_what_is_there():
    it = begun(EVERYBODY, parts=2, combined=False)
    report(it, (1, 0), (2, 0), (3, 1))
    assert it.handle(Deadline()) == [Commit(1, (3,), ((3, 3),)), Finish()]
    assert (it.recovered, it.missing_copies, it.incomplete()) == (1, 3, {1: (3,), 2: ()})
    assert it.used(3, 1)
    assert it.phase == "idle"


def test_settled_combined_collects_from_all_that_have_something():
    it = begun(EVERYBODY, parts=2)
    report(it, (1, 0), (2, 0), (3, 1))
    assert it.handle(Deadline()) == [Commit(1, (3,), ((3, 3),)), Collect(1, 1), Collect(2, 2), Collect(3, 3)]
    for worker in (1, 2):
        assert it.handle(Delivered(worker, 0, worker)) == [Add(worker, worker)]
    assert it.handle(Delivered(3, 0, 3)) == [Add(3, 3), Finish()]


def test_the_first_copy_of_all_is_waited_for():
    it = begun(EVERYBODY, combined=False)
    assert it.handle(Deadline()) == []
    assert it.phase == "working"
    assert report(it, (2, 1))[-1] == Finish()
    assert it.incomplete() == {0: (), 2: ()}


def test_a_first_copy_that_is_lost_again_was_none():
    it = begun([[1, 2, 3]], parts=2)
    report(it, (1, 0))
    it.handle(Lost(1))
    assert it.handle(Deadline()) == []
    assert report(it, (3, 0)) == [Commit(0, (3,), ((3, 3),)), Collect(3, 3)]


def test_as_many_copies_as_are_tolerated_may_be_missing():
    it = Coordinator(Membership(EVERYBODY, 2), Schedule({}), combined=False, tolerated=2)
    it.handle(Begin(0))
    report(it, (1, 0), (1, 1), (2, 1))
    assert it.phase == "working"
    assert report(it, (3, 2)) == [Commit(0, (1,), ((1, 1),)), Commit(2, (3,), ((3, 3),)), Finish()]
    assert it.missing_copies == 2


def test_nothing_survives_into_the_next_iteration():
    it = begun(EVERYBODY, combined=False)
    it.handle(Deadline())
    report(it, (1, 0))
    it.handle(Begin(1))
    assert (it.missing_copies, it.incomplete(), it.phase) == (3, {0: (), 1: (), 2: ()}, "working")
    assert it.handle(Report(1, 1, 0)) == [Commit(0, (1,), ((1, 1),))]
    assert it.phase == "working"


def test_a_copy_that_is_lost_is_missing_again():
    it = begun([[1, 2, 3], [1, 2, 3]], parts=2)
    report(it, (1, 0), (1, 1), (2, 1))
    assert it.missing_copies == 1
    it.handle(Lost(1))
    assert it.missing_copies == 2  # the copy that chunk 1 needs is to be done again, see below
    report(it, (3, 1))
    assert it.handle(Deadline()) == []  # not before somebody has done it


def test_what_is_invalidated_is_waited_for_and_nothing_else_counts_meanwhile():
    it = begun(EVERYBODY)
    report(it, (1, 0), (2, 1))
    it.handle(Deadline())
    assert it.phase == "collecting"
    assert Invalidate(3, 0, 1) in it.handle(Lost(1))
    assert it.phase == "redoing"
    assert it.handle(Report(3, 0, 2)) == [Discard(3, 2)]  # was on its way; the worker has dropped it
    assert it.handle(Report(3, 0, 0, attempt=1)) == [Commit(0, (1,), ((3, 1),)), Collect(3, 1)]
    assert it.incomplete() == {2: ()}
    assert it.handle(Delivered(2, 0, 2)) == [Add(2, 2)]
    assert it.handle(Delivered(3, 0, 1)) == [Add(3, 1), Finish()]


def test_a_lost_worker_that_had_nothing_to_deliver_changes_nothing_after_the_end():
    it = begun(EVERYBODY)
    report(it, (2, 1))
    it.handle(Deadline())
    assert it.handle(Lost(1)) == []
    assert it.phase == "collecting"
    assert it.handle(Delivered(2, 0, 2)) == [Add(2, 2), Finish()]


def test_settling_between_iterations_is_not_allowed():
    it = begun(EVERYBODY, combined=False)
    report(it, (1, 0), (1, 1), (1, 2))
    with pytest.raises(ProtocolError, match=r"Deadline\(\) is not allowed while idle"):
        it.handle(Deadline())


@given(st.integers(1, 3), st.booleans(), st.integers(0, 8), st.permutations(range(12)), st.integers(0, 12))
def test_missing_copies_are_those_of_the_chunks_that_are_incomplete(parts, combined, tolerated, order, settled_after):
    """Four chunks held by three workers, reported in any order."""
    it = Coordinator(Membership([[1, 2, 3]] * 4, parts), Schedule({}), combined, min(tolerated, 4 * parts - 1))
    it.handle(Begin(0))
    heard: dict[int, list[int]] = {chunk: [] for chunk in range(4)}
    for count, copy in enumerate(order):
        if it.phase != "working":
            break
        if count == settled_after:
            it.handle(Deadline())
        else:
            heard[copy % 4].append(1 + copy // 4)
            it.handle(Report(1 + copy // 4, 0, copy % 4))
    if it.phase == "working":
        return
    copies = {chunk: tuple(of[:parts]) for chunk, of in heard.items()}
    assert {chunk: it.contributors(chunk) for chunk in range(4)} == copies
    assert it.incomplete() == {chunk: of for chunk, of in copies.items() if len(of) < parts}
    assert it.missing_copies == sum(parts - len(of) for of in copies.values())
    assert it.recovered == 4 - len(it.incomplete())
