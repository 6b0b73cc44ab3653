"""Who should do which chunk next: the schedules, pure (no clock, no MPI, no arrays).

A schedule is asked three things by the coordinator, and nothing else:

* `begin`      an iteration starts: which queues differ from the standing ones?
* `counts`     a worker reports a chunk: which of its copies count from now on?
* `committed`  a chunk is recovered: what should the workers that still have it before them do?

Its answers are orders to workers: `Skip` one chunk, or take a whole new `Queue`. A schedule that learns from
the reports (`dynamic`) is one more class here and one more line in `make_schedule`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psgc.errors import UserError


@dataclass(frozen=True, slots=True)
class Skip:
    """`worker` need not do `chunk` any more; harmless when it has done it already."""

    worker: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Queue:
    """`worker` does exactly `chunks` next, in this order, after the chunk it is in."""

    worker: int
    chunks: tuple[int, ...]


Order = Skip | Queue


class FixedSchedule:
    """Every worker goes through its standing queue and skips nothing: `uncoded`, `random` and `static`.

    They differ only in the queues that the workers were given (`psgc.plan`).
    """

    def begin(self) -> list[Order]:
        """Orders at the start of an iteration."""
        return []

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        """The chunks of `worker` whose copies count from now on, after it reported `chunk`."""
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        """Orders when `chunk` is recovered; `unreported` are its holders that have not reported it."""
        return []


class FullSchedule(FixedSchedule):
    """Original gradient coding: what a worker has done counts only when its whole load is done."""

    def __init__(self, queues: Mapping[int, Sequence[int]]) -> None:
        self._load = {worker: len(chunks) for worker, chunks in queues.items()}
        self._done: dict[int, list[int]] = {}

    def begin(self) -> list[Order]:
        self._done = {worker: [] for worker in self._load}
        return []

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        done = self._done[worker]
        done.append(chunk)
        return done if len(done) == self._load[worker] else ()


class SkippingSchedule(FixedSchedule):
    """The fixed order, but a recovered chunk is dropped from the queues that still hold it."""

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        return [Skip(worker, chunk) for worker in unreported]


def make_schedule(name: str, queues: Mapping[int, Sequence[int]]) -> FixedSchedule:
    """The schedule called `name` for workers with these standing queues. Raises UserError for an unknown name."""
    match name:
        case "uncoded" | "random" | "static":
            return FixedSchedule()
        case "full":
            return FullSchedule(queues)
        case "skipping":
            return SkippingSchedule()
    raise UserError(f"schedule: expected uncoded, full, random, static or skipping, got {name!r}")
