"""The coordinator when workers are lost: what still counts, and what is done again."""

import pytest
from coordinating import Recording, begun, report
from refusal import refused, snapshot

from psgc.schedules.schedule import Next, Skip
from psgc.server.events import Abandoned, Lost, Report
from psgc.server.instructions import Commit, Finish, Share

COMBINED = pytest.mark.parametrize("combined", [True, False], ids=["combined", "per_chunk"])


# lost before it is committed


@COMBINED
def test_a_worker_lost_before_it_reports_is_not_needed(combined):
    it = begun([[1, 2], [1, 2], [1, 2]], combined=combined)
    assert it.handle(Lost(1)) == []
    assert it.phase == "working"
    before = snapshot(it)
    for chunk in range(3):
        assert it.handle(Report(1, 0, chunk)) == []
        assert it.handle(Abandoned(1, 0, chunk)) == []
        assert it.handle(Report(1, 0, chunk, attempt=3)) == []  # whatever it believes
    assert snapshot(it) == before
    answers = report(it, (2, 0), (2, 1), (2, 2))
    assert answers == [Commit(2, (2,), ((2, 2),)), Share(((2, 2, 0),)) if combined else Finish()]


@COMBINED
def test_a_copy_of_a_lost_worker_counts_unless_it_keeps_it(combined):
    it = begun([[1, 2, 3]], parts=2, combined=combined)
    assert report(it, (1, 0)) == []
    assert it.handle(Lost(1)) == []
    committed = report(it, (2, 0))
    if combined:
        assert committed == []
        assert report(it, (3, 0)) == [Commit(0, (2, 3), ((2, 2), (3, 3))), Share(((2, 2, 0), (3, 3, 0)))]
    else:
        assert committed == [Commit(0, (1, 2), ((1, 1), (2, 2))), Finish()]


def test_full_does_not_count_the_unfinished_load_of_a_lost_worker():
    it = begun([[1, 2], [1, 3], [2], [3]], name="full", combined=False)
    report(it, (1, 0))
    assert it.handle(Lost(1)) == []
    assert [report(it, (2, 0)), report(it, (3, 1))] == [[], []]
    assert report(it, (2, 2)) == [Commit(0, (2,), ((2, 2),)), Commit(2, (2,), ((2, 2),))]
    assert report(it, (3, 3))[-1] == Finish()


# lost after it was committed


def test_a_chunk_that_is_being_done_again_is_not_invalidated_once_more_for_a_loss_without_a_copy():
    it = begun([[1, 2, 3, 4], [2, 3, 4]])
    report(it, (1, 0))
    assert it.handle(Lost(1))[-1] == Next(2, 0)
    assert it.handle(Lost(2)) == [Next(3, 0)]
    assert report(it, (4, 0), attempt=1) == [Commit(0, (1,), ((4, 1),))]


def test_a_copy_from_before_the_invalidation_changes_nothing_but_its_worker_is_free():
    schedule = Recording()
    it = begun([[1, 2, 3], [1, 2, 3]], schedule=schedule)
    report(it, (1, 0))
    it.handle(Lost(1))
    assert it.handle(Report(2, 0, 0, now=4.0, seconds=3.0)) == []
    assert it.handle(Abandoned(3, 0, 0, now=5.0, seconds=2.0)) == []
    assert schedule.freed_by[1:] == [(2, 0, 4.0, 3.0, False), (3, 0, 5.0, 2.0, False)]
    assert it.books.recovered == 0
    assert it.handle(Report(2, 0, 0, attempt=1)) == [Commit(0, (1,), ((2, 1),))]


def test_skipping_drops_a_chunk_invalidated_in_two_roles_only_when_both_are_done():
    it = begun([[1, 2, 3, 4, 5], [5, 4]], parts=2, name="skipping")
    report(it, (1, 0), (2, 0))
    it.handle(Lost(1))
    it.handle(Lost(2))
    assert report(it, (3, 0), attempt=2) == [Commit(0, (1, 2), ((3, 1),))]
    assert report(it, (4, 0), attempt=2) == [Commit(0, (1, 2), ((4, 2),)), Skip(5, 0, True)]


# between the iterations


def test_a_loss_between_two_iterations_changes_the_membership_only():
    it = begun([[1, 2]], combined=False)
    report(it, (1, 0))
    assert it.phase == "idle"
    assert it.handle(Lost(1)) == []
    assert list(it.membership.live) == [2]
    with refused(it):
        it.handle(Lost(1))
