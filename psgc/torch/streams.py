"""The examples of a stream by number, so that any rank can compute any chunk of a step."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from psgc.errors import UserError
from psgc.torch.generators import Generators, reseed

CPU = torch.device("cpu")
READERS = 2  # of two epochs: the last examples of one may be wanted after the first ones of the next


@dataclass
class _StreamPass:
    """A pass over the stream. at: number of the next example; random: states of the generators for it."""

    examples: Iterator[Any]
    random: Generators
    at: int = 0


class StreamBuffer(Dataset[Any]):
    """The first `length` examples of an IterableDataset by number, for `run.batches(size, shuffle=False)`.

    Each rank that computes reads the whole stream, in order, and keeps the `size` examples that it has read last. So a
    step may take up to `size` examples. For an example that is no longer kept the stream is read once more from its
    beginning. That happens at each epoch, and when a run is resumed.

    The stream must give the same examples on each rank and each time. It must not deal them out to ranks or processes.
    The random numbers that it draws from `random`, `numpy.random` and torch are the same on each rank and each time.

    stream: an IterableDataset, or anything else whose iterator begins anew each time
    length: number of examples of an epoch
    size: number of examples that are kept

    >>> from torch.utils.data import IterableDataset
    >>> class Squares(IterableDataset):
    ...     def __iter__(self):
    ...         return (n * n for n in range(10))
    >>> rows = StreamBuffer(Squares(), length=10, size=4)
    >>> [rows[5], rows[3], rows[0]]
    [25, 9, 0]

    Raises UserError: the stream cannot be iterated, or ends before `length` examples, or a number is wrong.
    """

    def __init__(self, stream: Any, length: int, size: int = 10_000) -> None:
        numbers: dict[str, object] = {"length": length, "size": size}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"StreamBuffer: {name} is {value!r:.40}, expected a whole number >= 1")
        if not hasattr(stream, "__iter__") or isinstance(stream, Iterator):
            name = type(stream).__name__
            raise UserError(f"StreamBuffer: a {name} cannot be read more than once; expected an IterableDataset")
        self.stream, self.length, self.size = stream, length, size
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._readers: list[_StreamPass] = []
        self._epoch, self._furthest, self._has_jumped = -1, -1, False  # of the batches so far (`jump`)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        if wrong := [row for row in rows if not 0 <= row < self.length]:
            raise IndexError(f"row {wrong[0]} of {self.length}")
        found = {row: self._kept[row] for row in rows if row in self._kept}
        if missing := sorted({*rows} - found.keys()):
            before = Generators.now(CPU)
            try:
                for row in missing:
                    found[row] = self._read(row)
            finally:
                before.set(CPU)
        return [found[row] for row in rows]

    def check(self, size: object, shuffle: bool) -> None:
        """Raises UserError when batches cannot be read in order: the arguments of `run.batches`."""
        if not isinstance(size, int | np.integer):
            return  # of a batch sampler, which knows best
        if shuffle:
            raise UserError("run.batches: shuffle: a StreamBuffer is read in order; expected shuffle=False")
        if size > self.size:
            raise UserError(
                f"run.batches: size is {size}, and the StreamBuffer keeps {self.size} examples; expected "
                f"StreamBuffer(..., size={size}) or more"
            )

    def jump(self, epoch: int, rows: np.ndarray) -> str:
        """What to say of the first batch for which the stream is begun anew within an epoch; empty for all others."""
        self._furthest = max(int(rows.max()), self._furthest if epoch == self._epoch else -1)
        self._epoch, first = epoch, int(rows.min())
        if self._has_jumped or first > self._furthest - self.size:
            return ""
        self._has_jumped = True
        return (
            f"psgc: epoch {epoch}: a batch takes example {first} after example {self._furthest}, and the StreamBuffer "
            f"keeps {self.size}: for each such jump the stream is read again from its beginning; expected examples in "
            "order, shuffled only within the buffer, or StreamBuffer(..., size=...) with a larger size"
        )

    def _read(self, row: int) -> Any:
        """Read on as far as this row."""
        reader = max((reader for reader in self._readers if reader.at <= row), key=lambda r: r.at, default=None)
        if reader is None:
            reseed(("stream",), CPU)
            self._readers = [
                *self._readers[1 - READERS :],
                reader := _StreamPass(iter(self.stream), Generators.now(CPU)),
            ]
        reader.random.set(CPU)
        try:
            while reader.at <= row:
                example = next(reader.examples)
                self._kept.pop(reader.at, None)
                self._kept[reader.at] = example
                reader.at += 1
                if len(self._kept) > self.size:
                    self._kept.popitem(last=False)
        except BaseException as error:
            self._readers.remove(reader)
            if isinstance(error, StopIteration):
                name = type(self.stream).__name__
                raise UserError(
                    f"the stream ({name}) has ended after {reader.at} examples; expected {self.length}, the length of "
                    "its StreamBuffer"
                ) from None
            raise
        reader.random = Generators.now(CPU)
        return example
