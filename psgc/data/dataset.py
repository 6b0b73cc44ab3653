"""A data set: rows of features and a label each, in arrays or in one of four file formats.

| file | content |
|---|---|
| `.npz` | `X` (rows, features), or with more dimensions, and `y` (rows,) |
| `.npz` | `data`, `indices`, `indptr`, `shape` (the layout of `scipy.sparse.save_npz`, CSR) and `y` |
| `.npy` | `X`, with `y` in a second .npy file (`labels`) |
| else | LIBSVM text, compressed by gzip when it is called `.gz` |

Anything else in a file is refused. Opening a binary file only reads headers and sparse row pointers. Features are read
later, chunk by chunk.
"""

import math
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.sparse

from psgc.data.libsvm import read_libsvm
from psgc.data.npz import map_npy, map_npz
from psgc.errors import UserError, one_line

_SPARSE = ("data", "indices", "indptr", "shape")
_LARGEST_INT32 = np.iinfo(np.int32).max

_KEYS = ("X", "y", "X_test", "y_test")
EXPECTED_ARRAYS = f"expected (X, y), X, or a mapping with some of {', '.join(_KEYS)}"

IndexBase = Literal["auto", 0, 1]


@dataclass(frozen=True)
class Dataset:
    """Rows of features with labels, as `open_data` returns them."""

    path: str  # for errors
    num_rows: int
    num_features: int  # numbers in a row, all dimensions together
    sparse: bool
    features: Any  # an array (num_rows, num_features) or with more dimensions, or CSR arrays (data, indices, indptr)
    y: np.ndarray | None  # (num_rows,) labels, as stored
    index_base: int | None = None  # the first index of a LIBSVM text, 0 or 1
    keeps_integers: bool = False  # whether whole numbers in a dense X keep their dtype, for a user's model
    held_out: "Dataset | None" = None  # the test data that came with these rows

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row of X: (num_features,), or that of an array with more dimensions."""
        return (self.num_features,) if self.sparse else tuple(self.features.shape[1:])

    def rows(self, lo: int, hi: int) -> tuple[Any, np.ndarray | None]:
        """X (hi - lo, *row_shape), an array or a csr_array over the mapped file, and y (hi - lo,).

        Raises UserError when the rows of a sparse file name columns that do not exist.
        """
        y = None if self.y is None else self.y[lo:hi]
        if not self.sparse:
            return self.features[lo:hi], y
        data, indices, indptr = self.features
        pointers = np.asarray(indptr[lo : hi + 1], np.int64)
        entries = slice(int(pointers[0]), int(pointers[-1]))
        return self._csr(data[entries], indices[entries], pointers - pointers[0], lo, hi - 1), y

    def take(self, rows: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """The rows with these numbers, in this order, at least one. Returns copies, see `rows`. Reads no other rows."""
        y = None if self.y is None else np.asarray(self.y)[rows]
        if not self.sparse:
            return np.asarray(self.features)[rows], y
        data, indices, indptr = self.features
        begins = np.asarray(indptr[rows], np.int64)
        pointers = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.asarray(indptr[rows + 1], np.int64) - begins, out=pointers[1:])
        entries = np.arange(pointers[-1]) + np.repeat(begins - pointers[:-1], np.diff(pointers))
        return self._csr(data[entries], indices[entries], pointers, int(rows.min()), int(rows.max())), y

    def _csr(
        self, data: np.ndarray, columns: np.ndarray, pointers: np.ndarray, first: int, last: int
    ) -> scipy.sparse.csr_array:
        """Rows between `first` and `last`. Raises UserError when they name columns that do not exist."""
        # Unchecked, SciPy would read outside its arrays; checked on opening, the whole file would be read.
        if columns.size and not (columns.min() >= 0 and columns.max() < self.num_features):
            raise UserError(
                f"{self.path}: damaged: rows {first} to {last} hold columns outside 0..{self.num_features - 1}"
            )
        if columns.dtype == np.int32 and pointers[-1] <= _LARGEST_INT32:
            pointers = pointers.astype(np.int32)  # the dtype of the columns, since otherwise SciPy copies these
        return scipy.sparse.csr_array((data, columns, pointers), shape=(len(pointers) - 1, self.num_features))


def open_data(
    path: str,
    labels: str | None = None,
    like: Dataset | None = None,
    index_base: IndexBase = "auto",
    copies: int = 1,
) -> Dataset:
    """Open a data file, whose suffix tells the format (see above). It is memory-mapped if the format allows.

    labels: an .npy file with y, for files without labels
    like: the training data, for a test set: rows must have the same shape, and indices the same first index
    index_base: the first index of a LIBSVM text; auto: 0 if there is an index 0, else 1
    copies: number of processes of this host that open the file; each holds all of it if it cannot be mapped

    Raises UserError: a file that is missing, damaged, of the wrong shape or too large for the memory.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".npz":
        dataset = _from_npz(path, labels, copies)
    elif suffix == ".npy":
        dataset = dense(path, map_npy(path), _read_labels(path, labels))
    elif labels is not None:
        raise UserError(f"{path}: LIBSVM text holds its own labels, leave out labels: {labels}")
    else:
        dataset = _from_text(path, like, index_base, copies)
    return dataset if like is None else checked_like(dataset, like)


def checked_like(test: Dataset, like: Dataset) -> Dataset:
    """Returns `test`. Raises UserError unless its rows have the shape of those of `like`."""
    if test.row_shape != like.row_shape:
        raise UserError(
            f"{test.path}: has {_features(test.row_shape)}, but {like.path}, which it must match, "
            f"has {_features(like.row_shape)}"
        )
    return test


def _features(row_shape: tuple[int, ...]) -> str:
    return f"{row_shape[0]} features" if len(row_shape) == 1 else f"rows of shape {row_shape}"


def _from_text(path: str, like: Dataset | None, index_base: IndexBase, copies: int) -> Dataset:
    values, indices, indptr, y = read_libsvm(path, copies)
    # A text that counts from 0 and never names the first feature cannot be told from one that counts from 1.
    lowest, largest = int(indices.min(initial=1)), int(indices.max(initial=0))
    found = 0 if lowest == 0 else 1
    base = found if index_base == "auto" else index_base
    why = f"data.index_base is {base}"
    if like is not None and like.index_base is not None and index_base == "auto":
        base = like.index_base
        why = f"{like.path} holds none and counts from 1; give data.index_base: 0 if both count from 0"
    if found < base:
        row = int(np.searchsorted(indptr, int(indices.argmin()), side="right")) - 1
        raise UserError(f"{path}: row {row} holds the index 0, but {why}")
    num_features = largest + 1 - base
    if num_features > _LARGEST_INT32:
        raise UserError(f"{path}: expected at most {_LARGEST_INT32} features, found {num_features}")
    if like is not None:
        if num_features > like.num_features:
            raise UserError(
                f"{path}: holds the index {largest}, counted from {base} (data.index_base), "
                f"but {like.path} has {like.num_features} features"
            )
        num_features = like.num_features
    return _checked(path, (len(y), num_features), True, (values, indices - np.intc(base), indptr), y, base)


def _from_npz(path: str, labels: str | None, copies: int) -> Dataset:
    arrays = map_npz(path, copies)
    if labels is not None and "y" in arrays:
        raise UserError(f"{path}: holds its own y, leave out labels: {labels}")
    is_sparse = all(name in arrays for name in _SPARSE)
    if not is_sparse and "X" not in arrays:
        found = ", ".join(sorted(arrays))[:200] or "nothing"
        raise UserError(
            f"{path}: expected X and y, or data, indices, indptr, shape and y (sparse CSR), found {found!r}"
        )
    y = arrays.pop("y") if "y" in arrays else _read_labels(path, labels)
    if is_sparse:
        return of_csr(path, arrays, y)
    _check_unused(path, arrays.keys() - {"X"})
    return dense(path, arrays["X"], y)


def of_csr(path: str, arrays: Mapping[str, np.ndarray], y: np.ndarray | None = None) -> Dataset:
    """The data set of the arrays that scipy.sparse.save_npz writes of a CSR matrix, as `dense`."""
    layout = arrays.get("format", np.array(b"csr"))
    if layout.nbytes > 100 or layout.tobytes() != b"csr":
        raise UserError(f"{path}: expected sparse format csr, found {layout.ravel()[:1].tobytes()[:20]!r}")
    if lacking := [name for name in _SPARSE if name not in arrays]:
        raise UserError(f"{path}: lacks {', '.join(lacking)} of a sparse matrix (CSR)")
    _check_unused(path, arrays.keys() - {*_SPARSE, "format", "_is_array"})
    return sparse(path, arrays["data"], arrays["indices"], arrays["indptr"], arrays["shape"], y)


def _check_unused(path: str, names: Set[str]) -> None:
    if names:
        raise UserError(f"{path}: holds {', '.join(sorted(names))[:200]!r} besides, which would not be used")


def _read_labels(path: str, labels: str | None) -> np.ndarray:
    if labels is None:
        raise UserError(f"{path}: holds features only; name the .npy file with y as labels")
    return map_npy(labels)


def dense(path: str, X: np.ndarray, y: np.ndarray | None) -> Dataset:
    """The data set of an array (num_rows, ...) and labels. path: for errors. Raises UserError."""
    _check_numbers(path, "X", X, "fiub")
    if X.ndim < 2:
        raise UserError(f"{path}: expected X of shape (rows, features) or with more dimensions, found {X.shape}")
    return _checked(path, X.shape, False, X, y)


def sparse(
    path: str, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: np.ndarray, y: np.ndarray | None
) -> Dataset:
    """The data set of CSR arrays and labels, as `dense`."""
    _check_numbers(path, "data", data, "fiub")
    for name, array in (("indices", indices), ("indptr", indptr), ("shape", shape)):
        _check_numbers(path, name, array, "iu")
    if shape.shape != (2,) or shape.min() < 0 or data.ndim != 1 or indices.shape != data.shape:
        raise UserError(
            f"{path}: expected shape (2,) and data and indices of one length, "
            f"found {shape.shape}, {data.shape} and {indices.shape}"
        )
    num_rows, num_features = (int(length) for length in shape)
    if num_features > _LARGEST_INT32:
        raise UserError(f"{path}: expected at most {_LARGEST_INT32} features, found {num_features}")
    if indptr.shape != (num_rows + 1,) or indptr[0] != 0 or indptr[-1] != data.size or (indptr[1:] < indptr[:-1]).any():
        raise UserError(
            f"{path}: expected indptr of {num_rows + 1} entries ascending from 0 to {data.size}: damaged file"
        )
    return _checked(path, (num_rows, num_features), True, (data, indices, indptr), y)


def _checked(
    path: str,
    shape: tuple[int, ...],
    is_sparse: bool,
    features: Any,
    y: np.ndarray | None,
    index_base: int | None = None,
) -> Dataset:
    num_rows, num_features = shape[0], math.prod(shape[1:])
    if num_rows == 0 or num_features == 0:
        raise UserError(f"{path}: holds no data: {num_rows} rows of {num_features} features")
    if y is not None:
        _check_numbers(path, "y", y, "fiub")
    if y is not None and y.shape != (num_rows,):
        raise UserError(f"{path}: expected one label for each of {num_rows} rows, found y of shape {y.shape}")
    return Dataset(path, num_rows, num_features, is_sparse, features, y, index_base)


def _check_numbers(path: str, name: str, array: np.ndarray, kinds: str) -> None:
    if array.dtype.kind not in kinds:
        expected = "numbers" if "f" in kinds else "whole numbers"
        raise UserError(f"{path}: expected {expected} in {name}, found dtype {array.dtype}")


# what a user's function returns


def from_arrays(where: str, returned: Any) -> Dataset:
    """A data set of the rows in `returned`, which are not copied. `held_out` has X_test and y_test. Raises UserError.

    where: the name of the function, for errors
    returned: (X, y), X, or a mapping with X and perhaps y, X_test, y_test. X is an array (rows, features), or with more
        dimensions, or a sparse matrix of SciPy; y (rows,) contains numbers.
    """
    if isinstance(returned, tuple) and len(returned) == 2:
        returned = {"X": returned[0], "y": returned[1]}
    elif not isinstance(returned, Mapping):
        if not hasattr(returned, "shape"):
            size = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
            raise UserError(f"{where} returned a {type(returned).__name__}{size}; {EXPECTED_ARRAYS}")
        returned = {"X": returned}
    given = {name: value for name, value in returned.items() if value is not None}
    if unknown := [str(name) for name in given if name not in _KEYS]:
        raise UserError(f"{where} returned a mapping with {', '.join(unknown)[:200]}; {EXPECTED_ARRAYS}")
    if "X" not in given:
        raise UserError(f"{where} returned a mapping without X; {EXPECTED_ARRAYS}")
    dataset = _of_arrays(where, given["X"], given.get("y"))
    if "X_test" not in given:
        if "y_test" in given:
            raise UserError(f"{where} returned a mapping with y_test, but without X_test")
        return dataset
    if ("y" in given) != ("y_test" in given):
        one, other = ("y", "y_test") if "y" in given else ("y_test", "y")
        raise UserError(f"{where} returned a mapping with {one}, but without {other}")
    test = _of_arrays(f"{where}, the test data", given["X_test"], given.get("y_test"))
    return replace(dataset, held_out=checked_like(test, dataset))


def _of_arrays(where: str, X: Any, y: Any) -> Dataset:
    labels = None if y is None else _read_only(where, "y", y)
    is_sparse: bool = scipy.sparse.issparse(X)
    if not is_sparse:
        return dense(where, _read_only(where, "X", X), labels)
    csr = scipy.sparse.csr_array(X)
    return sparse(where, csr.data, csr.indices, csr.indptr, np.array(csr.shape), labels)


def _read_only(where: str, name: str, value: Any) -> np.ndarray:
    """`value` as a read-only array; a view if it is an array or a memory map."""
    try:
        array = np.asarray(value).view()
    except Exception as error:  # a user's class may raise anything
        raise UserError(f"{where}: {name} is a {type(value).__name__}, no array: {one_line(error)}") from error
    array.setflags(write=False)
    return array
