"""The server's side of the protocol as a pure state machine: no clock, no MPI, no arrays.

Each method is an event; what it returns is the list of instructions that the loop carries out, in order. The same
object is driven by MPI in production and by a virtual clock in simulation.

The rules, said once:

1. An iteration is *working* from `begin` until every chunk is committed, then *collecting* until every contributor
   has delivered its accumulator, then *idle*. With `per_chunk` transfer there is nothing to collect.
2. A chunk is committed once, to the first `parts` distinct holders whose copies count, at the moment the last
   of them does.
3. A copy that comes too late is discarded: the worker is told, so that it can free it.
4. Reports from an older iteration, after the last commit, or heard before, change nothing.
5. An event that no correct worker can send (a chunk it does not hold, an iteration that has not begun, a delivery
   that nobody asked for) raises ProtocolError and changes nothing.
6. Nothing survives into the next iteration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from psgc.errors import ProtocolError
from psgc.server.scheduler import FixedSchedule, Order


@dataclass(frozen=True, slots=True)
class Commit:
    """`chunk` is recovered from the copies of exactly these workers (S_i), in the order they counted."""

    chunk: int
    contributors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Discard:
    """The copy of `chunk` that `worker` reported is not needed."""

    worker: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Collect:
    """Ask `worker` for its accumulator."""

    worker: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Everything has arrived: the gradient is determined."""


Instruction = Commit | Discard | Collect | Finish | Order


class Coordinator:
    """Decides, report by report, which copies count, and knows when the gradient is there.

    holders: for each chunk 0..N-1 the workers that hold it; parts: copies that determine a chunk;
    combined: whether contributors keep their work until they are asked for it (transfer `combined`).
    """

    def __init__(self, holders: Sequence[Sequence[int]], parts: int, schedule: FixedSchedule, combined: bool) -> None:
        self._holders = holders
        self._parts = parts
        self._schedule = schedule
        self._combined = combined
        self.iteration = -1
        self.phase: Literal["idle", "working", "collecting"] = "idle"
        self._forget()

    def _forget(self) -> None:
        self._reported: set[tuple[int, int]] = set()  # (worker, chunk)
        self._copies: dict[int, list[int]] = {}  # chunk -> workers whose copies count, while fewer than parts
        self._committed: dict[int, tuple[int, ...]] = {}  # chunk -> S_i
        self._owing: set[int] = set()  # contributors that have not delivered

    def contributors(self, chunk: int) -> tuple[int, ...]:
        """S_i of this iteration: empty while the chunk is not committed."""
        return self._committed.get(chunk, ())

    @property
    def recovered(self) -> int:
        """How many chunks are committed in this iteration."""
        return len(self._committed)

    @property
    def owing(self) -> frozenset[int]:
        """The contributors that have not delivered their accumulators."""
        return frozenset(self._owing)

    # events

    def begin(self, iteration: int) -> list[Instruction]:
        """The parameters of `iteration` are on their way to the workers."""
        if self.phase != "idle" or iteration <= self.iteration:
            raise self._illegal(f"begin({iteration})")
        self._forget()
        self.iteration = iteration
        self.phase = "working"
        return list(self._schedule.begin())

    def report(
        self, worker: int, iteration: int, chunk: int, now: float = 0.0, seconds: float = 0.0
    ) -> list[Instruction]:
        """`worker` has done `chunk` of `iteration` (with `per_chunk`: and its coded gradient is here).

        now: seconds since the iteration began; seconds: what the chunk took the worker.
        """
        self._check("report", worker, iteration, chunk)
        if iteration < self.iteration or self.phase != "working" or (worker, chunk) in self._reported:
            return []
        self._reported.add((worker, chunk))
        instructions: list[Instruction] = []
        for counted in self._schedule.counts(worker, chunk):
            instructions += self._count(worker, counted)
        if len(self._committed) == len(self._holders):
            return instructions + self._everything_committed()
        return instructions + list(self._schedule.freed(worker, chunk, now, seconds))

    def abandoned(
        self, worker: int, iteration: int, chunk: int, now: float = 0.0, seconds: float = 0.0
    ) -> list[Instruction]:
        """`worker` is through with `chunk`, which it was told to skip meanwhile, and has dropped it."""
        self._check("abandoned", worker, iteration, chunk)
        if iteration < self.iteration or self.phase != "working" or (worker, chunk) in self._reported:
            return []
        return list(self._schedule.freed(worker, chunk, now, seconds))

    @property
    def wake(self) -> float:
        """When the schedule wants a `tick`, in seconds since the iteration began; infinite for never."""
        return self._schedule.wake if self.phase == "working" else inf

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed: it is `now` seconds since the iteration began."""
        return list(self._schedule.tick(now)) if self.phase == "working" else []

    def delivered(self, worker: int, iteration: int) -> list[Instruction]:
        """The accumulator of `worker` for `iteration` has arrived (transfer `combined`)."""
        if iteration != self.iteration or self.phase != "collecting" or worker not in self._owing:
            raise self._illegal(f"delivered({worker=}, {iteration=})")
        self._owing.remove(worker)
        return [] if self._owing else self._finish()

    # what they lead to

    def _count(self, worker: int, chunk: int) -> list[Instruction]:
        if chunk in self._committed:
            return [Discard(worker, chunk)]
        copies = self._copies.setdefault(chunk, [])
        copies.append(worker)
        if len(copies) < self._parts:
            return []
        self._committed[chunk] = tuple(self._copies.pop(chunk))
        if self._combined:
            self._owing.update(copies)
        unreported = [w for w in self._holders[chunk] if (w, chunk) not in self._reported]
        return [Commit(chunk, tuple(copies)), *self._schedule.committed(chunk, unreported)]

    def _everything_committed(self) -> list[Instruction]:
        if not self._combined:
            return self._finish()
        self.phase = "collecting"
        return [Collect(worker) for worker in sorted(self._owing)]

    def _finish(self) -> list[Instruction]:
        self.phase = "idle"
        return [Finish()]

    def _check(self, event: str, worker: int, iteration: int, chunk: int) -> None:
        held = 0 <= chunk < len(self._holders) and worker in self._holders[chunk]
        if not held or not 0 <= iteration <= self.iteration:
            raise self._illegal(f"{event}({worker=}, {iteration=}, {chunk=})")

    def _illegal(self, event: str) -> ProtocolError:
        return ProtocolError(f"coordinator: {event} is not allowed while {self.phase} in iteration {self.iteration}")
