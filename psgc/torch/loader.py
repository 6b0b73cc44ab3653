"""Loads the examples of a chunk, in micro-batches. Worker processes of a DataLoader load the next ones meanwhile."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from psgc.data.epochs import bounds
from psgc.errors import UserError, one_line
from psgc.processes import die_with_parent
from psgc.torch.reading import Reader, length_of
from psgc.torch.streams import StreamBuffer

TAKEN = ("num_workers", "prefetch_factor", "pin_memory", "timeout", "multiprocessing_context")  # copied settings
Collate = Callable[[list[Any]], Any]


def taken_apart(dataset: Any, collate: Collate | None) -> tuple[Any, Collate, "DataLoader[Any] | None"]:
    """The dataset of a DataLoader, its collate function, and the DataLoader itself if it has worker processes.

    dataset: a DataLoader, or a dataset, which is returned as it is
    collate: replaces the DataLoader's collate function; None: keep it

    Raises UserError for a DataLoader whose dataset has no length (`length_of`), for one without batches, or for one
    with worker processes for a StreamBuffer.
    """
    if not isinstance(dataset, DataLoader):
        return dataset, collate or default_collate, None
    length_of(dataset.dataset)  # first, since a stream often has no batch_size either
    if dataset.batch_sampler is None:
        raise UserError("the DataLoader has no batches (batch_size=None); expected one with a batch_size")
    if dataset.num_workers and isinstance(dataset.dataset, StreamBuffer):
        number = dataset.num_workers
        raise UserError(f"num_workers is {number}, but each rank reads a StreamBuffer itself; expected num_workers=0")
    return dataset.dataset, collate or dataset.collate_fn, dataset if dataset.num_workers else None


class Loading:
    """The rows of a pass, divided into batches.

    rows: (n,) int64
    size: largest number of rows of a batch
    seed: (seed, epoch), for the random numbers of rows
    batches: number of batches
    begun: number of batches that have been begun
    """

    def __init__(self, rows: Sequence[int] | np.ndarray = (), size: int = 1, seed: tuple[object, ...] = (0, 0)) -> None:
        self.rows, self.size, self.seed = np.asarray(rows, np.int64), size, seed
        self.batches = -(-len(self.rows) // size)
        self.begun = 0

    def rows_of(self, at: int) -> np.ndarray:
        return self.rows[slice(*bounds(at, len(self.rows), self.batches))]

    def left(self) -> Iterator[np.ndarray]:
        """The rows of each batch that was not begun."""
        return (self.rows_of(at) for at in range(self.begun, self.batches))

    def is_like(self, other: "Loading") -> bool:
        same = self.batches == other.batches and self.seed == other.seed
        return same and np.array_equal(self.rows, other.rows)


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


class Wanted(NamedTuple):
    """A batch to load. rows: bytes of int64; seed: (seed, epoch), for the random numbers of rows."""

    rows: bytes
    seed: tuple[object, ...]


class Processes:
    """Loads batches in worker processes, which start with the first batch.

    A DataLoader asks its sampler for the next batch each time it has returned one. The answer is the batch that is
    needed next. If none is known the answer is None, which comes back at once.

    reader: loads a batch
    like: the DataLoader whose settings the processes have
    ahead: largest number of batches that are loaded ahead
    mixes: see Reader
    """

    def __init__(self, reader: Reader, like: "DataLoader[Any]") -> None:
        self.mixes = False
        self.ahead = like.num_workers * (like.prefetch_factor or 1)
        self._needed: deque[Wanted] = deque()  # batches that the DataLoader was not asked for yet, in order
        self._asked: deque[Wanted | None] = deque()  # batches that it was asked for; answers come in this order
        self._there: dict[Wanted, Any] = {}  # batches that are loaded
        answers: Any = _Answers(reader)
        how = {name: getattr(like, name) for name in TAKEN}
        generator = torch.Generator()  # without it the DataLoader draws a number from the script's generator
        how |= {"collate_fn": _as_it_is, "worker_init_fn": _InProcess(like.worker_init_fn), "generator": generator}
        self._begun = partial(DataLoader[Any], answers, None, sampler=self, **how)
        self._answers: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Wanted | None]:
        return self

    def __next__(self) -> Wanted | None:
        self._asked.append(self._needed.popleft() if self._needed else None)
        return self._asked[-1]

    def need(self, passes: Iterable[Loading]) -> None:
        """Set the passes that are needed next, in order. They replace those of the call before."""
        batches = (Wanted(rows.tobytes(), one.seed) for one in passes for rows in one.left())
        wanted = dict.fromkeys(islice(batches, self.ahead))
        self._there = {one: found for one, found in self._there.items() if one in wanted}
        self._needed = deque(one for one in wanted if one not in self._there and one not in self._asked)
        self._ask()

    def load(self, rows: np.ndarray, seed: tuple[object, ...]) -> Any:
        """The batch of these rows. Raises UserError as `Reader.load` does, and when a process has died."""
        wanted = Wanted(rows.tobytes(), seed)
        if wanted not in self._there and wanted not in self._asked:
            self._needed = deque([wanted, *(one for one in self._needed if one != wanted)])
            self._ask()
        while wanted not in self._there:
            self._receive()
        found = self._there.pop(wanted)
        self._ask()
        if isinstance(found, UserError):
            raise found
        batch, mixes = found
        self.mixes = self.mixes or mixes
        return batch

    def close(self) -> None:
        """End the processes. May be called again; loading another batch starts new ones."""
        self._answers = None
        self._asked.clear()
        self._needed.clear()

    def _ask(self) -> None:
        """Let the DataLoader load what is needed: receive the None answers, since it then asks again."""
        if self._needed and self._answers is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # more processes than cores; `like` has given this warning
                self._answers = iter(self._begun())
        while self._needed and self._asked[0] is None:
            self._receive()

    def _receive(self) -> None:
        assert self._answers is not None
        try:
            answer = next(self._answers)
        except RuntimeError as error:
            raise UserError(f"a worker process of the DataLoader: {one_line(error)}") from error
        if (wanted := self._asked.popleft()) is not None:
            self._there[wanted] = answer


def elsewhere(function: Callable[[], str], like: "DataLoader[Any]") -> str:
    """Call the function in a worker process of a DataLoader, since a dataset may only work in such a process."""
    functions: Any = [function]
    how = {"num_workers": 1, "multiprocessing_context": like.multiprocessing_context, "generator": torch.Generator()}
    return str(next(iter(DataLoader[Any](functions, None, collate_fn=_called, **how))))


class _Answers:
    """The dataset of the worker processes. Errors are returned as values, which keeps their one line with the row."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getitem__(self, wanted: Wanted | None) -> Any:
        if wanted is None:
            return None
        try:
            rows = np.frombuffer(wanted.rows, np.int64).copy()
            return self._reader.load(rows, wanted.seed), self._reader.mixes
        except UserError as error:
            return UserError(str(error))


class _InProcess:
    """Initialises a worker process, so that it dies with this process. own: the user's initialisation, or None."""

    def __init__(self, own: Callable[[int], object] | None) -> None:
        self._own = own

    def __call__(self, number: int) -> None:
        die_with_parent()
        if self._own is not None:
            self._own(number)


def _called(function: Any) -> Any:
    return function()


def _as_it_is(answer: Any) -> Any:
    return answer
