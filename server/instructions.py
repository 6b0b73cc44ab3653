"""The coordinator's instructions. The orders of the schedule are in `psgc.schedules.schedule`.

`carry_out` calls the method for each instruction: over MPI (`psgc.server.dispatch`), or on a virtual clock
(`psgc.simulation.virtual`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from psgc.schedules.schedule import Next, Order, Queue, Skip

Fate = Literal["unused", "taken out", "late"]  # of a wrong copy: not counted, to be taken out, or in the step already


@dataclass(frozen=True, slots=True)
class Commit:
    """`chunk` is recovered from the copies in exactly these roles (S_i), in the order in which they counted.

    contributors: S_i; with fewer than `parts` of them `chunk` is recovered approximately
    told: the workers to tell, each with the role of its copy
    serial: of the accumulator that the copies are added to
    """

    chunk: int
    contributors: tuple[int, ...]
    told: tuple[tuple[int, int], ...]
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Discard:
    """`worker` reported `chunk` and keeps its copy, which is not needed."""

    worker: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Share:
    """Sum these accumulators, (worker, role, serial) each: everything that live workers keep (`combined`).

    It replaces an earlier `Share`. `Summed` is the answer.
    """

    contributors: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Reassign:
    """`worker` holds `chunk` from now on, and codes it in `role`."""

    worker: int
    chunk: int
    role: int


@dataclass(frozen=True, slots=True)
class Invalidate:
    """`chunk` is invalidated for the `attempt`-th time: `worker` drops its copy and may do the chunk again."""

    worker: int
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The iteration has its gradient, or the sums of its evaluation."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Find out which of these copies of `chunk`, (worker, role) each, agree. `Compared` is the answer (`verify`)."""

    chunk: int
    copies: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """The copy of `chunk` by `worker` differs from those of `others`, which agree (`verify`).

    fate: what becomes of the wrong copy
    before: how many iterations ago it was made
    """

    worker: int
    chunk: int
    others: tuple[int, ...]
    fate: Fate = "unused"
    before: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """`worker` repeats a pass of another worker (`verify: {idle: true}`). at_once: not only when it is free."""

    worker: int
    piece: tuple[int, ...]
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Doubt:
    """The copies of `chunk` by these workers differ, and no worker can be asked any more.

    before: as in `Wrong`
    counts: whether one of them is in the gradient
    """

    chunk: int
    workers: tuple[int, ...]
    before: int
    counts: bool


Instruction = Commit | Discard | Share | Reassign | Invalidate | Finish | Compare | Wrong | Check | Doubt | Order

Roles = Sequence[tuple[int, int]]  # (worker, role)


class Target:
    """Carries out instructions: one method for each, with its fields. Methods that are not overridden do nothing."""

    def commit(self, chunk: int, contributors: tuple[int, ...], told: Roles, serial: int) -> None: ...
    def discard(self, worker: int, chunk: int) -> None: ...
    def queue(self, worker: int, chunks: tuple[int, ...]) -> None: ...
    def next(self, worker: int, chunk: int) -> None: ...
    def skip(self, worker: int, chunk: int, recovered: bool) -> None: ...
    def share(self, contributors: tuple[tuple[int, int, int], ...]) -> None: ...
    def reassign(self, worker: int, chunk: int, role: int) -> None: ...
    def invalidate(self, worker: int, chunk: int, attempt: int) -> None: ...
    def compare(self, chunk: int, copies: Roles) -> None: ...
    def wrong(self, worker: int, chunk: int, others: tuple[int, ...], fate: Fate, before: int) -> None: ...
    def check(self, worker: int, piece: tuple[int, ...], at_once: bool) -> None: ...
    def doubt(self, chunk: int, workers: tuple[int, ...], before: int, counts: bool) -> None: ...
    def finish(self) -> None: ...


def carry_out(instructions: Iterable[Instruction], target: Target) -> None:
    """Have `target` carry out the instructions, in order."""
    for instruction in instructions:
        match instruction:
            case Commit(chunk, contributors, told, serial):
                target.commit(chunk, contributors, told, serial)
            case Queue(worker, chunks):
                target.queue(worker, chunks)
            case Skip(worker, chunk, recovered):
                target.skip(worker, chunk, recovered)
            case Discard(worker, chunk):
                target.discard(worker, chunk)
            case Next(worker, chunk):
                target.next(worker, chunk)
            case Share(contributors):
                target.share(contributors)
            case Reassign(worker, chunk, role):
                target.reassign(worker, chunk, role)
            case Invalidate(worker, chunk, attempt):
                target.invalidate(worker, chunk, attempt)
            case Compare(chunk, copies):
                target.compare(chunk, copies)
            case Wrong(worker, chunk, others, fate, before):
                target.wrong(worker, chunk, others, fate, before)
            case Check(worker, piece, at_once):
                target.check(worker, piece, at_once)
            case Doubt(chunk, workers, before, counts):
                target.doubt(chunk, workers, before, counts)
            case Finish():
                target.finish()
