"""The coordinator when copies are compared by their sketches and kept by the workers: `verify` with `combined`."""

from functools import partial

import coordinating
import pytest
from coordinating import compare, report

from psgc.schedules.schedule import Next
from psgc.server.events import Compared, Deadline, Lost, Summed
from psgc.server.instructions import Commit, Discard, Finish, Invalidate, Reassign, Share, Wrong

begun = partial(coordinating.begun, every=1)
EVERYBODY = [[1, 2, 3, 4], [1, 2, 3, 4]]


def commit(chunk, worker, role=None, serial=0):
    role = role or worker
    return Commit(chunk, (role,), ((worker, role),), serial)


def test_a_chunk_is_committed_to_one_that_agrees_and_the_others_drop_their_copies():
    it = begun(EVERYBODY)
    assert report(it, (3, 0)) == []
    assert it.is_sketched(0)
    assert report(it, (1, 0)) == [compare(0, 3, 1)]
    assert it.handle(Compared(0, (3, 1))) == [commit(0, 3), Discard(1, 0)]
    assert (it.books.missing, it.books.recovered) == (1, 1)
    assert [it.books.used(worker, 0) for worker in (1, 2, 3)] == [True, False, True]
    assert report(it, (2, 0)) == [compare(0, 3, 1, 2)]
    assert it.handle(Compared(0, (3, 1, 2))) == [Discard(2, 0)]
    report(it, (2, 1), (4, 1))
    assert it.handle(Compared(1, (2, 4))) == [commit(1, 2), Discard(4, 1), Share(((2, 2, 0), (3, 3, 0)))]
    assert it.handle(Summed()) == [Finish()]


def test_the_sketch_of_a_lost_worker_still_counts_and_its_copy_does_not():
    it = begun(EVERYBODY)
    report(it, (1, 0))
    assert it.handle(Lost(1)) == []
    assert it.books.missing == 2
    assert report(it, (2, 0)) == [compare(0, 1, 2)]
    assert it.handle(Compared(0, (1, 2))) == [commit(0, 2)]
    assert it.books.missing == 1


def test_of_a_lost_worker_nothing_is_committed_at_the_deadline():
    it = begun(EVERYBODY)
    report(it, (1, 0))
    it.handle(Lost(1))
    assert it.handle(Deadline()) == []
    assert report(it, (2, 1)) == [commit(1, 2), Share(((2, 2, 0),))]
    assert it.books.incomplete() == {0: ()}
    assert it.books.missing == 1


@pytest.mark.parametrize("collecting", [True, False])
def test_what_is_done_again_is_compared_with_the_sketches_from_before(collecting):
    it = begun(EVERYBODY)
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, (1, 2)))
    if collecting:
        report(it, (2, 1), (3, 1))
        assert it.handle(Compared(1, (2, 3)))[-1] == Share(((1, 1, 0), (2, 2, 0)))
    assert it.handle(Lost(1)) == [*(Invalidate(worker, 0, 1) for worker in (2, 3, 4)), Next(2, 0)]
    assert report(it, (3, 0), attempt=1) == [compare(0, 1, 2, 3)]
    assert it.handle(Compared(0, (1, 2))) == [Wrong(3, 0, (1, 2)), Next(2, 0), Discard(3, 0)]
    assert it.books.recovered == int(collecting)
    assert report(it, (2, 0), attempt=1) == [compare(0, 1, 2)]
    share = [Share(((2, 1, 1), (2, 2, 0)))] if collecting else []
    assert it.handle(Compared(0, (1, 2))) == [commit(0, 2, 1, int(collecting)), *share]
    assert (it.books.recovered, it.books.used(1, 0), it.books.used(2, 0, 1)) == (1 + collecting, False, True)


def test_what_nothing_had_shown_right_at_the_deadline_is_done_again_without_being_compared():
    """The sum may be there already, with the copy that a comparison would show to be wrong."""
    it = begun(EVERYBODY)
    it.handle(Deadline())
    assert report(it, (1, 0)) == [commit(0, 1), Share(((1, 1, 0),))]
    assert it.handle(Lost(1))[-1] == Next(2, 0)
    assert report(it, (3, 0), attempt=1) == [commit(0, 3, 1, 1), Share(((3, 1, 1),))]
    assert (it.books.recovered, it.books.missing) == (1, 1)


def test_after_the_deadline_nobody_is_asked_for_a_disputed_chunk():
    it = begun(EVERYBODY)
    report(it, (1, 0), (2, 0))
    assert it.handle(Compared(0, ())) == [Next(3, 0)]
    report(it, (1, 1), (2, 1))
    it.handle(Compared(1, (1, 2)))
    assert it.handle(Deadline()) == [Share(((1, 1, 0),))]
    assert it.handle(Lost(3)) == []


def test_who_is_found_for_a_dispute_hears_how_often_the_chunk_was_invalidated():
    it = begun([[1, 2], [3, 4], [3, 5]])
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, (1, 2)))
    assert it.handle(Lost(1)) == [Invalidate(2, 0, 1), Next(2, 0)]
    assert report(it, (2, 0), attempt=1) == [compare(0, 1, 2)]
    assert it.handle(Compared(0, ())) == [Reassign(4, 0, 1), Invalidate(4, 0, 1), Next(4, 0)]
