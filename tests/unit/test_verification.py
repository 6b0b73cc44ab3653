"""The coordinator when copies are compared (`per_chunk`): what counts, who is asked, who is in the wrong."""

from functools import partial

import coordinating
import pytest
from coordinating import Recording, commit, compare, report

from psgc.errors import RunFailed, TooFewWorkers
from psgc.schedules.schedule import Next, Skip
from psgc.server.events import Abandoned, Compared, Deadline, Lost
from psgc.server.instructions import Commit, Compare, Finish, Reassign, Wrong

begun = partial(coordinating.begun, combined=False, every=1)


# a chunk that is checked


@pytest.mark.parametrize("parts", [1, 2])
def test_a_checked_chunk_is_committed_when_one_more_copy_than_parts_agrees(parts):
    it = begun([[1, 2, 3], [1, 2, 3]], parts)
    workers = [3, 1, 2][: parts + 1]
    for worker in workers[:-1]:
        assert report(it, (worker, 0)) == []
    assert report(it, (workers[-1], 0)) == [compare(0, *workers)]
    assert it.books.recovered == 0
    assert it.handle(Compared(0, workers)) == [commit(0, *workers[:parts])]
    assert it.books.recovered == 1
    assert it.books.chunks[0].contributors == tuple(workers[:parts])
    assert all(it.books.used(worker, 0) for worker in workers)


# copies that do not agree


def test_one_more_holder_does_a_disputed_chunk_and_the_odd_copy_is_wrong():
    it = begun([[1, 2, 3], [1, 2, 3]])
    report(it, (1, 0), (2, 0))
    assert it.handle(Compared(0, ())) == [Next(3, 0)]
    assert it.books.recovered == 0
    assert report(it, (3, 0)) == [compare(0, 1, 2, 3)]
    assert it.handle(Compared(0, (2, 3))) == [Wrong(1, 0, (2, 3)), commit(0, 2)]
    assert [it.books.used(worker, 0) for worker in (1, 2, 3)] == [False, True, True]


def test_a_disputed_chunk_that_all_holders_have_done_is_reassigned():
    it = begun([[1, 2], [3, 4], [3, 5]])
    report(it, (1, 0), (2, 0))
    assert it.handle(Compared(0, ())) == [Reassign(4, 0, 1), Next(4, 0)]
    assert report(it, (4, 0)) == [Compare(0, ((1, 1), (2, 2), (4, 1)))]
    assert it.handle(Compared(0, ())) == [Reassign(5, 0, 2), Next(5, 0)]  # least often had so far
    report(it, (5, 0))
    assert it.handle(Compared(0, (4, 5))) == [Wrong(1, 0, (4, 5)), Wrong(2, 0, (4, 5)), Commit(0, (1,), ((4, 1),))]


def test_with_several_parts_every_copy_that_fits_is_right():
    it = begun([[1, 2, 3, 4, 5]], parts=2)
    report(it, (1, 0), (2, 0), (3, 0))
    assert it.handle(Compared(0, ())) == [Next(4, 0)]
    assert report(it, (5, 0)) == [compare(0, 1, 2, 3, 5)]  # whoever it is
    assert it.handle(Compared(0, (5, 1, 3))) == [Wrong(2, 0, (5, 1, 3)), Commit(0, (5, 1), ((5, 5), (1, 1))), Finish()]


def test_the_run_fails_when_nobody_is_left_to_ask():
    it = begun([[1, 2], [1, 3]])
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, ()))
    report(it, (3, 0))
    text = (
        r"^chunk 0, iteration 0: workers 1, 2, 3 have done it, no 2 copies agree, and nobody is left to ask: the "
        r"gradient is not deterministic, verify.tolerance is too small, or too many are wrong$"
    )
    with pytest.raises(RunFailed, match=text) as failure:
        it.handle(Compared(0, ()))
    assert not isinstance(failure.value, TooFewWorkers)  # other machines would not help


def test_without_reassignment_nobody_else_is_asked():
    it = begun([[1, 2], [1, 3]], reassigning=False)
    report(it, (1, 0), (2, 0))
    with pytest.raises(RunFailed, match=r"too many are wrong; faults.adopt: true would let others take it$"):
        it.handle(Compared(0, ()))


# copies that come by themselves


def unchecked(name="static", tolerated=0, schedule=None):
    """In iteration 0 only chunk 0 is checked."""
    return begun([[1, 2, 3], [1, 2, 3], [1, 2, 3]], name=name, every=99, tolerated=tolerated, schedule=schedule)


def test_a_surplus_copy_that_does_not_agree_takes_the_chunk_back():
    it = unchecked()
    report(it, (1, 1), (2, 1))
    missing = it.books.missing
    assert it.handle(Compared(1, ())) == [Next(3, 1)]
    assert (it.books.recovered, it.books.chunks[1].contributors, it.books.used(1, 1)) == (0, (), False)
    assert it.books.missing == missing + 1
    assert report(it, (3, 1)) == [compare(1, 1, 2, 3)]
    assert it.handle(Compared(1, (2, 3))) == [Wrong(1, 1, (2, 3)), commit(1, 2)]
    assert (it.books.recovered, it.books.missing) == (1, missing)


def test_a_copy_that_comes_after_the_others_agreed_may_be_in_the_wrong():
    it = unchecked()
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, (1, 2)))
    assert report(it, (3, 0)) == [compare(0, 1, 2, 3)]
    assert it.handle(Compared(0, (1, 2))) == [Wrong(3, 0, (1, 2))]
    assert it.books.chunks[0].contributors == (1,)


def test_a_wrong_copy_is_named_once():
    it = begun([[1, 2, 3, 4]] * 2)
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, ()))
    report(it, (3, 0))
    assert Wrong(1, 0, (2, 3)) in it.handle(Compared(0, (2, 3)))
    report(it, (4, 0))
    assert it.handle(Compared(0, (2, 3, 4))) == []


def test_an_iteration_does_not_end_while_copies_are_compared():
    """With `full` a load counts at once: what is missing and a surplus copy together."""
    it = begun([[1, 2], [1, 2], [2]], name="full", every=99, workers=[1, 2, 3])
    report(it, (1, 1))
    assert report(it, (1, 0)) == [commit(1, 1)]
    assert report(it, (2, 2), (2, 1), (2, 0)) == [commit(2, 2), compare(1, 1, 2), compare(0, 1, 2)]
    assert it.handle(Compared(1, (1, 2))) == []
    assert it.handle(Compared(0, (1, 2))) == [commit(0, 1), Finish()]


def test_a_worker_that_skipped_a_chunk_is_asked_when_it_is_taken_back():
    it = unchecked("skipping")
    assert report(it, (1, 1)) == [commit(1, 1), Skip(2, 1, True), Skip(3, 1, True)]
    report(it, (2, 1))  # it had begun
    assert it.handle(Compared(1, ())) == [Next(3, 1)]


def test_a_worker_that_dropped_a_disputed_chunk_has_not_done_it():
    """It heard that the chunk was recovered, and not yet that this is so no more."""
    schedule = Recording()
    it = unchecked(schedule=schedule)
    report(it, (1, 1), (2, 1))
    it.handle(Abandoned(3, 0, 1))
    it.handle(Compared(1, ()))
    it.handle(Abandoned(3, 0, 1))
    assert [done for *_, done in schedule.freed_by] == [True, True, True, False]


# losses


def test_a_loss_that_leaves_nobody_to_ask_is_too_few_workers():
    it = begun([[1, 2, 3], [1, 2, 3]])
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, ()))
    with pytest.raises(TooFewWorkers, match=r"workers 1, 2 have done it, no 2 copies agree"):
        it.handle(Lost(3))


# approximate recovery


def test_copies_count_unchecked_at_the_deadline():
    it = begun([[1, 2, 3, 4]] * 4, parts=2, every=1)
    report(it, (1, 0), (2, 0), (3, 1))
    report(it, (1, 2), (2, 2), (3, 2))
    it.handle(Compared(2, ()))
    answers = it.handle(Deadline())
    assert answers == [commit(0, 1, 2), commit(1, 3), Finish()]
    assert it.books.incomplete() == {1: (3,), 2: (), 3: ()}  # of 2 it is known that something is wrong
    assert it.books.missing == 1 + 2 + 2


def test_copies_that_were_not_compared_yet_are_missing():
    it = unchecked(tolerated=1)
    report(it, (1, 1))
    assert report(it, (1, 0)) == []
    assert it.phase == "working"
    assert report(it, (2, 0)) == [compare(0, 1, 2)]
    assert it.handle(Compared(0, (1, 2))) == [commit(0, 1), Finish()]


def test_an_iteration_does_not_end_with_disputed_chunks_only():
    it = begun([[1, 2, 3]] * 2)
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, ()))
    assert it.handle(Deadline()) == []
    report(it, (3, 0))
    assert it.handle(Compared(0, (1, 3)))[-1] == Finish()
