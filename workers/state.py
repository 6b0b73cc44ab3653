"""A worker's side of the protocol as a pure state machine: no clock, no MPI, no arrays.

Each method is an event, from the server or from this worker's own compute thread; what it returns is what
the worker does next. `psgc.workers.loop` guards it with one lock, since both its threads bring events.

The rules, said once:

1. `begin(t)` drops everything of older iterations and starts from the standing queue.
2. The compute thread takes chunks from the head of the queue and reports each when it is done, without waiting for
   an answer.
3. With `combined` transfer a done chunk is *held* until it is committed (encoded, then freed) or discarded (freed).
   With `per_chunk` it travels with its report and nothing is held.
4. A discarded chunk is not done: dropped from the queue, or, when the compute thread is in it, *abandoned*: its result
   is never reported.
5. `collect` ends the work on the iteration; a new queue for the same iteration would start it again.
6. A skipped chunk is dropped from the queue; one that has been begun goes on and is reported.
7. Events of an older iteration change nothing. A queue, discard or skip may arrive before the parameters of its
   iteration (they travel separately): it is kept for `begin`. A commit or collect cannot, and raises ProtocolError,
   as does a commit of a chunk that is not held; a raising event changes nothing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psgc.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the server that `chunk` is done."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Forget the result of `chunk`; the server only hears what it cost."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Encode:
    """Add the held gradient of `chunk`, coded for these contributors (S_i), to the accumulator; then free it."""

    chunk: int
    contributors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Free:
    """Forget the held gradient of `chunk`."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send the accumulator to the server."""


class WorkerState:
    """What one worker has to do, is doing, and holds.

    queue: the chunks it does unless it is told otherwise, in order; backups: the other chunks that it holds;
    combined: whether done chunks are held until they are committed.
    """

    def __init__(self, queue: Sequence[int], combined: bool, backups: Sequence[int] = ()) -> None:
        self._standing = tuple(queue)
        self._chunks = frozenset((*queue, *backups))
        self._combined = combined
        self.iteration = -1
        self._queue: deque[int] = deque()
        self._done: set[int] = set()
        self._held: set[int] = set()
        self._running: tuple[int, int] | None = None  # (iteration, chunk) that the compute thread is in
        self._unwanted = False  # the running chunk was discarded
        self._early: list[tuple[int, str, Any]] = []  # (iteration, event, its argument)

    @property
    def held(self) -> frozenset[int]:
        """Chunks of this iteration that wait for a commit or a discard."""
        return frozenset(self._held)

    # events of the compute thread

    def take(self) -> int | None:
        """The compute thread is free: the chunk it is in from now on, or None when there is nothing to do."""
        if self._running is not None:
            raise self._illegal("take()")
        if not self._queue:
            return None
        chunk = self._queue.popleft()
        self._running = (self.iteration, chunk)
        return chunk

    def finished(self, iteration: int, chunk: int) -> Report | Abandon:
        """The compute thread has the gradient of the chunk it took."""
        if self._running != (iteration, chunk):
            raise self._illegal(f"finished({iteration=}, {chunk=})")
        self._running = None
        if iteration < self.iteration or self._unwanted:
            self._unwanted = False
            return Abandon(chunk)
        self._done.add(chunk)
        if self._combined:
            self._held.add(chunk)
        return Report(chunk)

    # events from the server

    def begin(self, iteration: int) -> None:
        """The parameters of `iteration` are here."""
        if iteration <= self.iteration:
            raise self._illegal(f"begin({iteration})")
        self.iteration = iteration
        self._queue = deque(self._standing)
        self._done = set()
        self._held = set()
        self._unwanted = False
        early, self._early = self._early, [event for event in self._early if event[0] > iteration]
        events: dict[str, Callable[[int, Any], object]]
        events = {"queue": self.queue, "discard": self.discard, "skip": self.skip}
        for when, event, what in early:
            if when == iteration:
                events[event](iteration, what)

    def queue(self, iteration: int, chunks: Sequence[int]) -> None:
        """Do these chunks next, in this order; what is done or running already is left out."""
        if not self._chunks.issuperset(chunks):
            raise self._illegal(f"queue({iteration=}, {chunks=})")
        if iteration > self.iteration:
            self._early.append((iteration, "queue", tuple(chunks)))
        elif iteration == self.iteration:
            running = self._running[1] if self._running and self._running[0] == iteration else None
            if running in chunks:
                self._unwanted = False
            self._queue = deque(c for c in dict.fromkeys(chunks) if c not in self._done and c != running)

    def commit(self, iteration: int, chunk: int, contributors: Sequence[int]) -> list[Encode]:
        """The held copy of `chunk` counts, together with those of the other contributors."""
        if iteration > self.iteration or (iteration == self.iteration and chunk not in self._held):
            raise self._illegal(f"commit({iteration=}, {chunk=})")
        if iteration < self.iteration:
            return []
        self._held.remove(chunk)
        return [Encode(chunk, tuple(contributors))]

    def discard(self, iteration: int, chunk: int) -> list[Free]:
        """This worker's copy of `chunk` is not needed, whether it is done or not."""
        if chunk not in self._chunks:
            raise self._illegal(f"discard({iteration=}, {chunk=})")
        if iteration > self.iteration:
            self._early.append((iteration, "discard", chunk))
        if iteration != self.iteration:
            return []
        if chunk in self._held:
            self._held.remove(chunk)
            return [Free(chunk)]
        if self._running == (iteration, chunk):
            self._unwanted = True
        elif chunk in self._queue:
            self._queue.remove(chunk)
        return []

    def skip(self, iteration: int, chunk: int) -> None:
        """This worker need not begin `chunk`."""
        if chunk not in self._chunks:
            raise self._illegal(f"skip({iteration=}, {chunk=})")
        if iteration > self.iteration:
            self._early.append((iteration, "skip", chunk))
        elif iteration == self.iteration and chunk in self._queue:
            self._queue.remove(chunk)

    def collect(self, iteration: int) -> list[Free | Deliver]:
        """Everything is committed: hand over the accumulator, forget the rest."""
        if iteration > self.iteration or not self._combined:
            raise self._illegal(f"collect({iteration})")
        if iteration < self.iteration:
            return []
        freed = [Free(chunk) for chunk in sorted(self._held)]
        self._held.clear()
        self._queue.clear()
        self._unwanted = self._running is not None
        return [*freed, Deliver()]

    def _illegal(self, event: str) -> ProtocolError:
        return ProtocolError(f"worker: {event} is not allowed in iteration {self.iteration}, running {self._running}")
