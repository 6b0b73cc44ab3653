"""What a script computes in a call, on whichever ranks do it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

from torch import Tensor

from psgc.torch.hand_over import State, Sum
from psgc.torch.record import Record


@dataclass(frozen=True)
class Call:
    """One call of the script: the sum of a vector over all chunks is wanted.

    vector: of a chunk, (dim,) on the device of the model, memory of its own; None once the chunk is not wanted any
    more, which it asks the function that it is given. expect: told the chunk that probably comes next. loss: reads a
    sum. signature: equal on ranks that make the same call; is_whole: see HandOver; costs: returns what each
    chunk costs (`psgc.torch.sampling`). num_sums: of an evaluation, how many numbers are summed; they are the vector
    then, of float64 on the CPU. 0: a gradient is wanted.
    """

    vector: Callable[[int, Callable[[], bool]], Tensor | None]
    expect: Callable[[int], object]
    loss: Callable[[Tensor], float | None]
    signature: float
    is_whole: bool
    costs: Callable[[], Sequence[float]]
    num_sums: int = 0


class Engine(Protocol):
    """What makes sums of the calls: this process alone, or together with others.

    rank: of this process; num_chunks: of every call; iteration: of the first call; state: what the run goes on from,
    or None; record: of the run, on rank 0.
    """

    @property
    def rank(self) -> int: ...
    @property
    def num_chunks(self) -> int: ...
    @property
    def iteration(self) -> int: ...
    @property
    def record(self) -> Record | None: ...
    @property
    def state(self) -> bytes | None: ...

    def sum(self, iteration: int, call: Call) -> Sum | State:
        """The sum of the call, a tensor, or the state of another rank that is further."""


def signature(*of: object) -> float:
    """A number that float32 holds, for whatever tells a call from others.

    >>> signature("backward", 3) == signature("backward", 3) != signature("backward", 4)
    True
    """
    return float(crc32(repr(of).encode()) & 0x3FFFFF)
