"""Batches that the worker processes of a torch DataLoader load, those first that are needed first."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from psgc.data.epochs import bounds
from psgc.errors import UserError, one_line
from psgc.processes import die_with_parent
from psgc.torch.reading import Reader

TAKEN = ("num_workers", "prefetch_factor", "pin_memory", "timeout", "multiprocessing_context")  # of the DataLoader
Collate = Callable[[list[Any]], Any]


def taken_apart(dataset: Any, collate: Collate | None) -> tuple[Any, Collate, "DataLoader[Any] | None"]:
    """The dataset of a DataLoader, what makes a batch, and the DataLoader if it has worker processes.

    dataset: may be something else as well; collate: in place of that of the DataLoader.

    Raises UserError for a DataLoader that has an order or batches of its own.
    """
    if not isinstance(dataset, DataLoader):
        return dataset, collate or default_collate, None
    sampler, batches = dataset.sampler, dataset.batch_sampler
    is_random = type(sampler) is RandomSampler and not sampler.replacement
    if type(batches) is not BatchSampler or not (type(sampler) is SequentialSampler or is_random):
        own = batches if type(batches) is not BatchSampler and batches is not None else sampler
        what = "no batches (batch_size=None)" if batches is None else f"{type(own).__name__}"
        raise UserError(
            f"the DataLoader has {what}, but run.batches says which examples a step has; expected a DataLoader without "
            "sampler and batch_sampler, with a batch_size"
        )
    return dataset.dataset, collate or dataset.collate_fn, dataset if dataset.num_workers else None


class Loading:
    """The rows of a chunk, in how many batches of `size` or fewer they go, and how many of these have been begun.

    seed: (seed, epoch), of what rows draw.
    """

    def __init__(self, rows: Sequence[int] | np.ndarray = (), size: int = 1, seed: tuple[object, ...] = (0, 0)) -> None:
        self.rows, self.size, self.seed = np.asarray(rows, np.int64), size, seed
        self.batches = -(-len(self.rows) // size)
        self.begun = 0

    def rows_of(self, at: int) -> np.ndarray:
        return self.rows[slice(*bounds(at, len(self.rows), self.batches))]

    def left(self) -> Iterator[np.ndarray]:
        """The rows of each batch that has not been begun."""
        return (self.rows_of(at) for at in range(self.begun, self.batches))

    def is_like(self, other: "Loading") -> bool:
        same = self.batches == other.batches and self.seed == other.seed
        return same and np.array_equal(self.rows, other.rows)


class Wanted(NamedTuple):
    """The batch of some rows, as bytes of int64, and (seed, epoch), of what they draw."""

    rows: bytes
    seed: tuple[object, ...]


class Processes:
    """Loads batches in worker processes, which begin with the first.

    A DataLoader asks what it is to load next as often as it has given a batch. It is told what is needed next, as far
    as that is known, and otherwise *nothing*, which comes back at once. So it has something to load for each time that
    it may be asked.

    reader: loads a batch; like: whose processes these are to be. ahead: batches that are loaded ahead at most; mixes:
    see Reader.
    """

    def __init__(self, reader: Reader, like: "DataLoader[Any]") -> None:
        self.mixes = False
        self.ahead = like.num_workers * (like.prefetch_factor or 1)
        self._needed: deque[Wanted] = deque()  # and not asked for yet, in order
        self._asked: deque[Wanted | None] = deque()  # answers come in this order
        self._there: dict[Wanted, Any] = {}
        answers: Any = _Answers(reader)
        how = {name: getattr(like, name) for name in TAKEN}
        generator = torch.Generator()  # else a number is drawn from that of the script
        how |= {"collate_fn": _as_it_is, "worker_init_fn": _InProcess(like.worker_init_fn), "generator": generator}
        self._begun = partial(DataLoader[Any], answers, None, sampler=self, **how)
        self._answers: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Wanted | None]:
        return self

    def __next__(self) -> Wanted | None:
        self._asked.append(self._needed.popleft() if self._needed else None)
        return self._asked[-1]

    def need(self, passes: Iterable[Loading]) -> None:
        """What is needed next, in order, in place of what was needed before."""
        batches = (Wanted(rows.tobytes(), one.seed) for one in passes for rows in one.left())
        wanted = dict.fromkeys(islice(batches, self.ahead))
        self._there = {one: found for one, found in self._there.items() if one in wanted}
        self._needed = deque(one for one in wanted if one not in self._there and one not in self._asked)
        self._ask()

    def load(self, rows: np.ndarray, seed: tuple[object, ...]) -> Any:
        """The batch of these rows. Raises UserError, as `Reader.load`, and when a process has ended."""
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
        """The processes end. May be called again; what is taken after that begins others."""
        self._answers = None
        self._asked.clear()
        self._needed.clear()

    def _ask(self) -> None:
        """Have what is needed loaded in place of nothing."""
        if self._needed and self._answers is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that of more processes than cores, which `like` has given
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
    """What it returns, in a process such as those of a DataLoader: a dataset may open its files there for itself."""
    functions: Any = [function]
    how = {"num_workers": 1, "multiprocessing_context": like.multiprocessing_context, "generator": torch.Generator()}
    return str(next(iter(DataLoader[Any](functions, None, collate_fn=_called, **how))))


class _Answers:
    """The dataset of the worker processes. Errors come as they are: they have one line, with the row."""

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
    """Begins a worker process, which does not outlive this one."""

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
