"""Scripts that follow rank 0 by sums: who gets a state, of which call, and what is said of those that differ."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc.errors import RunFailed
from psgc.server.arrivals import Moved
from psgc.server.digests import of_replicas
from psgc.server.followers import Followers

LIVE = [1, 2, 3]


class Script:
    """That of rank 0. called: its newest call; whole: whether that is whole; asked: how often it was for a state."""

    def __init__(self):
        self.called, self.whole, self.ended, self.steps, self.is_made, self.digests = 0, True, False, -1, True, {}
        digest = lambda: self.digests.get(self.steps, b"")  # noqa: E731
        self.replica = SimpleNamespace(start=self.start, snapshot=self.snapshot, digest=digest)
        self.differing = of_replicas

    def start(self, steps, params):
        self.steps = steps

    def snapshot(self):
        return SimpleNamespace(vectors=(np.full(3, float(self.steps)),)) if self.is_made else None

    def is_whole(self, iteration):
        if self.ended or self.called > iteration:
            return False
        return self.whole if self.called == iteration else None

    def is_over(self):
        return self.ended


@pytest.fixture
def it():
    """Three workers, of which 1 is behind, in iteration 10."""
    given, script = [], Script()
    links = SimpleNamespace(give=lambda workers, state: given.extend((worker, state[0]) for worker in workers))
    it = Followers(links, script, LIVE, first=0)
    assert it.begin(0, LIVE) == LIVE
    it.script, it.given = script, given
    it.begin(10, LIVE)
    it.moved(Moved(1, 10, is_behind=True, digest=b""))
    assert it.begin(11, LIVE) == [2, 3]
    return it


def test_a_worker_that_is_found_behind_while_it_is_to_do_chunks_gets_a_state_and_begins(it):
    sent = []
    it._links.give = lambda workers, state, vector: sent.append((workers, state[0], vector))
    it.script.called = 11
    it.begin(12, LIVE, "the sum before")
    it.moved(Moved(2, 11, is_behind=True, digest=b""))
    assert not it.without_state(12, [2, 3])
    assert not sent  # rank 0 has not called for it
    it.script.called = 12
    assert not it.without_state(12, [2, 3])
    assert sent == [([2], 12.0, "the sum before")]
    assert not it.without_state(12, [2, 3])
    assert len(sent) == 1
    it.script.whole = False
    it.moved(Moved(3, 11, is_behind=True, digest=b""))
    assert it.without_state(12, [2, 3]) == {3}  # nobody has one for it in this iteration


def test_a_worker_that_has_missed_a_sum_gets_the_state_before_the_next_sum_goes_out(it):
    assert not it.are_served()  # rank 0 has not called for it
    it.script.called, it.script.is_made = 11, False
    assert not it.are_served()  # its script is making the state
    it.script.is_made = True
    assert it.are_served()
    assert it.given == [(1, 11.0)]
    assert it.are_served()
    assert it.begin(12, LIVE) == LIVE
    it.script.called = 12
    assert it.are_served()
    assert len(it.given) == 1


def test_a_state_is_taken_only_of_a_call_that_is_whole(it):
    it.script.called, it.script.whole = 11, False
    assert it.are_served()
    assert it.begin(12, LIVE) == [2, 3]
    it.script.called, it.script.whole = 12, True
    assert it.are_served()
    assert it.given == [(1, 12.0)]


def test_a_lost_worker_that_returns_gets_a_state(it):
    it.lost(2)
    assert it.begin(12, [1, 3]) == [3]
    assert it.begin(13, LIVE) == [3]
    it.script.called = 13
    assert it.are_served()
    assert it.given == [(1, 13.0), (2, 13.0)]
    assert it.begin(14, LIVE) == LIVE


def test_when_the_script_of_rank_0_is_over_nobody_waits_for_its_state(it):
    it.script.called, it.script.is_made = 11, False
    assert not it.are_served()
    it.script.ended = True
    assert it.are_served()


def test_a_replica_that_differs_is_found_and_gets_a_state(it):
    it.begin(32, LIVE)
    it.script.called, it.script.digests = 32, {32: b"a"}
    it.are_served()
    for worker, digest in ((1, b"a"), (2, b"b"), (3, b"a")):
        it.moved(Moved(worker, 32, is_behind=False, digest=digest))
    assert [found[:3] for found in it.wrong()] == [(2, 32, ("the parameters",))]
    assert it.summary() == {"iteration": 32, "equal": [1, 3]}
    it.lost(2)
    assert 2 not in it.begin(33, LIVE)


def test_when_most_differ_it_is_rank_0(it):
    it.begin(32, [2, 3])
    it.script.called, it.script.digests = 32, {32: b"a"}
    it.are_served()
    it.moved(Moved(2, 32, is_behind=False, digest=b"b"))
    assert it.wrong() == []
    it.moved(Moved(3, 32, is_behind=False, digest=b"b"))
    with pytest.raises(RunFailed, match="at iteration 32 rank 0 differs from 2 of 2 workers in the parameters"):
        it.wrong()


def test_what_differs_from_the_beginning_is_found_in_the_first_iteration_before_it_is_over():
    """Before the gradients of a worker that differs are taken for those of a model that is not deterministic."""
    script = Script()
    it = Followers(SimpleNamespace(), script, LIVE, first=0)
    it.begin(0, LIVE)
    script.called = -1
    it.moved(Moved(2, 0, is_behind=False, digest=b"b"))
    assert it.wrong() == []
    script.called, script.digests = 0, {0: b"a"}
    assert it.wrong() == [(2, 0, ("the parameters",), True)]
