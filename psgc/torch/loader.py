"""Loads the examples of a chunk, in micro-batches. Worker processes of a DataLoader load the next ones meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from psgc.torch.processes import Loading, Processes, taken_apart
from psgc.torch.reading import Reader


class MicroBatch(NamedTuple):
    """rows: number of examples; batch: what collate_fn returned, the argument of the loss."""

    rows: int
    batch: Any


class ChunkLoader:
    """Loads rows of a map-style dataset in micro-batches.

    Rows are loaded in this thread. If `dataset` is a DataLoader with worker processes, these load the rows, and also
    the next ones ahead. The rows of a chunk are spread evenly over as few micro-batches as possible, so that no row is
    alone: batch normalisation needs two.

    dataset: the dataset, or a DataLoader with it
    collate_fn: examples -> batch; by default the DataLoader's, or torch's
    size: largest number of examples of a micro-batch; may be changed
    seed: (seed, epoch), for the random numbers of rows; may be changed
    length: number of examples of the dataset
    ahead: number of micro-batches that are loaded ahead

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
        self._next = Loading()  # the chunk that is expected next
        self._then: Sequence[Loading] = ()  # the passes that are expected after that

    @property
    def mixes(self) -> bool:
        """Whether collate_fn has drawn random numbers so far. Then it matters which rows are loaded together."""
        return self._reader.mixes or (self._processes is not None and self._processes.mixes)

    def micro_batches(self, rows: Sequence[int] | np.ndarray, then: Sequence[Loading] = ()) -> Iterator[MicroBatch]:
        """The micro-batches of a chunk, in order. The caller may stop early. Only one chunk is loaded at a time.

        rows: (n,), the rows of the chunk
        then: the passes that probably follow, for worker processes

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
        """The micro-batch of these rows. Raises UserError, as `micro_batches`."""
        return MicroBatch(len(rows), self._load(np.asarray(rows, np.int64), self.seed))

    def expect(self, rows: Sequence[int] | np.ndarray) -> None:
        """Expect the next chunk to have these rows. This replaces an earlier expectation."""
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
