"""From a worker's gradients to what it sends (design section 2, *Coding*), on the worker's backend."""

from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.backend import Array, Backend, encode, part_length
from psgc.coding import encoding_coefficients
from psgc.messages import TAIL


class Encoder:
    """Codes the gradients of the worker of this rank.

    coding_matrix: R, (num_workers, parts), row j - 1 for the worker of rank j; dim: entries of the gradient.
    """

    def __init__(self, backend: Backend, coding_matrix: np.ndarray, rank: int, dim: int, dtype: Any) -> None:
        self._backend = backend
        self._coding_matrix = coding_matrix
        self._rank = rank
        self._length = part_length(dim, coding_matrix.shape[1])
        self._dtype = dtype
        self._coefficients: dict[tuple[int, ...], np.ndarray] = {}  # S_i -> this worker's row of X_i
        self.accumulator = backend.xp.zeros(self._length, dtype)

    def begin(self, sending: Callable[[Array], bool]) -> None:
        """A new iteration: an empty accumulator, and not the one that is still being sent."""
        if sending(self.accumulator):
            self.accumulator = self._backend.xp.zeros(self._length, self._dtype)
        else:
            self.accumulator.fill(0)

    def add(self, gradient: Array, contributors: tuple[int, ...]) -> None:
        """Accumulate a committed chunk (`combined`): y_j += sum_k X_i[j, k] g_i[k]."""
        row = self._coefficients.get(contributors)
        if row is None:
            coefficients = encoding_coefficients(self._coding_matrix[[worker - 1 for worker in contributors]])
            row = self._coefficients[contributors] = coefficients[contributors.index(self._rank)]
        encode(self._backend, self.accumulator, row, gradient)

    def coded(self, gradient: Array, start: float, seconds: float, loss: float) -> Array:
        """One coded gradient with the tail of its report (`per_chunk`): sum_k R[j, k] g_i[k], start, seconds, loss."""
        message = self._backend.xp.zeros(self._length + TAIL, self._dtype)
        encode(self._backend, message[: self._length], self._coding_matrix[self._rank - 1], gradient)
        message[self._length :] = self._backend.asarray(np.array([start, seconds, loss], self._dtype))
        return self._backend.to_message(message)
