"""Checks of plain arguments, shared by the public functions of `psgc.coding`."""

from __future__ import annotations

import numbers

import numpy as np

from psgc.errors import UserError


def whole(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int; UserError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise UserError(f"{name} is {value!r}; it must be a whole number >= {least}")
    return int(value)


def real_array(name: str, value: object, ndim: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return `value` as a float64 array; UserError unless it has `ndim` dimensions and holds no NaN."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must hold numbers, got {type(value).__name__}") from None
    if array.ndim != ndim:
        raise UserError(f"{name} has {array.ndim} dimensions (shape {array.shape}); it must have {ndim}")
    if np.isnan(array).any():
        raise UserError(f"{name} holds NaN")
    return array
