"""A worker's state machine: each rule by example, and all of them against any sequence of events."""

import random

import pytest
from refusal import refused

from psgc.workers.state import Done, WorkerState
from tests.unit.kept import held_chunks

COMBINED = pytest.mark.parametrize("combined", [True, False], ids=["combined", "per_chunk"])


RANK, CHUNKS = 1, 6


def worker(queue, combined=True):
    return WorkerState(RANK, queue, CHUNKS, combined)


def begun(queue, combined=True, iteration=0):
    state = worker(queue, combined)
    state.begin(iteration)
    return state


def gradient(chunk):
    """What the machine keeps of a done chunk: it does not look at it."""
    return f"gradient of {chunk}"


def do_next(state, attempt=0):
    chunk = state.take()
    assert state.finished(state.iteration, chunk, gradient(chunk)) == Done(True, attempt)
    return chunk


def rest(state):
    """The chunks that the worker would do from here on."""
    chunks = []
    while (chunk := state.take()) is not None:
        chunks.append(chunk)
        state.finished(state.iteration, chunk)
    return chunks


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
        lambda: state.commit(4, 1),
        lambda: state.commit(3, 0),  # freed
        lambda: state.commit(3, 2),  # running
        lambda: state.commit(3, 3),  # not begun
        lambda: state.discard(3, 9),
        lambda: state.discard(4, 9),
        lambda: state.queue(3, [3, 9]),
        lambda: state.queue(4, [9]),
        lambda: state.default_queue(3, [CHUNKS]),
        lambda: state.next(4, -1),
        lambda: state.skip(3, 9),
        lambda: state.reassign(3, 9, 1),
        lambda: state.invalidate(4, 9, 1),
    ):
        with refused(state):
            do()
    state.commit(3, 1)
    with refused(state):
        state.commit(3, 1)


def test_a_sum_that_is_here_before_its_iteration_begins_leaves_nothing_to_do_in_it():
    state = begun([0, 1, 2])
    state.invalidate(1, 0, 1)
    state.queue(1, [0])
    state.closed(1)
    state.begin(1)
    assert state.take() is None
    state.begin(2)
    assert rest(state) == [0, 1, 2]


class Model:
    """The rules once more, without a thought for speed: the past of this iteration decides everything."""

    def __init__(self, default_queue, combined):
        self.usual, self.combined = list(default_queue), combined
        self.iteration, self.running = -1, None
        self.early, self.order, self.past, self.roles = [], [], [], {}

    def begin(self, iteration):
        self.iteration, self.order, self.past = iteration, list(self.usual), []
        early, self.early = self.early, [event for event in self.early if event[1] > iteration]
        for kind, when, what in early:
            if when == iteration or (when < iteration and kind in ("default_queue", "reassign")):
                self.order_of(kind, iteration, *what)

    def order_of(self, kind, iteration, *what):
        """An order that may come early."""
        if iteration > self.iteration:
            self.early.append((kind, iteration, what))
        elif iteration == self.iteration:
            return getattr(self, kind)(*what)
        return None

    def last(self, chunk, *kinds):
        return max([-1, *(place for place, event in enumerate(self.past) if event[0] in kinds and event[1] == chunk)])

    def is_done(self, chunk):
        return self.last(chunk, "done") > self.last(chunk, "invalidated")

    @property
    def held(self):
        def is_held(chunk):
            return self.last(chunk, "done") > self.last(chunk, "invalidated", "committed", "freed")

        return set(filter(is_held, range(CHUNKS))) if self.combined else set()

    def attempt(self, chunk):
        place = self.last(chunk, "invalidated")
        return self.past[place][2] if place >= 0 else 0

    def take(self):
        if not self.order:
            return None
        self.running = self.iteration, self.order.pop(0), len(self.past)
        return self.running[1]

    @property
    def wants(self):
        """The chunk that is running."""
        iteration, chunk, since = self.running
        said = [kind for kind, what, *_ in self.past[since:] if kind == "shared" or what == chunk]
        return iteration == self.iteration and not (said and said[-1] in ("dropped", "shared"))

    def finished(self):
        wants, (iteration, chunk, _), self.running = self.wants, self.running, None
        if wants:
            self.past.append(("done", chunk))
        return Done(wants, self.attempt(chunk) if iteration == self.iteration else 0)

    def gave_up(self):
        if not self.wants:
            return self.finished()
        self.order, self.running = [self.running[1], *self.order], None
        return None

    def default_queue(self, chunks):
        self.usual = list(chunks)
        self.queue(chunks)

    def queue(self, chunks):
        busy = {self.running[1]} if self.running and self.running[0] == self.iteration else set()
        self.order = [c for c in dict.fromkeys(chunks) if c not in busy and not self.is_done(c)]
        self.past += [("wanted", chunk) for chunk in busy & set(chunks)]

    def next(self, chunk):
        self.queue([chunk, *self.order])

    def skip(self, chunk):
        self.order = [c for c in self.order if c != chunk]

    def reassign(self, chunk, role):
        self.roles[chunk] = role

    def invalidate(self, chunk, attempt):
        self.past.append(("invalidated", chunk, attempt))

    def discard(self, chunk):
        self.past += [("dropped", chunk)] + [("freed", chunk)] * (chunk in self.held)
        self.order = [c for c in self.order if c != chunk]

    def commit(self, iteration, chunk):
        if iteration < self.iteration:
            return None
        self.past.append(("committed", chunk))
        return gradient(chunk)

    def share(self):
        self.past += [("shared", None)] + [("freed", chunk) for chunk in self.held]
        self.order = []

    def closed(self):
        self.past.append(("shared", None))
        self.order = []


ORDERS = {  # what may come early, and its arguments
    "default_queue": lambda chunk, chunks: (chunks[:chunk],),
    "queue": lambda chunk, chunks: (chunks[:chunk],),
    "next": lambda chunk, _: (chunk,),
    "discard": lambda chunk, _: (chunk,),
    "skip": lambda chunk, _: (chunk,),
    "reassign": lambda chunk, chunks: (chunk, chunks[0]),
    "invalidate": lambda chunk, chunks: (chunk, 1 + chunks[0]),
    "share": lambda *_: (),
    "closed": lambda *_: (),
}
EVENTS = [*["take", "finished"] * 2, "gave_up", "begin", "commit", "share", "discard", "invalidate", *ORDERS]


@pytest.mark.parametrize("seed", range(400))
def test_any_sequence_of_events_goes_by_the_rules(seed):
    """Whatever comes in, in any order: the same answers as the model, or a refusal that changes nothing."""
    draws = random.Random(seed)
    default_queue, combined = draws.sample(range(4), 4), seed % 2 == 0
    state, model = worker(default_queue, combined), Model(default_queue, combined)
    for _ in range(60):
        kind, ahead = draws.choice(EVENTS), draws.choice([0, 0, 0, 0, 0, 1, 1, 2, -1])
        chunk, chunks = draws.randrange(4), draws.sample(range(4), 4)
        when, now = model.iteration + ahead, model.iteration
        if kind == "take" and model.running is None:
            assert state.take() == model.take()
        elif kind == "take":
            with refused(state):
                state.take()
        elif kind in ("finished", "gave_up") and model.running is not None:
            iteration, running, _ = model.running
            assert state.wants(iteration, running) == model.wants
            if kind == "finished":
                assert state.finished(iteration, running, gradient(running)) == model.finished()
            else:
                assert state.gave_up(iteration, running) == model.gave_up()
        elif kind in ("finished", "gave_up"):
            with refused(state):
                getattr(state, kind)(now, chunk)
        elif kind == "begin" and ahead <= 0:
            with refused(state):
                state.begin(when)
        elif kind == "begin":
            state.begin(when)
            model.begin(when)
        elif kind in ORDERS:
            arguments = ORDERS[kind](chunk, chunks)
            getattr(state, kind)(when, *arguments)
            model.order_of(kind, when, *arguments)
        elif kind == "commit" and (when > now or (when == now and chunk not in model.held)):
            with refused(state):
                state.commit(when, chunk)
        elif kind == "commit":
            assert state.commit(when, chunk) == model.commit(when, chunk)
        assert state.iteration == model.iteration
        assert set(held_chunks(state)) == model.held
        assert state.running == (model.running and model.running[1])
        assert [state.role(c) for c in range(4)] == [model.roles.get(c, RANK) for c in range(4)]


def test_a_checked_chunk_is_held_and_sketched():
    state = WorkerState(1, [0, 1], 2, combined=True, every=2)
    state.begin(0)
    while (chunk := state.take()) is not None:
        state.finished(0, chunk, gradient(chunk))
    assert held_chunks(state) == {0, 1}
    sketched = [(iteration, chunk) for iteration in (0, 1) for chunk in (0, 1) if state.is_sketched(iteration, chunk)]
    assert sketched == [(0, 0), (1, 1)]
