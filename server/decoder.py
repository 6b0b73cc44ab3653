"""From coded gradients to the gradient (design section 2, *Coding*), on the server's backend."""

from typing import Any

import numpy as np

from psgc.backend import Array, Backend, decode, part_length
from psgc.coding import decoding_coefficients


class Decoder:
    """Sums one iteration's gradient from what the workers send.

    coding_matrix: R, (num_workers, parts), row j - 1 for the worker of rank j; dim: entries of the gradient.
    """

    def __init__(self, backend: Backend, coding_matrix: np.ndarray, dim: int, dtype: Any) -> None:
        self._backend = backend
        self._coding_matrix = coding_matrix
        self._dim = dim
        self._dtype = dtype
        self._held: dict[tuple[int, int], Array] = {}  # (worker, chunk) -> coded gradient that waits for others
        self._decoding: dict[tuple[int, ...], np.ndarray] = {}  # S_i -> inverse of R[S_i]
        self.gradient = backend.xp.zeros(dim, dtype)

    def begin(self) -> None:
        """A new iteration: the sum is zero and nothing is held."""
        self._held.clear()
        self.gradient.fill(0)

    def hold(self, worker: int, chunk: int, coded: Array) -> None:
        """Keep a copy of a coded gradient (`per_chunk`) until the chunk is committed."""
        self._held[worker, chunk] = self._backend.xp.array(coded)

    def commit(self, chunk: int, contributors: tuple[int, ...]) -> None:
        """Decode a chunk (`per_chunk`) from the copies of its contributors: R[S_i] G = Y."""
        inverse = self._decoding.get(contributors)
        if inverse is None:
            rows = self._coding_matrix[[worker - 1 for worker in contributors]]
            inverse = self._decoding[contributors] = decoding_coefficients(rows)
        copies = [self._held.pop((worker, chunk)) for worker in contributors]
        coded = copies[0][None] if len(copies) == 1 else self._backend.xp.stack(copies)
        decode(self._backend, self.gradient, inverse, coded)

    def discard(self, worker: int, chunk: int) -> None:
        """Forget a copy that came too late (`per_chunk`)."""
        self._held.pop((worker, chunk), None)

    def add_accumulator(self, worker: int, accumulator: Array) -> None:
        """Add a worker's accumulator (`combined`): part k of the gradient is sum_j R[j, k] y_j."""
        vector = self._coding_matrix[worker - 1]
        decode(self._backend, self.gradient, vector[:, None], accumulator[None])

    @property
    def message_length(self) -> int:
        """Entries of one coded gradient."""
        return part_length(self._dim, self._coding_matrix.shape[1])
