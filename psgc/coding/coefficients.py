"""Encoding and decoding coefficients: what multiplies the parts of a gradient, and what undoes it.

R[S] is the small matrix made of the rows of the coding matrix R that belong to the contributors S of one
chunk: shape (s, l), s = |S|, l = `parts`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from psgc.coding.arguments import real_array, whole
from psgc.errors import UserError

Matrix: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def encoding_coefficients(rows: ArrayLike) -> Matrix:
    """X with R[S]^T X = I_l: worker j of S adds sum_k X[j, k] g[k] to its coded gradient.

    Args:
        rows: R[S], shape (s, l).

    Returns:
        X, shape (s, l): of minimum norm when s > l, the least-squares solution when s < l.

    Raises:
        UserError: `rows` is not a matrix of finite numbers.

    Notes:
        X = (R[S]^+)^T in all three cases. The server forms part k as sum_j R[j, k] y_j, that is R[S]^T X g: g
        itself when R[S] has rank l, otherwise the projection of g on the row space of R[S].

    References:
        arXiv:2405.19509, the protocol in which workers encode once their contributors are known.

    Example:
        >>> R = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> X = encoding_coefficients(R)
        >>> bool(np.allclose(R.T @ X, np.eye(2)))
        True
    """
    return np.asarray(np.linalg.pinv(_finite_matrix(rows)).T, np.float64)


def decoding_coefficients(rows: ArrayLike) -> Matrix:
    """D = R[S]^-1: the parts of a chunk's gradient are D @ Y, Y the coded gradients of its l contributors.

    Args:
        rows: R[S], shape (l, l).

    Returns:
        D, shape (l, l).

    Raises:
        UserError: `rows` is not a square, invertible matrix of finite numbers.

    Example:
        >>> R = np.array([[1.0, 0.0], [0.6, 0.8]])
        >>> G = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # two parts of three entries
        >>> bool(np.allclose(decoding_coefficients(R) @ (R @ G), G))
        True
    """
    matrix = _finite_matrix(rows)
    if matrix.shape[0] != matrix.shape[1]:
        raise UserError(f"decoding needs as many contributors as parts, got rows of shape {matrix.shape}")
    try:
        return np.asarray(np.linalg.inv(matrix), np.float64)
    except np.linalg.LinAlgError:
        raise UserError("these contributors cannot decode: their coding vectors are dependent") from None


def squared_error_measure(copies: ArrayLike, parts: int) -> int:
    """How much an approximate gradient misses: sum over i of max(0, l - |S_i|).

    Args:
        copies: |S_i| of every chunk, shape (N,), whole numbers >= 0.
        parts: l.

    Returns:
        The measure, 0 exactly when every chunk can be decoded. The paper's plots show its square root.

    Raises:
        UserError: `copies` is not a vector of whole numbers >= 0, or parts < 1.

    References:
        arXiv:2405.19509, the error measure of approximate gradient coding.

    Example:
        >>> squared_error_measure([3, 1, 0], parts=2)
        3
    """
    parts, counts = whole("parts", parts), real_array("copies", copies, 1)
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts % 1 != 0).any():
        raise UserError("copies must be whole numbers >= 0")
    return int(np.maximum(0, parts - counts).sum())


def _finite_matrix(rows: ArrayLike) -> Matrix:
    matrix = real_array("rows", rows, 2)
    if not np.isfinite(matrix).all():
        raise UserError("rows holds an infinite number")
    return matrix
