"""A worker's state machine: each rule by example, and all of them against any sequence of events."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import refused, snapshot

from psgc.workers.state import Abandon, Deliver, Encode, Free, Report, WorkerState

COMBINED = pytest.mark.parametrize("combined", [True, False], ids=["combined", "per_chunk"])


def begun(queue, combined=True, iteration=0):
    state = WorkerState(queue, combined)
    state.begin(iteration)
    return state


def do_next(state):
    chunk = state.take()
    assert state.finished(state.iteration, chunk) == Report(chunk)
    return chunk


def rest(state):
    """The chunks that the worker would do from here on."""
    chunks = []
    while (chunk := state.take()) is not None:
        chunks.append(chunk)
        state.finished(state.iteration, chunk)
    return chunks


def test_nothing_to_do_before_the_first_iteration():
    assert WorkerState([2, 0], combined=True).take() is None


@COMBINED
def test_the_standing_queue_again_in_every_iteration(combined):
    state = WorkerState([3, 1, 2], combined)
    for iteration in (0, 1, 7):
        state.begin(iteration)
        assert [do_next(state), do_next(state)] == [3, 1]
    assert rest(state) == [2]


def test_a_done_chunk_is_held_until_it_is_committed_or_discarded():
    state = begun([3, 1, 2])
    assert [do_next(state) for _ in range(3)] == [3, 1, 2]
    assert state.held == {1, 2, 3}
    assert state.commit(0, 1, [5, 4]) == [Encode(1, (5, 4))]
    assert state.discard(0, 3) == [Free(3)]
    assert state.held == {2}
    assert state.discard(0, 3) == []  # heard again
    assert state.collect(0) == [Free(2), Deliver()]
    assert state.held == set()


def test_per_chunk_holds_nothing():
    state = begun([3, 1], combined=False)
    do_next(state)
    assert state.held == set()
    assert state.discard(0, 3) == []


def test_a_discarded_chunk_is_dropped_from_the_queue():
    state = begun([3, 1, 2])
    assert state.discard(0, 1) == []
    assert state.discard(0, 1) == []
    assert rest(state) == [3, 2]


@COMBINED
def test_a_chunk_discarded_while_it_runs_is_abandoned_and_only_that_one(combined):
    state = begun([3, 1], combined)
    state.take()
    assert state.discard(0, 3) == []
    assert state.finished(0, 3) == Abandon(3)
    assert state.held == set()
    assert do_next(state) == 1


@COMBINED
def test_a_chunk_of_an_older_iteration_is_abandoned_and_only_that_one(combined):
    state = begun([3, 1], combined)
    state.take()
    state.begin(1)
    assert state.discard(1, 1) == []
    assert state.finished(0, 3) == Abandon(3)
    assert state.held == set()
    assert rest(state) == [3]


def test_a_chunk_discarded_while_it_ran_in_an_older_iteration_is_done_in_the_new_one():
    state = begun([3, 1])
    state.take()
    state.discard(0, 3)
    state.begin(1)
    assert state.finished(0, 3) == Abandon(3)
    assert do_next(state) == 3


def test_a_discard_does_not_meet_the_same_chunk_running_in_an_older_iteration():
    state = begun([3, 1])
    state.take()
    state.begin(1)
    assert state.discard(1, 3) == []
    assert state.finished(0, 3) == Abandon(3)
    assert rest(state) == [1]


def test_collect_ends_the_work():
    state = begun([3, 1, 2])
    do_next(state)
    state.take()
    assert state.collect(0) == [Free(3), Deliver()]
    assert state.finished(0, 1) == Abandon(1)
    assert state.take() is None
    state.begin(1)
    assert rest(state) == [3, 1, 2]


def test_a_new_queue_leaves_out_what_is_done_or_running():
    state = begun([0, 1, 2, 3, 4])
    assert do_next(state) == 0
    assert state.take() == 1
    state.queue(0, [4, 1, 2, 0, 4])
    assert state.finished(0, 1) == Report(1)
    assert rest(state) == [4, 2]


def test_a_new_queue_may_hold_what_runs_in_an_older_iteration():
    state = begun([0, 1])
    state.take()
    state.begin(1)
    state.queue(1, [1, 0])
    state.finished(0, 0)
    assert rest(state) == [1, 0]


def test_queues_and_discards_that_arrive_before_their_iteration_wait_for_it_in_order():
    state = WorkerState([0, 1, 2, 3], combined=True)
    state.discard(0, 1)
    state.queue(2, [3, 1, 0])
    state.discard(1, 0)
    state.discard(2, 0)
    state.queue(1, [3, 0, 2])  # after the discard: the newest order is what counts
    state.begin(0)
    assert rest(state) == [0, 2, 3]
    state.begin(1)
    assert rest(state) == [3, 0, 2]
    state.begin(2)
    assert rest(state) == [3, 1]
    state.begin(3)
    assert snapshot(state) == snapshot(begun([0, 1, 2, 3], iteration=3))


def test_early_events_of_an_iteration_that_never_began_here_are_dropped():
    state = WorkerState([0, 1], combined=True)
    state.discard(1, 0)
    state.queue(1, [1])
    state.begin(2)
    assert rest(state) == [0, 1]


@COMBINED
def test_events_of_an_older_iteration_change_nothing(combined):
    state = begun([0, 1, 2], combined, iteration=3)
    do_next(state)
    state.take()
    before = snapshot(state)
    assert state.discard(2, 0) == []
    assert state.discard(2, 1) == []
    assert state.discard(2, 2) == []
    assert state.commit(2, 0, [1]) == []
    state.queue(2, [2])
    if combined:
        assert state.collect(2) == []
    assert snapshot(state) == before


def test_what_no_correct_server_sends_is_refused_and_changes_nothing():
    state = begun([0, 1, 2, 3], iteration=3)
    do_next(state)
    do_next(state)
    state.discard(3, 0)
    state.take()
    for do in (
        lambda: state.begin(3),
        lambda: state.begin(2),
        lambda: state.take(),
        lambda: state.finished(3, 1),
        lambda: state.finished(2, 2),
        lambda: state.commit(4, 1, [1]),
        lambda: state.commit(3, 0, [1]),  # freed
        lambda: state.commit(3, 2, [1]),  # running
        lambda: state.commit(3, 3, [1]),  # not begun
        lambda: state.discard(3, 9),
        lambda: state.discard(4, 9),
        lambda: state.queue(3, [3, 9]),
        lambda: state.queue(4, [9]),
        lambda: state.collect(4),
    ):
        with refused(state):
            do()
    state.commit(3, 1, [1])
    with refused(state):
        state.commit(3, 1, [1])


def test_per_chunk_has_nothing_to_commit_or_collect():
    state = begun([0], combined=False)
    do_next(state)
    for do in (lambda: state.collect(0), lambda: state.commit(0, 0, [1])):
        with refused(state):
            do()


class Model:
    """The rules once more, without a thought for speed: the past of this iteration decides everything."""

    def __init__(self, standing, combined):
        self.standing, self.combined = standing, combined
        self.iteration, self.running = -1, None
        self.early, self.order, self.past = [], [], []

    def begin(self, iteration):
        self.iteration, self.order, self.past = iteration, list(self.standing), []
        for kind, when, what in self.early:
            if when == iteration:
                {"queue": self.queue, "discard": self.discard, "skip": self.skip}[kind](when, what)

    def did(self, *kinds):
        return {chunk for kind, chunk in self.past if kind in kinds}

    @property
    def held(self):
        return self.did("done") - self.did("committed", "freed") if self.combined else set()

    def take(self):
        if not self.order:
            return None
        self.running = self.iteration, self.order.pop(0), len(self.past)
        return self.running[1]

    def finished(self):
        (iteration, chunk, since), self.running = self.running, None
        said = [kind for kind, what in self.past[since:] if kind == "collected" or what == chunk]
        if iteration != self.iteration or (said and said[-1] != "wanted"):
            return Abandon(chunk)
        self.past.append(("done", chunk))
        return Report(chunk)

    def queue(self, iteration, chunks):
        if iteration > self.iteration:
            self.early.append(("queue", iteration, chunks))
        elif iteration == self.iteration:
            busy = {self.running[1]} if self.running and self.running[0] == iteration else set()
            self.order = [c for c in chunks if c not in self.did("done") | busy]
            self.past += [("wanted", chunk) for chunk in busy & set(chunks)]

    def skip(self, iteration, chunk):
        if iteration > self.iteration:
            self.early.append(("skip", iteration, chunk))
        elif iteration == self.iteration:
            self.order = [c for c in self.order if c != chunk]

    def discard(self, iteration, chunk):
        if iteration > self.iteration:
            self.early.append(("discard", iteration, chunk))
        if iteration != self.iteration:
            return []
        freed = [Free(chunk)] if chunk in self.held else []
        self.past += [("dropped", chunk)] + [("freed", chunk)] * len(freed)
        self.order = [c for c in self.order if c != chunk]
        return freed

    def commit(self, iteration, chunk):
        if iteration < self.iteration:
            return []
        self.past.append(("committed", chunk))
        return [Encode(chunk, (1,))]

    def collect(self, iteration):
        if iteration < self.iteration:
            return []
        freed = sorted(self.held)
        self.past += [("collected", None)] + [("freed", chunk) for chunk in freed]
        self.order = []
        return [*map(Free, freed), Deliver()]


EVENTS = ["take", "take", "finished", "finished", "begin", "queue", "discard", "discard", "skip", "commit", "collect"]


@settings(deadline=None, max_examples=300)
@given(
    standing=st.permutations(range(4)),
    combined=st.booleans(),
    events=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(-1, 2), st.integers(0, 3), st.permutations(range(4))),
        max_size=40,
    ),
)
def test_any_sequence_of_events_goes_by_the_rules(standing, combined, events):
    """Whatever comes in, in any order: the same answers as the model, or a refusal that changes nothing."""
    state, model = WorkerState(standing, combined), Model(standing, combined)
    for kind, ahead, chunk, chunks in events:
        when, now = model.iteration + ahead, model.iteration
        if kind == "take" and model.running is None:
            assert state.take() == model.take()
        elif kind == "take":
            with refused(state):
                state.take()
        elif kind == "finished" and model.running is not None:
            iteration, running, _ = model.running
            assert state.finished(iteration, running) == model.finished()
        elif kind == "finished":
            with refused(state):
                state.finished(now, chunk)
        elif kind == "begin" and ahead <= 0:
            with refused(state):
                state.begin(when)
        elif kind == "begin":
            state.begin(when)
            model.begin(when)
        elif kind == "queue":
            state.queue(when, chunks[:chunk])
            model.queue(when, chunks[:chunk])
        elif kind == "discard":
            assert state.discard(when, chunk) == model.discard(when, chunk)
        elif kind == "skip":
            state.skip(when, chunk)
            model.skip(when, chunk)
        elif kind == "commit" and (when > now or (when == now and chunk not in model.held)):
            with refused(state):
                state.commit(when, chunk, [1])
        elif kind == "commit":
            assert state.commit(when, chunk, [1]) == model.commit(when, chunk)
        elif kind == "collect" and (when > now or not combined):
            with refused(state):
                state.collect(when)
        elif kind == "collect":
            assert state.collect(when) == model.collect(when)
        assert state.iteration == model.iteration
        assert state.held == model.held
