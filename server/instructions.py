"""What the coordinator wants done, besides the orders of the schedule (`psgc.schedules.schedule`)."""

from dataclasses import dataclass

from psgc.schedules.schedule import Order


@dataclass(frozen=True, slots=True)
class Commit:
    """`chunk` is recovered from the copies in exactly these roles (S_i), in the order they counted.

    With fewer than `parts` copies it is recovered approximately. told: the workers that have to hear of it, each with
    the role of its copy; serial: of the accumulator that the copies are added to.
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

    It takes the place of the one before. `Summed` is the answer.
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
    """`chunk` is not recovered any more, for the `attempt`-th time: `worker` forgets its copy and may do it again."""

    worker: int
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Everything has arrived: the gradient is determined."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Find out which of these copies of `chunk`, (worker, role) each, agree: `Compared` is the answer (`verify`)."""

    chunk: int
    copies: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """The copy of `chunk` by `worker` does not agree with those of the others, which agree (`verify`)."""

    worker: int
    chunk: int
    others: tuple[int, ...]


Instruction = Commit | Discard | Share | Reassign | Invalidate | Finish | Compare | Wrong | Order
