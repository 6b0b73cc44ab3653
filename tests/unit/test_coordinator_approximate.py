"""Approximate recovery in the coordinator: when an iteration may end, with which copies, and what comes too late."""

from hypothesis import given
from hypothesis import strategies as st

from psgc.schedules import Schedule
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Deadline, Delivered, Lost, Report
from psgc.server.instructions import Add, Collect, Commit, Discard, Finish, Invalidate
from psgc.server.membership import Membership
from tests.unit.coordinating import begun, report

EVERYBODY = [[1, 2, 3]] * 3


def test_per_chunk_ends_at_the_deadline_with_the_copies_that_are_there():
    it = begun(EVERYBODY, parts=2, combined=False)
    report(it, (1, 0), (2, 0), (3, 1))
    assert it.handle(Deadline()) == [Commit(1, (3,), ((3, 3),)), Finish()]
    assert (it.recovered, it.missing_copies, it.incomplete()) == (1, 3, {1: (3,), 2: ()})
    assert it.used(3, 1)
    assert it.phase == "idle"


def test_combined_collects_at_the_deadline_from_everybody_that_has_a_copy():
    it = begun(EVERYBODY, parts=2)
    report(it, (1, 0), (2, 0), (3, 1))
    assert it.handle(Deadline()) == [Commit(1, (3,), ((3, 3),)), Collect(1, 1), Collect(2, 2), Collect(3, 3)]
    for worker in (1, 2):
        assert it.handle(Delivered(worker, 0, worker)) == [Add(worker, worker)]
    assert it.handle(Delivered(3, 0, 3)) == [Add(3, 3), Finish()]


def test_the_deadline_waits_for_the_first_copy_even_if_that_is_lost_again():
    it = begun(EVERYBODY)
    assert it.handle(Deadline()) == []
    assert it.phase == "working"
    assert report(it, (2, 1))[-1] == Collect(2, 2)
    assert it.incomplete() == {0: (), 2: ()}
    it = begun(EVERYBODY, parts=2)
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


def test_a_lost_copy_is_missing_again():
    it = begun([[1, 2, 3], [1, 2, 3]], parts=2)
    report(it, (1, 0), (1, 1), (2, 1))
    assert it.missing_copies == 1
    it.handle(Lost(1))
    assert it.missing_copies == 2  # the copy that chunk 1 needs is to be done again, see below
    report(it, (3, 1))
    assert it.handle(Deadline()) == []  # not before somebody has done it


def test_an_invalidated_chunk_is_waited_for_and_nothing_else_counts_meanwhile():
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
