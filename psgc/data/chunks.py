"""Chunks: the rows that one gradient is computed over, as they lie in the memory of whoever computes it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc.backend import Array, Backend
from psgc.data.dataset import Dataset
from psgc.errors import UserError


@dataclass(frozen=True, eq=False)
class Chunk:
    """Chunk number `index` of the data.

    X: (rows, num_features), an array or a sparse CSR matrix of the backend; None when the problem brings
        its own data.
    y: (rows,) labels, of X's dtype; None likewise.
    weight: share of the whole data, rows / num_rows; the weights of all chunks add up to 1.
    """

    index: int
    X: Any
    y: Array
    weight: float

    def sample(self, batch: int, rng: np.random.Generator) -> "Chunk":
        """This chunk with `batch` of its rows drawn without replacement; all of them when it has no more.

        The weight stays, so a mean over the sample estimates the mean over the chunk without bias.
        """
        if self.X is None or batch >= self.X.shape[0]:
            return self
        drawn = np.sort(rng.choice(self.X.shape[0], batch, replace=False))
        return Chunk(self.index, self.X[drawn], self.y[drawn], self.weight)


class ChunkSource:
    """The chunks of a data set, made on first use and kept: chunk i is rows i*n//N to (i+1)*n//N - 1.

    Arrays are converted to `dtype` once. A map that has it already, aligned and contiguous, is used in place,
    so that the processes of a node share its pages; anything else is copied here, because BLAS would copy it
    on every call.

    Raises UserError when there are more chunks than rows.
    """

    def __init__(self, dataset: Dataset | None, num_chunks: int, dtype: Any, backend: Backend) -> None:
        if dataset is not None and num_chunks > dataset.num_rows:
            raise UserError(
                f"{dataset.path}: {dataset.num_rows} rows cannot be cut into {num_chunks} chunks; "
                "use fewer workers or coding.chunks_per_worker"
            )
        self._dataset, self._num_chunks = dataset, num_chunks
        self._dtype, self._backend = np.dtype(dtype), backend
        self._chunks: dict[int, Chunk] = {}

    def costs(self) -> list[float] | None:
        """What the gradient of each chunk costs relative to an average one, by its rows (sparse: its stored entries).

        None without a data set, when nothing is known.
        """
        if self._dataset is None:
            return None
        ends = np.arange(self._num_chunks + 1) * self._dataset.num_rows // self._num_chunks
        sizes = np.diff(self._dataset.features[2][ends] if self._dataset.sparse else ends)
        return (sizes / sizes.mean()).clip(0.01).tolist() if sizes.any() else None

    def chunk(self, i: int) -> Chunk:
        """Chunk i, 0 <= i < num_chunks."""
        if not 0 <= i < self._num_chunks:
            raise UserError(f"chunk {i} does not exist, there are {self._num_chunks}")
        if i not in self._chunks:
            self._chunks[i] = self._load(i)
        return self._chunks[i]

    def flaw(self, i: int) -> str:
        """The first row of chunk i with a feature that is NaN or infinite, for messages; empty when there is none."""
        if self._dataset is None:
            return ""
        lo, hi = self._bounds(i, self._dataset)
        X, _ = self._dataset.rows(lo, hi)
        values = X.data if self._dataset.sparse else X
        places = np.argwhere(~np.isfinite(values))
        if not len(places):
            return ""
        first = places[0][0]
        row = lo + int(np.searchsorted(X.indptr, first, side="right") - 1 if self._dataset.sparse else first)
        return f"{self._dataset.path}: row {row} holds {values[tuple(places[0])]}"

    def _bounds(self, i: int, dataset: Dataset) -> tuple[int, int]:
        return i * dataset.num_rows // self._num_chunks, (i + 1) * dataset.num_rows // self._num_chunks

    def _load(self, i: int) -> Chunk:
        if self._dataset is None:
            return Chunk(i, None, None, 1 / self._num_chunks)
        num_rows = self._dataset.num_rows
        lo, hi = self._bounds(i, self._dataset)
        X, y = self._dataset.rows(lo, hi)
        if self._dataset.sparse:
            values, indices, indptr = self._usable(X.data), _in_place(X.indices), _in_place(X.indptr)
            X = self._backend.csr(self._backend.asarray(values), indices, indptr, X.shape)
        else:
            X = self._backend.asarray(self._usable(X))
        return Chunk(i, X, self._backend.asarray(self._usable(y)), (hi - lo) / num_rows)

    def _usable(self, array: np.ndarray) -> np.ndarray:
        try:
            with np.errstate(over="raise"):
                return _in_place(array, self._dtype)
        except FloatingPointError:
            assert self._dataset is not None
            raise UserError(f"{self._dataset.path}: holds numbers that are too large for {self._dtype}") from None


def _in_place(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """`array` as BLAS and SciPy can use it without copying: aligned, C-contiguous, of `dtype`."""
    return np.require(np.asarray(array), dtype, ["C", "A"])
