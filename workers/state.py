"""A worker's side of the protocol as a pure state machine: no clock, no MPI, no arrays.

Each method is an event, from the server or from this worker's own compute thread; what it returns is what
the worker does next. `psgc.workers.loop` guards it with one lock, since both its threads bring events.

The rules, said once:

1. `begin(t)` drops everything of older iterations and starts from the default queue.
2. The compute thread takes chunks from the head of the queue and reports each when it is done, without waiting for
   an answer.
3. With `combined` transfer a done chunk is *held* until it is committed (encoded, then freed) or discarded (freed).
   With `per_chunk` it travels with its report and nothing is held; so do chunks that are checked (`psgc.checks`).
4. A discarded chunk is not done: dropped from the queue, or, when the compute thread is in it, *abandoned*: its result
   is never reported.
5. `collect` ends the work on the iteration; a new queue for the same iteration, or a chunk to be done next, would start
   it again.
6. A skipped chunk is dropped from the queue; one that has been begun goes on and is reported.
7. A invalidated chunk has not been done, whatever was reported of it: what is held of it is freed, and when it is done
   (again), its report says how often it was invalidated.
8. A default queue is for that iteration and all later ones, and so is the role in which a reassigned chunk is coded.
9. Events of an older iteration change nothing. Orders may arrive before the parameters of their iteration (they travel
   separately): they are kept for `begin`. A commit or collect cannot, and raises ProtocolError, as does a commit of a
   chunk that is not held; a raising event changes nothing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psgc.checks import is_checked
from psgc.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the server that `chunk` is done, having been invalidated so many times."""

    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Forget the result of `chunk`; the server only hears what it cost."""

    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Encode:
    """Add the held gradient of `chunk`, coded in `role`, one of S_i, to that role's accumulator; then free it."""

    chunk: int
    contributors: tuple[int, ...]
    role: int


@dataclass(frozen=True, slots=True)
class Free:
    """Forget the held gradient of `chunk`."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send the accumulator of this role to the server."""

    role: int


class WorkerState:
    """What one worker has to do, is doing, and holds.

    rank: its own role; queue: the chunks it does unless it is told otherwise, in order; num_chunks: of the run;
    combined: whether done chunks are held until they are committed; every: each chunk is checked once in so many
    iterations, 0 for never.
    """

    def __init__(self, rank: int, queue: Sequence[int], num_chunks: int, combined: bool, every: int = 0) -> None:
        self._rank = rank
        self._default_queue = tuple(queue)
        self._num_chunks = num_chunks
        self._roles: dict[int, int] = {}  # of reassigned chunks
        self._combined = combined
        self._every = every
        self.iteration = -1
        self._queue: deque[int] = deque()
        self._done: set[int] = set()
        self._held: set[int] = set()
        self._running: tuple[int, int] | None = None  # (iteration, chunk) that the compute thread is in
        self._unwanted = False  # the running chunk was discarded
        self._attempts: dict[int, int] = {}  # how often a chunk of this iteration was invalidated
        self._early: list[tuple[int, str, Any]] = []  # (iteration, event, its argument)

    @property
    def held(self) -> frozenset[int]:
        """Chunks of this iteration that wait for a commit or a discard."""
        return frozenset(self._held)

    @property
    def running(self) -> int | None:
        """The chunk that the compute thread is in."""
        return None if self._running is None else self._running[1]

    def role(self, chunk: int) -> int:
        """The role in which `chunk` is coded."""
        return self._roles.get(chunk, self._rank)

    def travels(self, iteration: int, chunk: int) -> bool:
        """Whether the coded gradient of `chunk` goes with its report."""
        return not self._combined or is_checked(chunk, iteration, self._every)

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
        attempt = self._attempts.get(chunk, 0) if iteration == self.iteration else 0
        if iteration < self.iteration or self._unwanted:
            self._unwanted = False
            return Abandon(chunk, attempt)
        self._done.add(chunk)
        if not self.travels(iteration, chunk):
            self._held.add(chunk)
        return Report(chunk, attempt)

    # events from the server

    def begin(self, iteration: int) -> None:
        """The parameters of `iteration` are here."""
        if iteration <= self.iteration:
            raise self._illegal(f"begin({iteration})")
        self.iteration = iteration
        self._queue = deque(self._default_queue)
        self._done = set()
        self._held = set()
        self._attempts = {}
        self._unwanted = False
        early, self._early = self._early, [event for event in self._early if event[0] > iteration]
        events: dict[str, Callable[..., object]] = {
            "default_queue": self.set_default_queue,
            "queue": self.queue,
            "next": self.next,
            "discard": self.discard,
            "skip": self.skip,
            "reassign": self.reassign,
            "invalidate": self.invalidate,
        }
        for when, event, arguments in early:
            lasting = event in ("default_queue", "reassign")  # even if their iteration was missed
            if when == iteration or (when < iteration and lasting):
                events[event](iteration, *arguments)

    def set_default_queue(self, iteration: int, chunks: Sequence[int]) -> None:
        """From `iteration` on do these chunks in this order, in every iteration."""
        if self._is_now("default_queue", iteration, chunks):
            self._default_queue = tuple(chunks)
            self.queue(iteration, chunks)

    def queue(self, iteration: int, chunks: Sequence[int]) -> None:
        """Do these chunks next, in this order; what is done or running already is left out."""
        if self._is_now("queue", iteration, chunks):
            running = self._running[1] if self._running and self._running[0] == iteration else None
            if running in chunks:
                self._unwanted = False
            self._queue = deque(c for c in dict.fromkeys(chunks) if c not in self._done and c != running)

    def next(self, iteration: int, chunk: int) -> None:
        """Do this chunk before all others, unless it is done or running."""
        if self._is_now("next", iteration, chunk):
            self.queue(iteration, [chunk, *self._queue])

    def reassign(self, iteration: int, chunk: int, role: int) -> None:
        """Code `chunk` in this role from now on."""
        if self._is_now("reassign", iteration, chunk, role):
            self._roles[chunk] = role

    def invalidate(self, iteration: int, chunk: int, attempt: int) -> list[Free]:
        """What was done of `chunk` does not count; it may have to be done once more."""
        if not self._is_now("invalidate", iteration, chunk, attempt):
            return []
        self._attempts[chunk] = attempt
        self._done.discard(chunk)
        if self._running == (iteration, chunk):
            self._unwanted = False
        if chunk not in self._held:
            return []
        self._held.remove(chunk)
        return [Free(chunk)]

    def commit(self, iteration: int, chunk: int, contributors: Sequence[int], role: int) -> list[Encode]:
        """The held copy of `chunk` counts in this role, together with those in the other contributors' roles."""
        if iteration > self.iteration or (iteration == self.iteration and chunk not in self._held):
            raise self._illegal(f"commit({iteration=}, {chunk=})")
        if iteration < self.iteration:
            return []
        self._held.remove(chunk)
        return [Encode(chunk, tuple(contributors), role)]

    def discard(self, iteration: int, chunk: int) -> list[Free]:
        """This worker's copy of `chunk` is not needed, whether it is done or not."""
        if not self._is_now("discard", iteration, chunk):
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
        if self._is_now("skip", iteration, chunk) and chunk in self._queue:
            self._queue.remove(chunk)

    def collect(self, iteration: int, role: int) -> list[Free | Deliver]:
        """Everything is committed: hand over the accumulator of `role`, forget the rest."""
        if iteration > self.iteration or not self._combined:
            raise self._illegal(f"collect({iteration})")
        if iteration < self.iteration:
            return []
        freed = [Free(chunk) for chunk in sorted(self._held)]
        self._held.clear()
        self._queue.clear()
        self._unwanted = self._running is not None
        return [*freed, Deliver(role)]

    def _is_now(self, event: str, iteration: int, chunks: int | Sequence[int], *arguments: int) -> bool:
        """Whether an order is for this iteration; one for a later iteration is kept."""
        self._check(event, iteration, *([chunks] if isinstance(chunks, int) else chunks))
        if iteration > self.iteration:
            kept = chunks if isinstance(chunks, int) else tuple(chunks)
            self._early.append((iteration, event, (kept, *arguments)))
        return iteration == self.iteration

    def _check(self, event: str, iteration: int, *chunks: int) -> None:
        for chunk in chunks:
            if not 0 <= chunk < self._num_chunks:
                raise self._illegal(f"{event}({iteration=}, {chunk=})")

    def _illegal(self, event: str) -> ProtocolError:
        return ProtocolError(f"worker: {event} is not allowed in iteration {self.iteration}, running {self._running}")
