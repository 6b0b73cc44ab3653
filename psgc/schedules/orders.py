"""What a schedule tells the workers, and what it is told of a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skip:
    """`worker` need not do `chunk`: at all when it is recovered, else unless it has begun (then its copy may count)."""

    worker: int
    chunk: int
    recovered: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """`worker` does exactly `chunks` next, in this order, after the chunk it is in."""

    worker: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Next:
    """`worker` does `chunk` before all else, after the chunk it is in."""

    worker: int
    chunk: int


Order = Skip | Queue | Next


@dataclass(frozen=True)
class Loss:
    """What the loss of `worker` has changed.

    dropped: chunks, not recovered, that have one copy less; invalidated: chunks that were recovered before this or an
    earlier loss and are not now: how many copies they need, and the live workers whose copies would count;
    reassigned: (worker, chunk) that came about; holders[i]: the live workers that hold chunk i, new
    holders among them; collected: whether the workers had been told that there is nothing more to do.
    """

    worker: int
    dropped: Sequence[int]
    invalidated: Mapping[int, tuple[int, Sequence[int]]]
    reassigned: Sequence[tuple[int, int]]
    holders: Sequence[Sequence[int]]
    collected: bool
