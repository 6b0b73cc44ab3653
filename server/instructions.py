"""What the coordinator wants done, besides the orders of the schedule (`psgc.schedules.orders`)."""

from dataclasses import dataclass

from psgc.schedules.orders import Order


@dataclass(frozen=True, slots=True)
class Commit:
    """`chunk` is recovered from the copies in exactly these roles (S_i), in the order they counted.

    If these are fewer than `parts`, only approximately. told: the workers that still have to hear so, each with the
    role of its copy.
    """

    chunk: int
    contributors: tuple[int, ...]
    told: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Discard:
    """The copy of `chunk` that `worker` reported is not needed."""

    worker: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Collect:
    """Ask `worker` for its accumulator in this role."""

    worker: int
    role: int


@dataclass(frozen=True, slots=True)
class Add:
    """The accumulator that `worker` has just delivered in this role is part of the gradient.

    One for which there is no such instruction is to be dropped.
    """

    worker: int
    role: int


@dataclass(frozen=True, slots=True)
class Reassign:
    """`worker` holds `chunk` from now on, and codes it in `role`."""

    worker: int
    chunk: int
    role: int


@dataclass(frozen=True, slots=True)
class Invalidate:
    """What `worker` knows of `chunk` is not so any more: it may have to do it, for the `attempt`-th time over."""

    worker: int
    chunk: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Everything has arrived: the gradient is determined."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Find out which of these copies of `chunk` agree, (worker, role) each, and say so (`Compared`); `verify` only."""

    chunk: int
    copies: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """The copy of `chunk` by `worker` does not agree with those of these others, which agree; `verify` only."""

    worker: int
    chunk: int
    others: tuple[int, ...]


Instruction = Commit | Discard | Collect | Add | Reassign | Invalidate | Finish | Compare | Wrong | Order
