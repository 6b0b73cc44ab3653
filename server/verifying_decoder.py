"""The decoder of a run whose gradients are checked (`verify`): all copies stay until the gradient is asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from psgc.backend import Array, Backend
from psgc.coding import agreeing
from psgc.server.decoder import Decoder

Copies = Sequence[tuple[int, int]]  # (worker, role)


class VerifyingDecoder(Decoder):
    """What was committed can be committed anew, to other copies; the sum is formed at the end, in the same order.

    tolerance: as in `psgc.coding.agreeing`. It keeps every coded gradient of an iteration that it is given: with
    `per_chunk` N * dim entries and more.
    """

    def __init__(self, backend: Backend, coding_matrix: np.ndarray, dim: int, dtype: Any, tolerance: float) -> None:
        super().__init__(backend, coding_matrix, dim, dtype, keeping=True)
        self._tolerance = tolerance
        self._coded: dict[tuple[int, int], Array] = {}  # (worker, chunk) -> coded gradient
        self._accumulated = False  # whether something was added besides the chunks that were committed here

    @property
    def gradient(self) -> Array:
        total = super().gradient
        # nothing is added when there are no accumulators: not even 0, which would change the sign of another 0
        return total + self._sum if self._accumulated and total is not self._sum else total

    def begin(self) -> None:
        super().begin()
        self._coded.clear()
        self._accumulated = False

    def add_accumulator(self, worker: int, accumulator: Array) -> None:
        super().add_accumulator(worker, accumulator)
        self._accumulated = True

    def keep(self, worker: int, chunk: int, coded: Array) -> None:
        """A copy of a coded gradient; what a worker sends once more is not looked at."""
        if (worker, chunk) not in self._coded:
            self._coded[worker, chunk] = coded.copy()

    def agreeing(self, chunk: int, copies: Copies) -> list[int]:
        """The workers whose copies of `chunk` agree, `parts` first that decode it; none when no parts + 1 do."""
        rows = self._coding_matrix[[role - 1 for _, role in copies]]
        places = agreeing(rows, [self._coded[worker, chunk] for worker, _ in copies], self._tolerance)
        return [copies[place][0] for place in places]

    def commit_to(self, chunk: int, copies: Copies) -> None:
        """From now on `chunk` is decoded from these copies."""
        vectors = [self._coded[worker, chunk] for worker, _ in copies]
        coded = vectors[0][None] if len(vectors) == 1 else self._backend.xp.stack(vectors)
        columns = self._backend.xp.ascontiguousarray(coded[:, : self._columns])
        self._kept[chunk] = (tuple(role for _, role in copies), columns, coded[:, self._columns :])

    def take_back(self, chunk: int) -> None:
        """What `chunk` was committed to does not count."""
        self._kept.pop(chunk, None)
