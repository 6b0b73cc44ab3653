"""The failure detector: when a worker is given up, and whether it may come back."""

import pytest

from psgc.server.failure_detector import CHANCES, PATIENCE, FailureDetector

TIMEOUT = 8.0


def failure_detector(*ranks):
    return FailureDetector(ranks or (1, 2, 3), TIMEOUT)


def hear_all(it, now, but=()):
    for rank in {1, 2, 3} - {*but}:
        it.heard(rank, now)


def missing(it, now):
    return [rank for rank, _ in it.missing(now)]


def test_who_is_silent_for_longer_than_the_timeout_is_missing():
    it = failure_detector()
    hear_all(it, 1.0)
    it.heard(2, 3.0)
    assert missing(it, 1.0 + TIMEOUT) == []
    assert it.missing(1.5 + TIMEOUT) == [
        (1, "not heard for 8 s (faults.collect_timeout)"),
        (3, "not heard for 8 s (faults.collect_timeout)"),
    ]
    assert missing(it, 3.5 + TIMEOUT) == [1, 2, 3]


@pytest.mark.parametrize("slowest", [None, 0.1, 100.0])
def test_a_limit_of_the_users_is_for_every_chunk_also_the_first(slowest):
    it = FailureDetector((1, 2, 3), TIMEOUT, chunk_timeout=20.0)
    if slowest:
        it.through(1, slowest)
    it.busy(2, 7, 1.0, 4.0)
    hear_all(it, 23.0)
    assert missing(it, 22.9) == []
    assert it.missing(23.5) == [(2, "in chunk 7 for 20.5 s, its gradient does not return (faults.chunk_timeout)")]


@pytest.mark.parametrize(("slowest", "patience"), [(0.1, TIMEOUT), (2.0, PATIENCE * 2.0)])
def test_a_chunk_may_take_ten_times_the_slowest_and_the_timeout_at_least(slowest, patience):
    it = failure_detector()
    it.through(1, slowest)
    it.through(3, slowest / 2)
    it.busy(2, 7, seconds=1.0, now=5.0)  # in it since 4
    hear_all(it, 4.0 + patience)
    assert missing(it, 4.0 + patience) == []
    (found,) = it.missing(4.5 + patience)
    assert found == (2, f"in chunk 7 for {patience + 0.5:.1f} s, its gradient does not return")


@pytest.mark.parametrize("is_back", [False, True])
def test_a_chunk_in_which_a_worker_was_lost_says_nothing_of_how_long_chunks_take(is_back):
    it = failure_detector()
    it.through(1, 0.1)
    it.lost(3)  # it was stopped in a chunk, and goes on
    it.heard(3, 50.0)
    if is_back:
        assert it.welcome(50.0) == [3]
        it.heard(3, 50.1)
    it.through(3, 45.0)
    it.heard(3, 50.2)
    assert it.welcome(50.2) == ([] if is_back else [3])
    it.busy(2, 7, seconds=0.0, now=50.0)
    hear_all(it, 50.1 + TIMEOUT)
    assert missing(it, 50.1 + TIMEOUT) == [2]


def test_a_worker_has_begun_its_chunk_after_it_was_heard_the_time_before():
    """Else the time in which all ranks were stopped would count."""
    it = FailureDetector((1, 2), TIMEOUT, chunk_timeout=5.0)
    for now in (3609.0, 3610.0):
        it.heard(1, now)
        it.heard(2, now)
    it.busy(2, 7, seconds=3600.0, now=3610.0)
    assert missing(it, 3614.0) == []
    assert missing(it, 3614.5) == [2]


def test_while_no_chunk_was_ever_done_any_may_take_for_ever():
    it = failure_detector()
    it.busy(2, 7, seconds=0.0, now=0.0)
    hear_all(it, 1e6)
    assert missing(it, 1e6) == []


@pytest.mark.parametrize("how", ["through", "says so"])
def test_who_is_through_with_a_chunk_is_not_in_it(how):
    it = failure_detector()
    it.busy(2, 7, seconds=0.0, now=0.0)
    it.through(1, 0.1)
    if how == "through":
        it.through(2, 0.1)
    else:
        it.busy(2, -1, seconds=0.0, now=1.0)
    hear_all(it, 100.0)
    assert missing(it, 100.0) == []


def test_as_long_as_some_are_silent_only_those_are_missing():
    it = failure_detector()
    it.through(1, 0.1)
    it.busy(2, 7, seconds=0.0, now=0.0)
    it.busy(3, 4, seconds=0.0, now=0.0)
    hear_all(it, 20.0, but=[1])
    assert missing(it, 20.0) == [1]
    it.lost(1)
    assert missing(it, 20.0) == [2, 3]


def test_who_is_heard_again_is_back_and_takes_part_only_once_welcome():
    it = failure_detector()
    assert (it.lost(2), it.lost(2)) == (True, False)
    assert (it.away, it.answering, it.dead) == ([2], [1, 3], [])
    assert it.welcome(5.0) == []
    it.heard(2, 6.0)
    assert (it.away, it.answering) == ([2], [1, 2, 3])
    hear_all(it, 30.0)
    assert it.welcome(30.0) == [2]
    assert it.away == []
    assert it.welcome(30.0) == []
    assert missing(it, 30.0 + TIMEOUT) == []  # silence counts from here on
    assert missing(it, 30.5 + TIMEOUT) == [1, 2, 3]


def test_who_is_lost_again_before_it_is_welcome_is_not_back():
    it = failure_detector()
    it.lost(2)
    it.heard(2, 1.0)
    it.lost(2)
    assert it.welcome(2.0) == []


def test_who_is_still_in_the_chunk_that_did_not_return_is_not_back():
    it = failure_detector()
    it.busy(2, 7, seconds=0.0, now=0.0)
    it.lost(2)
    it.heard(2, 1.0)
    assert (it.answering, it.welcome(1.0)) == ([1, 3], [])
    it.through(2, 50.0)
    it.heard(2, 2.0)
    assert it.welcome(2.0) == [2]


def test_nobody_is_welcome_after_its_last_chance():
    it = failure_detector()
    for loss in range(1, CHANCES + 1):
        it.lost(2)
        it.lost(2)  # heard of twice, lost once
        it.heard(2, float(loss))
        assert it.welcome(float(loss)) == ([2] if loss < CHANCES else [])
    assert it.away == [2]
    assert it.answering == [1, 2, 3]


@pytest.mark.parametrize(("how", "answering"), [("dead", [1, 3]), ("failed", [1, 2, 3])])
@pytest.mark.parametrize("lost_before", [False, True])
def test_who_died_or_failed_never_comes_back(how, answering, lost_before):
    it = failure_detector()
    if lost_before:
        it.lost(2)
    assert it.lost(2, **{how: True}) is not lost_before
    it.heard(2, 1.0)
    assert it.welcome(1.0) == []
    assert it.answering == answering
    assert it.dead == ([2] if how == "dead" else [])


def test_the_time_that_a_worker_was_stopped_in_a_chunk_is_not_that_of_its_gradient():
    it = FailureDetector([1, 2], timeout=1.5, chunk_timeout=2.0)
    it.lost(1)
    it.heard(1, 10.0)
    assert it.welcome(10.0) == [1]
    it.busy(1, 6, 3.0, 10.1)
    for now in (11.0, 12.0):
        for rank in (1, 2):
            it.heard(rank, now)
        assert it.missing(now) == []
    it.heard(1, 12.1), it.heard(2, 12.1)
    assert it.missing(12.1) == [(1, "in chunk 6 for 2.1 s, its gradient does not return (faults.chunk_timeout)")]
