"""What a loader has loaded of a chunk, what loading took, and batches that one index makes."""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

from psgc.data.epochs import bounds


class Loading:
    """The rows of a chunk, in how many batches of `size` or fewer they go, those of them that are loaded and not used
    yet, and how many have been begun. seed: (seed, epoch), of what rows draw.
    """

    def __init__(self, rows: Sequence[int] | np.ndarray = (), size: int = 1, seed: tuple[object, ...] = (0, 0)) -> None:
        self.rows, self.size, self.seed = np.asarray(rows, np.int64), size, seed
        self.batches = -(-len(self.rows) // size)
        self.loaded: deque[Any] = deque()
        self.begun = 0

    def rows_of(self, at: int) -> np.ndarray:
        """The rows of batch `at`."""
        return self.rows[slice(*bounds(at, len(self.rows), self.batches))]

    def left(self) -> Iterator[np.ndarray]:
        """The rows of each batch that has not been begun."""
        return (self.rows_of(at) for at in range(self.begun, self.batches))

    def is_like(self, other: "Loading") -> bool:
        """Whether it has the same batches."""
        same = self.batches == other.batches and self.seed == other.seed
        return same and np.array_equal(self.rows, other.rows)


class Times:
    """What this thread has done so far, in seconds, and how often it has waited."""

    def __init__(self) -> None:
        self._now, self._computed = time.monotonic(), time.thread_time()
        self._waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

    def savings(self, end: "Times", spare_core: bool) -> float:
        """Seconds until `end` that would be saved if they passed while a chunk is computed."""
        took = end._now - self._now
        if spare_core:
            return took
        # without a wait the rest is time in which the kernel gave the core to others
        return took - (end._computed - self._computed) if end._waits > self._waits else 0.0


def indexed(dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> Callable[[np.ndarray], list[Tensor]] | None:
    """Gives the batch of rows (n,), as collating row by row does. None unless the dataset is tensors, or a Subset."""
    if collate_fn is not default_collate:
        return None
    if type(dataset) is Subset:
        of_whole, places = indexed(dataset.dataset, collate_fn), dataset.indices
        return None if of_whole is None else lambda rows: of_whole(np.asarray([places[row] for row in rows]))
    if type(dataset) is not TensorDataset or not all(map(_is_plain, dataset.tensors)):
        return None
    return lambda rows: [tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in dataset.tensors]


def _is_plain(tensor: Tensor) -> bool:
    """Whether an index gives memory of its own, laid out as `torch.stack` does it."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.requires_grad:
        return False
    return tensor.is_contiguous() and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
