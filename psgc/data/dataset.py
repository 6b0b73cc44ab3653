"""A data set: rows of features and a label each, in one of four file formats.

| file | content |
|---|---|
| `.npz` | `X` (rows, features) and `y` (rows,) |
| `.npz` | `data`, `indices`, `indptr`, `shape` (the layout of `scipy.sparse.save_npz`, CSR) and `y` |
| `.npy` | `X`, with `y` in a second .npy file (`labels`) |
| else | LIBSVM text |

Anything else in a file would be ignored, and is refused. Opening a binary file reads headers and sparse row pointers
and nothing else; features are read chunk by chunk by whoever needs them.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from psgc.data.libsvm import read_libsvm
from psgc.data.npz import map_npy, map_npz
from psgc.errors import UserError

_SPARSE = ("data", "indices", "indptr", "shape")
_LARGEST_INT32 = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Dataset:
    """Rows of features with labels. Made by `open_data`; `path` is for messages.

    features: a (num_rows, num_features) array, or the CSR arrays (data, indices, indptr).
    y: (num_rows,) labels, as stored.
    """

    path: str
    num_rows: int
    num_features: int
    sparse: bool
    features: Any
    y: np.ndarray

    def rows(self, lo: int, hi: int) -> tuple[Any, np.ndarray]:
        """X (hi - lo, num_features), an array or a csr_array over the mapped file, and y (hi - lo,).

        Raises UserError when the rows of a sparse file name columns that do not exist.
        """
        if not self.sparse:
            return self.features[lo:hi], self.y[lo:hi]
        data, indices, indptr = self.features
        pointers = np.asarray(indptr[lo : hi + 1], np.int64)
        first, last = int(pointers[0]), int(pointers[-1])
        columns = indices[first:last]
        # Unchecked, SciPy would read outside its arrays; checked on opening, the whole file would be read.
        if columns.size and not (columns.min() >= 0 and columns.max() < self.num_features):
            raise UserError(
                f"{self.path}: damaged: rows {lo} to {hi - 1} hold columns outside 0..{self.num_features - 1}"
            )
        pointers = pointers - first
        if columns.dtype == np.int32 and last - first <= _LARGEST_INT32:
            pointers = pointers.astype(np.int32)  # of one type with the columns, or SciPy copies those
        X = scipy.sparse.csr_array((data[first:last], columns, pointers), shape=(hi - lo, self.num_features))
        return X, self.y[lo:hi]


def open_data(path: str, labels: str | None = None, num_features: int | None = None) -> Dataset:
    """Open a data file (formats: see the top of this file), memory-mapped where the format allows.

    path: the file; its suffix tells the format.
    labels: an .npy file with y, for files that hold only features.
    num_features: required number of columns, for a test set that must match the training set; LIBSVM text
        does not state its own and takes this one.

    Raises UserError: a file that is missing, damaged or of the wrong shape; the line says what was expected.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".npz":
        dataset = _from_npz(path, labels)
    elif suffix == ".npy":
        dataset = _dense(path, map_npy(path), _read_labels(path, labels))
    else:
        if labels is not None:
            raise UserError(f"{path}: LIBSVM text holds its own labels, leave out labels: {labels}")
        X, y = read_libsvm(path, num_features)
        dataset = _checked(path, X.shape, True, (X.data, X.indices, X.indptr), y)
    if num_features is not None and dataset.num_features != num_features:
        raise UserError(f"{path}: has {dataset.num_features} features, but the data it must match has {num_features}")
    return dataset


def _from_npz(path: str, labels: str | None) -> Dataset:
    arrays = map_npz(path)
    if labels is not None and "y" in arrays:
        raise UserError(f"{path}: holds its own y, leave out labels: {labels}")
    is_sparse = all(name in arrays for name in _SPARSE)
    if not is_sparse and "X" not in arrays:
        found = ", ".join(sorted(arrays))[:200] or "nothing"
        raise UserError(
            f"{path}: expected X and y, or data, indices, indptr, shape and y (sparse CSR), found {found!r}"
        )
    used = {"y", *((*_SPARSE, "format", "_is_array") if is_sparse else ("X",))}
    if unused := ", ".join(sorted(arrays.keys() - used)):
        raise UserError(f"{path}: holds {unused[:200]!r} besides, which would not be used")
    y = arrays["y"] if "y" in arrays else _read_labels(path, labels)
    if not is_sparse:
        return _dense(path, arrays["X"], y)
    if "format" in arrays and (arrays["format"].nbytes > 100 or arrays["format"].tobytes() != b"csr"):
        raise UserError(f"{path}: expected sparse format csr, found {arrays['format'].ravel()[:1].tobytes()[:20]!r}")
    return _sparse(path, arrays["data"], arrays["indices"], arrays["indptr"], arrays["shape"], y)


def _read_labels(path: str, labels: str | None) -> np.ndarray:
    if labels is None:
        raise UserError(f"{path}: holds features only; name the .npy file with y as labels")
    return map_npy(labels)


def _dense(path: str, X: np.ndarray, y: np.ndarray) -> Dataset:
    _check_numbers(path, "X", X, "fiub")
    if X.ndim != 2:
        raise UserError(f"{path}: expected X of shape (rows, features), found {X.shape}")
    return _checked(path, X.shape, False, X, y)


def _sparse(
    path: str, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: np.ndarray, y: np.ndarray
) -> Dataset:
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
    if indptr.shape != (num_rows + 1,) or indptr[0] != 0 or indptr[-1] != data.size or _descends(indptr):
        raise UserError(
            f"{path}: expected indptr of {num_rows + 1} entries ascending from 0 to {data.size}: damaged file"
        )
    return _checked(path, (num_rows, num_features), True, (data, indices, indptr), y)


def _checked(path: str, shape: tuple[int, ...], is_sparse: bool, features: Any, y: np.ndarray) -> Dataset:
    num_rows, num_features = shape
    _check_numbers(path, "y", y, "fiub")
    if num_rows == 0 or num_features == 0:
        raise UserError(f"{path}: holds no data: {num_rows} rows of {num_features} features")
    if y.shape != (num_rows,):
        raise UserError(f"{path}: expected one label for each of {num_rows} rows, found y of shape {y.shape}")
    return Dataset(path, num_rows, num_features, is_sparse, features, y)


def _check_numbers(path: str, name: str, array: np.ndarray, kinds: str) -> None:
    if array.dtype.kind not in kinds:
        expected = "numbers" if "f" in kinds else "whole numbers"
        raise UserError(f"{path}: expected {expected} in {name}, found dtype {array.dtype}")


def _descends(indptr: np.ndarray) -> bool:
    return bool(np.any(indptr[1:] < indptr[:-1]))
