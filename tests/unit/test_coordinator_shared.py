"""The coordinator with transfer `combined`: which accumulators are shared out, and what is in their sum."""

from coordinating import begun, collecting, report
from refusal import snapshot

from psgc.schedules.schedule import Next
from psgc.server.events import Abandoned, Begin, Lost, Report, Summed
from psgc.server.instructions import Commit, Finish, Invalidate, Share


def redoing():
    """Worker 1 was lost after everything had been shared out; chunk 0 is to be done again."""
    it = collecting()
    assert it.handle(Lost(1)) == [Invalidate(2, 0, 1), Invalidate(3, 0, 1), Next(2, 0)]
    assert it.phase == "redoing"
    return it


def test_when_everything_is_committed_all_accumulators_are_shared_out_and_their_sum_ends_the_iteration():
    it = begun([[1, 2, 3], [2, 1, 3]], parts=2)
    report(it, (1, 0), (3, 1), (2, 0))
    assert report(it, (1, 1))[1:] == [Share(((1, 1, 0), (2, 2, 0), (3, 3, 0)))]
    assert (it.phase, it.books.accumulators.shared) == ("collecting", {(1, 1, 0), (2, 2, 0), (3, 3, 0)})
    assert it.handle(Summed()) == [Finish()]
    assert (it.phase, it.books.accumulators.shared, it.books.recovered) == ("idle", set(), 2)
    assert it.handle(Begin(1)) == []
    assert it.handle(Report(2, 0, 1)) == []
    assert it.handle(Report(1, 1, 0)) == []
    assert it.handle(Report(2, 1, 0)) == [Commit(0, (1, 2), ((1, 1), (2, 2)))]


def test_what_is_done_again_goes_to_new_accumulators_and_all_are_shared_out_once_more():
    it = redoing()
    assert report(it, (2, 0), attempt=1) == [Commit(0, (1,), ((2, 1),), 1), Share(((2, 1, 1), (2, 2, 0)))]
    assert it.handle(Lost(2)) == [Invalidate(3, 0, 2), Invalidate(3, 1, 1), Next(3, 0), Next(3, 1)]
    report(it, (3, 0), attempt=2)
    assert report(it, (3, 1), attempt=1) == [Commit(1, (2,), ((3, 2),), 2), Share(((3, 1, 2), (3, 2, 2)))]
    assert it.handle(Summed()) == [Finish()]
    assert [it.books.used(3, 0, 2), it.books.used(3, 1, 1)] == [True, True]
    assert [it.books.used(1, 0), it.books.used(2, 0, 1), it.books.used(2, 1)] == [False, False, False]


def test_a_sum_that_is_there_before_the_lost_was_done_again_holds_what_was_lost():
    it = redoing()
    assert (it.books.recovered, it.books.used(1, 0)) == (1, False)
    assert it.handle(Summed()) == [Finish()]
    assert (it.books.recovered, it.books.missing, it.books.incomplete()) == (2, 0, {})
    assert it.books.used(1, 0)
    before = snapshot(it)
    for event in (Report, Abandoned):
        assert it.handle(event(2, 0, 0, attempt=1)) == []
        assert it.handle(event(3, 0, 0)) == []
        assert it.handle(event(1, 0, 0)) == []
    assert snapshot(it) == before
    assert it.handle(Lost(3)) == []
    assert it.handle(Begin(1)) == []


def test_what_was_done_again_and_not_shared_out_is_not_in_the_sum():
    it = begun([[1, 2, 3], [1, 3, 2]])
    report(it, (1, 0), (1, 1))
    it.handle(Lost(1))
    assert report(it, (2, 0), attempt=1) == [Commit(0, (1,), ((2, 1),), 1)]
    assert it.books.used(2, 0, 1)
    assert it.handle(Summed()) == [Finish()]
    assert [it.books.used(1, 0), it.books.used(1, 1), it.books.used(2, 0, 1)] == [True, True, False]
    assert it.books.recovered == 2
