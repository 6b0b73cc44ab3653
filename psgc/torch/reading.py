"""Loads the batch of some rows. The random numbers that a dataset draws for a row depend on the row alone."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from psgc.errors import UserError, one_line, raised_at
from psgc.torch.generators import Generators, places, reseed

CPU = torch.device("cpu")


def length_of(dataset: Any) -> int:
    """The number of examples of a map-style dataset.

    Raises UserError: it has no length or no __getitem__, or it is empty.
    """
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise UserError(
            f"the dataset ({name}) is an IterableDataset, whose examples have no numbers, by which any worker could "
            "get those of a chunk; expected a map-style dataset: list(dataset) if it fits into memory, a file that it "
            "is written to once, such as datasets.Dataset.from_generator makes, or psgc.torch.StreamBuffer(dataset, "
            "length), for which each rank reads the whole stream"
        )
    wanted = "expected a map-style dataset, with __len__ and __getitem__"
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__getitems__"):
        raise UserError(f"the dataset ({name}) has no __getitem__; {wanted}")
    try:
        length = len(dataset)
    except Exception as error:  # the user's code
        if not hasattr(dataset, "__len__") or isinstance(error, NotImplementedError):
            raise UserError(f"the dataset ({name}) has no length; {wanted}") from None
        raise UserError(f"the dataset ({name}): __len__ failed: {one_line(error)}; {wanted}") from error
    if length == 0:
        raise UserError(f"the dataset ({name}) is empty, expected at least one example")
    return length


class Reader:
    """Loads batches from a map-style dataset, with its `__getitems__` if it has one.

    Random numbers of a row are seeded with (seed, epoch, row), so they are the same on every rank and in every batch.
    Random numbers of collate_fn are seeded with the first row of the batch. Afterwards the states of the generators are
    restored. Seeding takes time, so it begins only when a random number was drawn; the batch is then loaded again.

    draws: whether the dataset has drawn random numbers
    mixes: whether collate_fn has drawn random numbers; then it matters which rows are loaded together

    Raises UserError for a dataset without length (`length_of`).
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.length = length_of(dataset)
        self._dataset, self._collate = dataset, collate
        self.draws = self.mixes = False

    def load(self, rows: np.ndarray, seed: tuple[object, ...]) -> Any:
        """The batch of these rows. seed: (seed, epoch). Raises UserError, with the row, when the user's code fails."""
        if by_index := indexed(self._dataset, self._collate):
            with suppress(Exception):  # below, rows are loaded one by one, and the error names the row
                return by_index(rows)
        before = Generators.now(CPU)
        while True:
            known = self.draws, self.mixes
            batch = self._batch(rows.tolist(), seed)
            if known == (self.draws, self.mixes):
                break
        if any(known):
            before.set(CPU)
        return batch

    def _batch(self, rows: list[int], seed: tuple[object, ...]) -> Any:
        if self.draws:
            examples = []
            for row in rows:
                reseed((*seed, row), CPU)
                examples += self._examples([row])
        else:
            before = places(CPU)
            examples = self._examples(rows)
            self.draws = places(CPU) != before
        if self.mixes:
            reseed((*seed, rows[0], "batch"), CPU)
            return self._collated(examples, rows)
        before = places(CPU)
        batch = self._collated(examples, rows)
        self.mixes = places(CPU) != before
        return batch

    def _collated(self, examples: list[Any], rows: list[int]) -> Any:
        try:
            return self._collate(examples)
        except Exception as error:  # the user's code
            name = getattr(self._collate, "__name__", type(self._collate).__name__)
            raise UserError(f"{name} of {_shown(rows)}: {one_line(error)}{raised_at(error)}") from error

    def _examples(self, rows: list[int]) -> list[Any]:
        many = getattr(self._dataset, "__getitems__", None)
        if not many:
            return [self._example(row) for row in rows]
        try:
            examples = many(rows)
        except Exception as error:  # the user's code
            for row in rows:  # find the row that fails
                try:
                    many([row])
                except Exception as alone:
                    raise self._failed([row], alone) from alone
            raise self._failed(rows, error) from error
        if len(examples) != len(rows):
            name = type(self._dataset).__name__
            raise UserError(f"the dataset ({name}): __getitems__ gave {len(examples)} examples for {len(rows)} rows")
        return list(examples)

    def _example(self, row: int) -> Any:
        try:
            return self._dataset[row]
        except Exception as error:  # the user's code
            raise self._failed([row], error) from error

    def _failed(self, rows: Sequence[int], error: Exception) -> UserError:
        name = type(self._dataset).__name__
        return UserError(
            f"{_shown(rows)} of the dataset ({name}, {self.length} examples): {one_line(error)}{raised_at(error)}"
        )


def _shown(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"rows {', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''}"


def indexed(dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> Callable[[np.ndarray], list[Tensor]] | None:
    """A function that indexes the batch of rows (n,), as collating single rows would make it.

    None unless the dataset is a TensorDataset, or a Subset of one.
    """
    if collate_fn is not default_collate:
        return None
    if type(dataset) is Subset:
        of_whole, places = indexed(dataset.dataset, collate_fn), dataset.indices
        return None if of_whole is None else lambda rows: of_whole(np.asarray([places[row] for row in rows]))
    if type(dataset) is not TensorDataset or not all(map(_is_plain, dataset.tensors)):
        return None
    return lambda rows: [tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in dataset.tensors]


def _is_plain(tensor: Tensor) -> bool:
    """Whether indexing the tensor makes the same tensor as `torch.stack` of its rows."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.requires_grad:
        return False
    return tensor.is_contiguous() and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
