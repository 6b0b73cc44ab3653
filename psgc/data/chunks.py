"""Chunks: the rows that one gradient is computed over, as they lie in the memory of the process that computes it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc.backend import Array, Backend
from psgc.data.dataset import Dataset
from psgc.data.values import changed, first_wrong, in_place, label_dtype
from psgc.errors import UserError


@dataclass(frozen=True, eq=False)
class Chunk:
    """Chunk number `index` of the data.

    X: (rows, num_features), or with more dimensions, an array or a sparse CSR matrix of the backend, of the run's
        dtype; None when the problem brings its own data.
    y: (rows,) labels, int64 where they are stored as whole numbers, else of the run's dtype; None likewise.
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

    Numbers are checked when they are first used: all of a chunk in `chunk`, the drawn rows in `sample`. A large map is
    never read only to check it.

    Raises UserError when there are more chunks than rows; so do `chunk` and `sample` for numbers that cannot be used,
    with the row and the column of the first one (`psgc.data.values`).
    """

    def __init__(self, dataset: Dataset | None, num_chunks: int, dtype: Any, backend: Backend) -> None:
        if dataset is not None and num_chunks > dataset.num_rows:
            raise UserError(
                f"{dataset.path}: {dataset.num_rows} rows cannot be cut into {num_chunks} chunks; "
                "use fewer workers or coding.chunks_per_worker"
            )
        self._dataset, self.num_chunks = dataset, num_chunks
        self._dtype, self._backend = np.dtype(dtype), backend
        self._chunks: dict[int, Chunk] = {}
        self._checked: set[int] = set()

    def costs(self) -> list[float] | None:
        """What the gradient of each chunk costs relative to an average one, by its rows (sparse: its stored entries).

        None without a data set, when nothing is known.
        """
        if self._dataset is None:
            return None
        ends = np.arange(self.num_chunks + 1) * self._dataset.num_rows // self.num_chunks
        sizes = np.diff(self._dataset.features[2][ends] if self._dataset.sparse else ends)
        return (sizes / sizes.mean()).clip(0.01).tolist() if sizes.any() else None

    def chunk(self, i: int) -> Chunk:
        """Chunk i, 0 <= i < num_chunks."""
        chunk = self._kept(i)
        if i not in self._checked:
            self._check(i, chunk)
            self._checked.add(i)
        return chunk

    def sample(self, i: int, batch: int, rng: np.random.Generator) -> Chunk:
        """`batch` rows of chunk i (`Chunk.sample`)."""
        whole = self._kept(i)
        drawn = whole.sample(batch, rng)
        if drawn is whole:
            return self.chunk(i)
        self._check(i, drawn)
        return drawn

    def check(self, i: int) -> None:
        """Look at all of chunk i, and keep nothing."""
        self._check(i, self._load(i))

    def _kept(self, i: int) -> Chunk:
        if i not in self._chunks:
            self._chunks[i] = self._load(i)
        return self._chunks[i]

    def _load(self, i: int) -> Chunk:
        if self._dataset is None:
            return Chunk(i, None, None, 1 / self.num_chunks)
        lo, hi = self._bounds(i, self._dataset)
        X, y = self._dataset.rows(lo, hi)
        features = X.data if self._dataset.sparse else X
        values, labels = in_place(features, self._dtype), in_place(y, label_dtype(y, self._dtype))
        if changed(features, values) is not None or changed(y, labels) is not None:
            raise self._refusal(i, self._dataset)
        if self._dataset.sparse:
            X = self._backend.csr(self._backend.asarray(values), in_place(X.indices), in_place(X.indptr), X.shape)
        else:
            X = self._backend.asarray(values)
        return Chunk(i, X, self._backend.asarray(labels), (hi - lo) / self._dataset.num_rows)

    def _check(self, i: int, chunk: Chunk) -> None:
        """Raises UserError unless all numbers of `chunk`, some or all rows of chunk i, are finite."""
        if self._dataset is None:
            return
        features = chunk.X.data if self._dataset.sparse else chunk.X
        if not (self._backend.all_finite(features) and self._backend.all_finite(chunk.y)):
            raise self._refusal(i, self._dataset)

    def _refusal(self, i: int, dataset: Dataset) -> UserError:
        """What is wrong with chunk i, given that something is."""
        lo, hi = self._bounds(i, dataset)
        X, y = dataset.rows(lo, hi)
        if (wrong := first_wrong(X.data if dataset.sparse else X, self._dtype)) is not None:
            (first, *rest), what = wrong
            if dataset.sparse:
                first, rest = int(np.searchsorted(X.indptr, first, side="right")) - 1, [int(X.indices[first])]
            column = f"column {rest[0]}" if len(rest) == 1 else f"place {tuple(rest)}"
            return UserError(f"{dataset.path}: row {lo + first}, {column} of X (counted from 0) {what}")
        wrong = first_wrong(y, label_dtype(y, self._dtype))
        assert wrong is not None
        (row,), what = wrong
        return UserError(f"{dataset.path}: the label of row {lo + row} (counted from 0) {what}")

    def _bounds(self, i: int, dataset: Dataset) -> tuple[int, int]:
        return i * dataset.num_rows // self.num_chunks, (i + 1) * dataset.num_rows // self.num_chunks
