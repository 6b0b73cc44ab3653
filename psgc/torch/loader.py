"""The examples of a chunk, in micro-batches; the worker processes of a DataLoader load what comes next meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from psgc.torch.processes import Loading, Processes, taken_apart
from psgc.torch.reading import Reader


class MicroBatch(NamedTuple):
    """What the loss is called with. rows: how many examples it is made of; batch: of collate_fn."""

    rows: int
    batch: Any


class ChunkLoader:
    """Loads rows of a map-style dataset in micro-batches, in this thread, or in the worker processes of a DataLoader if
    it is given one with such in place of the dataset: these load the next ones ahead.

    collate_fn: examples -> batch, by default that of the DataLoader, or torch's; size: examples of a batch at most;
    seed: (seed, epoch), of what rows draw; both may be changed. The rows of a chunk are spread evenly over as few
    batches as that allows, so that none is left alone, as batch normalisation needs it.
    ahead: how many micro-batches it is of use to know beforehand.

    Raises UserError for a dataset without length (`length_of`), or a DataLoader that cannot be used (`taken_apart`).
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any] | None, size: int) -> None:
        self.size = size
        self.seed: tuple[object, ...] = (0, 0)
        rows, collate, like = taken_apart(dataset, collate_fn)
        self._reader = Reader(rows, collate)
        self.length = self._reader.length
        self._processes = None if like is None else Processes(self._reader, like)
        self.ahead = 0 if self._processes is None else self._processes.ahead
        self._current = Loading()
        self._next = Loading()  # what is expected
        self._then: Sequence[Loading] = ()  # what comes after that

    @property
    def mixes(self) -> bool:
        """Whether collate_fn has drawn random numbers so far: then it matters which rows are loaded together."""
        return self._reader.mixes or (self._processes is not None and self._processes.mixes)

    def micro_batches(self, rows: Sequence[int] | np.ndarray, then: Sequence[Loading] = ()) -> Iterator[MicroBatch]:
        """The micro-batches of a chunk, in order. It may be left early; one chunk at a time.

        then: what probably comes after it and what is expected, for worker processes.

        Raises UserError, with the row, when the dataset or collate_fn fails.
        """
        self._current, self._then = Loading(rows, self.size, self.seed), then
        if self._next.is_like(self._current):
            self._next = Loading()
        self._tell()
        return self._batches(self._current)

    def _batches(self, chunk: Loading) -> Iterator[MicroBatch]:
        try:
            for at in range(chunk.batches):
                chunk.begun, rows = at + 1, chunk.rows_of(at)
                yield MicroBatch(len(rows), self._load(rows, chunk.seed))
        finally:
            if self._current is chunk:
                self._current = Loading()

    def micro_batch(self, rows: Sequence[int]) -> MicroBatch:
        """The micro-batch of these rows, loaded now. Raises UserError, as above."""
        return MicroBatch(len(rows), self._load(np.asarray(rows, np.int64), self.seed))

    def expect(self, rows: Sequence[int] | np.ndarray) -> None:
        """Most probably the next chunk is of these rows, and not of those that were expected before."""
        expected = Loading(rows, self.size, self.seed)
        if not self._next.is_like(expected):
            self._next = expected
            self._tell()

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()

    def _tell(self) -> None:
        if self._processes is not None:
            self._processes.need([self._current, self._next, *self._then])

    def _load(self, rows: np.ndarray, seed: tuple[object, ...]) -> Any:
        return (self._reader if self._processes is None else self._processes).load(rows, seed)
