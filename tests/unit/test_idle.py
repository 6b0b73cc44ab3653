"""Copies that cost nothing are compared by digests (`verify: {idle: true}`): who is asked, who is in the wrong."""

import threading

import numpy as np
import pytest

from psgc.errors import ProtocolError, RunFailed
from psgc.schedules import SCHEDULES
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Digested, Lost, Report, Summed
from psgc.server.idle import IdleChecks
from psgc.server.instructions import Check, Discard, Doubt, Finish, Share, Wrong
from psgc.server.membership import Membership
from psgc.workers.encoder import Digester

RIGHT, OTHER = 7, 8


def begun(holders, name="static", idle=None, **more):
    membership = Membership(holders, 1, workers=range(1, 5), **more)
    loads = {w: [chunk for chunk, of in enumerate(holders) if w in of] for w in range(1, 5)}
    schedule = SCHEDULES[name](loads, holders=membership.holders)
    it = Coordinator(membership, schedule, True, idle=idle or IdleChecks())
    it.handle(Begin(0))
    return it


def say(it, worker, chunk, digest, iteration=0, now=1.0, **more):
    """A report with a digest: what follows from both. With is_check a check alone."""
    answers = it.handle(Digested(worker, iteration, chunk, digest, now, 0.1, **more))
    return answers if more else answers + it.handle(Report(worker, iteration, chunk, now, 0.1))


def kinds(answers):
    return [type(answer).__name__ for answer in answers]


def test_equal_copies_are_compared_and_nothing_follows():
    it = begun([[1, 2], [3, 4]], idle=(idle := IdleChecks()))
    assert kinds(say(it, 1, 0, RIGHT)) == ["Commit"]
    assert say(it, 2, 0, RIGHT) == [Discard(2, 0)]
    assert idle.summary() == {"share": 0.5, "doubts": 0}


@pytest.mark.parametrize(("guilty", "third"), [(1, OTHER), (2, RIGHT)])
def test_a_third_worker_says_before_the_sums_who_is_in_the_wrong(guilty, third):
    it = begun([[1, 2, 3], [3, 4]])
    say(it, 1, 0, RIGHT)
    assert say(it, 2, 0, OTHER)[0] == Check(3, (0,), at_once=True)
    assert kinds(it.handle(Report(3, 0, 1, 1.0, 0.1))) == ["Commit"]
    assert it.phase == "working"  # although every chunk is committed
    (wrong,) = say(it, 3, 0, third, is_check=True)
    assert (wrong.worker, wrong.fate) == (guilty, "taken out")
    answers = it.handle(Lost(guilty, 1.0))
    if guilty == 1:  # whose copy counts
        assert it.books.redo == {0}
        assert it.phase == "working"
        assert kinds(it.handle(Report(3, 0, 0, 1.0, 0.1, attempt=1)))[-1] == "Share"
    else:
        assert isinstance(answers[-1], Share)


def test_a_worker_that_is_to_say_who_is_wrong_and_is_lost_is_followed_by_another():
    it = begun([[1, 2, 3, 4], [3, 4]])
    say(it, 1, 0, RIGHT)
    (asked,) = [answer.worker for answer in say(it, 2, 0, OTHER) if isinstance(answer, Check)]
    others = [answer for answer in it.handle(Lost(asked, 1.0)) if isinstance(answer, Check)]
    assert others == [Check(7 - asked, (0,), at_once=True)]


def test_without_a_third_worker_the_two_repeat_what_they_did():
    membership = Membership([[1, 2], [2]], 1)
    it = Coordinator(membership, SCHEDULES["static"]({1: [0], 2: [0, 1]}), True, idle=IdleChecks())
    it.handle(Begin(0))
    say(it, 1, 0, RIGHT)
    (first, *_) = say(it, 2, 0, OTHER)
    assert first == Check(1, (0,), at_once=True)
    assert say(it, 1, 0, OTHER, is_check=True) == [Wrong(1, 0, (2,), "taken out")]


def test_the_run_fails_when_repeats_show_nothing():
    it = Coordinator(Membership([[1, 2], [2]], 1), SCHEDULES["static"]({1: [0], 2: [0, 1]}), True, idle=IdleChecks())
    it.handle(Begin(0))
    say(it, 1, 0, RIGHT)
    say(it, 2, 0, OTHER)
    assert say(it, 1, 0, RIGHT, is_check=True) == [Check(2, (0,), at_once=True)]
    with pytest.raises(
        RunFailed, match="workers 1, 2 have done it, no 2 copies have the same bits, and nobody is left"
    ):
        say(it, 2, 0, OTHER, is_check=True)


def test_what_comes_after_the_map_is_named_and_holds_nothing_up():
    it = begun([[1, 2, 3]], idle=(idle := IdleChecks()))
    say(it, 1, 0, RIGHT)
    assert it.phase == "collecting"
    assert say(it, 2, 0, OTHER) == [Doubt(0, (1, 2), 0, counts=True)]
    assert it.handle(Summed()) == [Finish()]
    it.handle(Begin(1))
    assert say(it, 3, 0, OTHER) == [Wrong(1, 0, (2, 3), "late", 1)]  # of the iteration before
    say(it, 1, 0, RIGHT, iteration=1)
    it.handle(Summed())
    it.handle(Begin(5))
    assert say(it, 4, 0, RIGHT, iteration=0, is_check=True) == []  # long ago
    assert idle.summary()["doubts"] == 1


def test_a_doubt_about_the_iteration_before_settles_nothing_in_this_one():
    """A wrong copy of the same chunk counted, since the sums began."""
    it = begun([[1, 2, 3], [1, 2, 3]])
    say(it, 1, 0, RIGHT)
    say(it, 1, 1, RIGHT)
    it.handle(Summed())
    it.handle(Begin(1))
    say(it, 1, 0, RIGHT, iteration=1)
    assert Check(3, (0,), at_once=True) in say(it, 2, 0, OTHER, iteration=1)
    assert say(it, 3, 0, OTHER, iteration=0) == [Doubt(0, (1, 3), 1, counts=True)]
    assert "Share" not in kinds(say(it, 2, 1, RIGHT, iteration=1))
    assert it.phase == "working"


def test_who_differs_from_two_others_in_doubt_is_in_the_wrong():
    it = begun([[1, 2, 3], [1, 2, 3]])
    for chunk, owner in ((0, 1), (1, 2)):
        say(it, owner, chunk, RIGHT)
    assert say(it, 3, 0, OTHER) == [Doubt(0, (1, 3), 0, counts=True)]
    assert say(it, 3, 1, OTHER) == [Doubt(1, (2, 3), 0, counts=True), Wrong(3, 1, (1, 2), "unused")]


def idle_orders(it, end):
    """Iterations that end at so many seconds; what worker 1, which is through, is told in the next one."""
    for iteration in range(3):
        if iteration:
            it.handle(Begin(iteration))
        for chunk, worker in ((0, 1), (1, 2), (2, 3), (3, 4)):
            say(it, worker, chunk, RIGHT, iteration, now=0.1 if worker < 4 else end)
        it.handle(Summed())
    it.handle(Begin(3))
    say(it, 2, 1, RIGHT, 3, now=0.1)
    return [answer for answer in say(it, 1, 0, RIGHT, 3, now=0.1) if isinstance(answer, Check)]


def test_who_waits_repeats_a_pass_of_another_worker_if_there_is_time():
    holders = [[1], [2], [3], [4]]
    assert idle_orders(begun(holders, "uncoded"), end=1.0) == [Check(2, (0,)), Check(1, (1,))]
    assert idle_orders(begun(holders, "uncoded"), end=0.15) == []
    assert idle_orders(begun(holders, "uncoded", reassigning=False), end=1.0) == []  # it may do no others


def test_a_digest_that_nobody_asked_for_or_of_no_chunk_is_refused():
    it = Coordinator(Membership([[1, 2]], 1), SCHEDULES["static"]({1: [0], 2: [0]}), True)
    it.handle(Begin(0))
    with pytest.raises(ProtocolError):
        say(it, 1, 0, RIGHT)
    with pytest.raises(ProtocolError):
        say(begun([[1, 2]]), 1, 5, RIGHT)


def test_the_time_in_which_the_processor_does_something_else_is_not_that_of_a_digest():
    digester = Digester(lambda vector: (threading.Event().wait(0.02), vector)[1])
    assert all(digester.digest(np.ones(3), seconds=0.1) for _ in range(3))


def test_digests_take_a_small_share_of_the_time(monkeypatch):
    vector = np.arange(1000.0)
    digester = Digester(np.asarray)
    assert digester.digest(vector, 100.0) == digester.digest(vector.copy(), 100.0)
    assert 1 <= digester.digest(-vector, 100.0) < 2**31
    quick = Digester(np.asarray)
    found = [quick.digest(vector, 0.0) for _ in range(3)]
    assert found[1:] == [0, 0]  # there was no time of which it would be a small share
    assert quick.digest(vector, 0.0, always=True)
