"""Numbers on their way from a file to a model: of the run's dtype, finite, and no whole number changed.

Floats are rounded to the run's dtype. A whole number may be a code or a count, of which rounding would make another
one, so it is refused where the dtype cannot hold it.
"""

from typing import Any

import numpy as np


def in_place(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """`array` as BLAS and SciPy can use it without copying: aligned, C-contiguous, of `dtype`; a copy if it is not."""
    with np.errstate(all="ignore"):  # what has become infinite is looked for by itself
        return np.require(np.asarray(array), dtype, ["C", "A"])


def label_dtype(stored: np.ndarray, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of labels for a model: int64 for whole numbers, which it may index with, else the run's."""
    return np.dtype(np.int64) if stored.dtype.kind in "iub" else dtype


def feature_dtype(stored: np.ndarray, dtype: np.dtype[Any], keeps_integers: bool) -> np.dtype[Any]:
    """The dtype of X for a model: the run's, or for whole numbers that are kept that of the file, in native order."""
    return stored.dtype.newbyteorder("=") if keeps_integers and stored.dtype.kind in "iub" else dtype


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
    beyond = converted >= float(limit)  # rounded up to 2**63 or the like: there is no way back
    mask = beyond | (np.where(beyond, 0, converted).astype(stored.dtype) != stored)
    return mask if mask.any() else None


def first_wrong(stored: np.ndarray, dtype: np.dtype[Any]) -> tuple[tuple[int, ...], str] | None:
    """The place of the first number that is no `dtype`, and what is wrong with it; None when all are right."""
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
