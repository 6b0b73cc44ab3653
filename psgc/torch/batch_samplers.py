"""Batches that a DataLoader or a batch sampler of the script chooses, epoch by epoch, as in a loop of plain torch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from psgc.errors import UserError, one_line, raised_at
from psgc.torch.reading import length_of

EXPECTED = "expected a DataLoader, or a batch sampler such as torch.utils.data.BatchSampler(sampler, size, drop_last)"
MOST = 1_000_000, 100  # examples of an epoch: so many, and so many for each one of the dataset
_STARTED = WeakSet[DataLoader[Any]]()  # with persistent_workers, whose processes a loop of plain torch has started


class Drawn(NamedTuple):
    """The batches of an epoch.

    epoch: number of epochs before, in the whole run
    rows: (n,) int64, the rows of all batches, one batch after another
    ends: (batches,) int64, for each batch, how many rows there are up to its end
    """

    epoch: int
    rows: np.ndarray
    ends: np.ndarray

    def ends_after(self, start: int) -> np.ndarray:
        return self.ends[np.searchsorted(self.ends, start, "right") :]

    def saved(self) -> dict[str, Any]:
        """The batches as numbers and tensors, for a state of the run (`psgc.torch.state`)."""
        return {"epoch": self.epoch, "rows": torch.from_numpy(self.rows), "ends": torch.from_numpy(self.ends)}

    @staticmethod
    def of(saved: dict[str, Any]) -> "Drawn":
        """The inverse of `saved`."""
        return Drawn(int(saved["epoch"]), saved["rows"].numpy().copy(), saved["ends"].numpy().copy())


class GivenBatches:
    """Asks a DataLoader or a batch sampler for the batches of each epoch of a loop, in turn.

    Random numbers are drawn as when plain torch begins an epoch, from the script's generators.

    batches: the DataLoader, or an object that yields lists of rows each time it is iterated
    length: number of examples of the dataset
    first: the first epoch of the loop

    next: the epoch after the last one that was asked for

    Raises UserError when it cannot be used.
    """

    def __init__(self, batches: Any, length: int, first: int) -> None:
        self._loader = batches if isinstance(batches, DataLoader) else None
        self._batches: Any = batches if self._loader is None else self._loader.batch_sampler
        self._length, self.next = length, first
        name = type(self._batches).__name__
        if self._batches is None:
            raise UserError("run.batches: the DataLoader has no batches (batch_size=None); expected one with batches")
        if not isinstance(self._batches, Iterable) or isinstance(self._batches, str | bytes):
            raise UserError(f"run.batches: size is a {name}; expected a whole number >= 1, or {EXPECTED[9:]}")
        for one in (self._batches, getattr(self._batches, "sampler", None)):
            if getattr(one, "num_replicas", 1) != 1:
                raise UserError(
                    f"run.batches: {type(one).__name__} deals the examples out to ranks, and here a batch is that of a "
                    "step, which all ranks share; expected a sampler without ranks, such as RandomSampler, which "
                    "DataLoader(..., shuffle=True) has"
                )

    def drawn(self, epoch: int, known: Drawn | None, prepare: Callable[[], object]) -> Drawn:
        """The batches of an epoch of the loop.

        The batch sampler is also asked for the epochs before, if it was not: one with a generator of its own is then
        where it would be in a run that was not interrupted.

        known: the batches of this epoch, from the state of a run; they count
        prepare: is called before the batches are drawn
        """
        self.skip_to(epoch)
        if known is not None:
            self.skip_to(epoch + 1)
            return known
        prepare()
        self.next = max(self.next, epoch + 1)
        return self._asked(epoch)

    def skip_to(self, epoch: int) -> None:
        """Ask for the batches of the epochs before this one, which were made already."""
        while self.next < epoch:
            self.next += 1
            self._asked(self.next - 1)

    def _asked(self, epoch: int) -> Drawn:
        name = type(self._batches).__name__
        try:
            batches = iter(self._batches)
            loader = self._loader
            if loader is not None and loader not in _STARTED:  # it draws a seed when it starts its processes
                torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
                if loader.persistent_workers:
                    _STARTED.add(loader)
            rows, sizes = self._read(batches, name)
        except UserError:
            raise
        except Exception as error:  # the user's code
            raise UserError(f"run.batches: {name} failed: {one_line(error)}{raised_at(error)}") from error
        if not rows:
            raise UserError(f"run.batches: {name} has no batch in epoch {epoch}; expected at least one in each epoch")
        return Drawn(epoch, np.concatenate(rows), np.cumsum(sizes))

    def _read(self, batches: Iterator[Any], name: str) -> tuple[list[np.ndarray], list[int]]:
        rows, sizes, left = list[np.ndarray](), list[int](), MOST[0] + MOST[1] * self._length
        for batch in batches:
            found = np.asarray(batch)
            if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
                raise UserError(f"run.batches: {name} yields {batch!r:.40}, not a list of numbers of rows; {EXPECTED}")
            if found.min() < 0 or found.max() >= self._length:
                wrong = found.min() if found.min() < 0 else found.max()
                raise UserError(f"run.batches: {name} yields row {wrong}, and the dataset has {self._length} examples")
            rows.append(found.astype(np.int64))
            sizes.append(len(found))
            left -= len(found)
            if left < 0:
                raise UserError(
                    f"run.batches: {name} has yielded {sum(sizes)} examples, and the dataset has {self._length}; "
                    "expected an epoch that ends"
                )
        return rows, sizes


def sampler_of(dataset: Any) -> str:
    """The name of the sampler or batch sampler of a DataLoader that is not one of shuffle=True or False; else empty."""
    if not isinstance(dataset, DataLoader):
        return ""
    batches = dataset.batch_sampler
    if type(batches) is not BatchSampler:
        return type(batches).__name__
    sampler: Any = batches.sampler  # that of the DataLoader is another one, if it was given a BatchSampler
    if type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement):
        length = length_of(dataset.dataset)
        if len(sampler.data_source) == length == getattr(sampler, "num_samples", length):  # it may be a part
            return ""
    return type(sampler).__name__
