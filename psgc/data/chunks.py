"""Chunks: the rows of one gradient, in the memory of the process that computes it.

Numbers are converted to the run's dtype, and must be finite. Floats are rounded. A whole number may be a code or a
count, which rounding would change. So it is refused if the dtype cannot hold it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from psgc.backend import Array, Backend
from psgc.data.dataset import Dataset
from psgc.data.epochs import bounds
from psgc.errors import UserError

Rows: TypeAlias = range | np.ndarray


class OfSeveral:
    """The `index` of several chunks in one pass. A model that uses it raises an exception, and gets them one by one."""

    def _refuse(self, *_: object) -> Any:
        raise TypeError("several chunks in one pass have no index")

    __eq__ = __hash__ = __bool__ = __int__ = __index__ = __str__ = __format__ = _refuse


OF_SEVERAL: Any = OfSeveral()


@dataclass(frozen=True, eq=False)
class Chunk:
    """Chunk number `index` of the data.

    X: (rows, num_features), or with more dimensions: an array or a sparse CSR matrix of the backend, of the run's
        dtype; whole numbers keep their dtype for a user's problem. None when the problem has its own data.
    y: (rows,), the labels: int64 if they are stored as whole numbers, else the run's dtype. None without labels, or
        when the problem has its own data.
    weight: share of the rows of the data, or with epochs of the iteration's rows; all weights add up to 1
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
        return Chunk(self.index, self.X[drawn], None if self.y is None else self.y[drawn], self.weight)


class ChunkSource:
    """The chunks of a data set, made on first use and kept: chunk i is rows i*n//N to (i+1)*n//N - 1.

    Arrays are converted to `dtype` once. A memory map with this dtype, aligned and contiguous, is used in place, so
    that the processes of a node share its pages. Other arrays are copied, since BLAS would copy them on every call.

    Numbers are checked when they are first used: a whole chunk in `chunk`, the drawn rows in `sample` and `take`.

    Raises UserError when there are more chunks than rows. `chunk`, `sample` and `take` raise it for invalid numbers,
    with row and column of the first one.
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
        self._runs: dict[int, Chunk] = {}  # by chunk: the block of consecutive chunks of which it is a view
        self._checked: set[int] = set()

    def costs(self) -> list[float] | None:
        """The cost of each chunk relative to an average one, by its rows or stored entries; None without a data set."""
        if self._dataset is None:
            return None
        ends = np.arange(self.num_chunks + 1) * self._dataset.num_rows // self.num_chunks
        sizes = np.diff(self._dataset.features[2][ends] if self._dataset.sparse else ends)
        return (sizes / sizes.mean()).clip(0.01).tolist() if sizes.any() else None

    @property
    def num_rows(self) -> int | None:
        """Rows of the data set; None without one."""
        return None if self._dataset is None else self._dataset.num_rows

    def chunk(self, i: int) -> Chunk:
        """Chunk i, 0 <= i < num_chunks."""
        chunk = self._kept(i)
        if i not in self._checked:
            self._check(chunk, self._range(i))
            self._checked.add(i)
        return chunk

    def joined(self, first: int, many: int) -> Chunk:
        """`many` chunks from `first` on as one chunk. If the source `joins`, their rows are not copied."""
        weight = sum(self.chunk(i).weight for i in range(first, first + many))  # `chunk` checks them
        if not self._is_in_place and self.joins:
            return self._cut(self._run(first, many), first, many, weight)
        return self._load(first, self._rows(first, many), weight)

    @property
    def joins(self) -> bool:
        """Whether `joined` works without copying rows each time."""
        return self._is_in_place or (self._dataset is not None and not self._dataset.sparse)

    def _run(self, first: int, many: int) -> Chunk:
        """One block of memory with these chunks and their kept neighbours, which become views of it."""
        if (run := self._runs.get(first)) is None or run is not self._runs.get(first + many - 1):
            low, high = first, first + many
            while low - 1 in self._chunks:
                low -= 1
            while high in self._chunks:
                high += 1
            run = self._load(low, self._rows(low, high - low), 0.0)
            for i in range(low, high):
                self._runs[i], self._chunks[i] = run, self._cut(run, i, 1, self._chunks[i].weight)
        return run

    def _cut(self, run: Chunk, first: int, many: int, weight: float) -> Chunk:
        rows, begin = self._rows(first, many), self._range(run.index).start
        at = slice(rows.start - begin, rows.stop - begin)
        return Chunk(first, run.X[at], None if run.y is None else run.y[at], weight)

    def _rows(self, first: int, many: int) -> range:
        return range(self._range(first).start, self._range(first + many - 1).stop)

    @cached_property
    def _is_in_place(self) -> bool:
        """Whether rows are used in place, in the memory of a map."""
        if self._dataset is None or self._backend.xp is not np:
            return False
        two = range(min(2, self._dataset.num_rows))  # of which a single one would always be contiguous
        _, arrays = _stored(self._dataset, two, self._dtype)
        return all(in_place(array, dtype) is array for array, dtype in arrays)

    def each(self) -> Iterator[Chunk]:
        """All chunks in order, each read when it is taken. Chunks that are not in memory yet are not kept."""
        for i in range(self.num_chunks):
            if i in self._chunks:
                yield self.chunk(i)
            else:
                chunk = self._whole(i)
                self._check(chunk, self._range(i))
                yield chunk

    def sample(self, i: int, batch: int, rng: np.random.Generator) -> Chunk:
        whole = self._kept(i)
        drawn = whole.sample(batch, rng)
        if drawn is whole:
            return self.chunk(i)
        self._check(drawn, self._range(i))
        return drawn

    def take(self, i: int, rows: np.ndarray, weight: float) -> Chunk:
        """These rows of the whole data as chunk i: a copy, which is not kept. Needs a data set."""
        taken = self._load(i, rows, weight)
        self._check(taken, rows)
        return taken

    def check(self, i: int, rows: np.ndarray | None = None) -> None:
        """Check these rows, or all of chunk i, without keeping them."""
        wanted = self._range(i) if rows is None else rows
        self._check(self._load(i, wanted, 0.0), wanted)

    def _kept(self, i: int) -> Chunk:
        if i not in self._chunks:
            self._chunks[i] = self._whole(i)
        return self._chunks[i]

    def _whole(self, i: int) -> Chunk:
        rows = self._range(i)
        return self._load(i, rows, 1 / self.num_chunks if self._dataset is None else len(rows) / self._dataset.num_rows)

    def _range(self, i: int) -> range:
        return range(0) if self._dataset is None else range(*bounds(i, self._dataset.num_rows, self.num_chunks))

    def _load(self, i: int, rows: Rows, weight: float) -> Chunk:
        if self._dataset is None:
            return Chunk(i, None, None, weight)
        X, arrays = _stored(self._dataset, rows, self._dtype)
        converted = [in_place(array, dtype) for array, dtype in arrays]
        if any(changed(array, new) is not None for (array, _), new in zip(arrays, converted, strict=True)):
            raise self._refusal(self._dataset, rows)
        values, *labels = map(self._backend.asarray, converted)
        if self._dataset.sparse:
            values = self._backend.csr(values, in_place(X.indices), in_place(X.indptr), X.shape)
        return Chunk(i, values, labels[0] if labels else None, weight)

    def _check(self, chunk: Chunk, rows: Rows) -> None:
        """Raises UserError unless all numbers of `chunk` are finite. rows: its rows, for the error."""
        if self._dataset is None:
            return
        for numbers in (chunk.X.data if self._dataset.sparse else chunk.X, chunk.y):
            if numbers is not None and numbers.dtype.kind == "f" and not self._backend.all_finite(numbers):
                raise self._refusal(self._dataset, rows)

    def _refusal(self, dataset: Dataset, rows: Rows) -> UserError:
        """The error for the first wrong number in these rows; there must be one."""
        X, (features, *labels) = _stored(dataset, rows, self._dtype)
        if (wrong := first_wrong(*features)) is not None:
            (first, *rest), what = wrong
            if dataset.sparse:
                first, rest = int(np.searchsorted(X.indptr, first, side="right")) - 1, [int(X.indices[first])]
            column = f"column {rest[0]}" if len(rest) == 1 else f"place {tuple(rest)}"
            return UserError(f"{dataset.path}: row {rows[first]}, {column} of X (counted from 0) {what}")
        wrong = first_wrong(*labels[0])
        assert wrong is not None
        (row,), what = wrong
        return UserError(f"{dataset.path}: the label of row {rows[row]} (counted from 0) {what}")


def _stored(dataset: Dataset, rows: Rows, dtype: np.dtype[Any]) -> tuple[Any, list[tuple[np.ndarray, np.dtype[Any]]]]:
    """X of these rows, a view if they are consecutive; and its numbers and the labels, each with its dtype for a model.

    That is the run's. But labels that are whole numbers become int64, since a model may index with them, and whole
    numbers in X that are kept have the file's, in native byte order.
    """
    X, y = dataset.rows(rows.start, rows.stop) if isinstance(rows, range) else dataset.take(rows)
    numbers = X.data if dataset.sparse else X
    is_kept = dataset.keeps_integers and not dataset.sparse and numbers.dtype.kind in "iub"
    arrays = [(numbers, numbers.dtype.newbyteorder("=") if is_kept else dtype)]
    if y is not None:
        arrays.append((y, np.dtype(np.int64) if y.dtype.kind in "iub" else dtype))
    return X, arrays


def in_place(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """`array` as BLAS and SciPy can use it without copying: aligned, C-contiguous, of `dtype`; a copy if it is not."""
    with np.errstate(all="ignore"):  # `ChunkSource` looks for infinite numbers itself
        return np.require(np.asarray(array), dtype, ["C", "A"])


def changed(stored: np.ndarray, converted: np.ndarray) -> np.ndarray | None:
    """A mask of the whole numbers that the conversion has changed; None when it has changed none."""
    if stored.dtype.kind not in "iu" or not stored.size:
        return None
    if converted.dtype.kind == stored.dtype.kind and converted.dtype.itemsize >= stored.dtype.itemsize:
        return None
    whole = converted.dtype.kind == "i"
    # all whole numbers up to here exist in the new dtype
    exact = np.iinfo(converted.dtype).max if whole else 2 ** (np.finfo(converted.dtype).nmant + 1)
    limit = np.iinfo(stored.dtype).max
    if limit <= exact or (int(stored.max()) <= exact and int(stored.min()) >= -exact):
        return None
    if whole:
        return np.asarray(stored > exact)
    beyond = converted >= float(limit)  # rounded up to 2**63 or the like, so it cannot be converted back
    mask = beyond | (np.where(beyond, 0, converted).astype(stored.dtype) != stored)
    return mask if mask.any() else None


def first_wrong(stored: np.ndarray, dtype: np.dtype[Any]) -> tuple[tuple[int, ...], str] | None:
    """The place of the first number that `dtype` cannot hold, and what is wrong with it; None when all are right."""
    converted = in_place(stored, dtype)
    mask = changed(stored, converted)
    if mask is None:
        mask = ~np.isfinite(converted)
        if not mask.any():
            return None
    place = tuple(np.argwhere(mask)[0].tolist())
    value = stored[place].item()
    if not np.isfinite(value):
        return place, f"is {value}, expected finite numbers"
    if stored.dtype.kind == "f":
        return place, f"is {value:g}, too large for {dtype}; take dtype: float64"
    if dtype.kind == "i":
        return place, f"is {value}, expected whole numbers below 2^63"
    fits_float64 = dtype.itemsize < 8 and abs(value) <= 2**53
    remedy = "take dtype: float64" if fits_float64 else "store X as floats if it may be rounded"
    return place, f"is {value}, which {dtype} cannot hold: it would become {converted[place]:.0f}; {remedy}"
