"""Encoding and decoding coefficients: what multiplies the parts of a gradient, and what undoes it.

R[S] is the small matrix made of the rows of the coding matrix R that belong to the contributors S of one
chunk: shape (s, l), s = |S|, l = `parts`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from psgc.errors import UserError

Matrix: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def encoding_coefficients(rows: Matrix) -> Matrix:
    """X, shape (s, l), with R[S]^T X = I_l: worker j of S adds sum_k X[j, k] g[k] to its coded gradient.

    It is of minimum norm when s > l, the least-squares solution when s < l: X = (R[S]^+)^T in all three cases. The
    server forms part k as sum_j R[j, k] y_j, that is R[S]^T X g: g itself when R[S] has rank l, otherwise the
    projection of g on the row space of R[S]. `rows` is R[S].

    Source: arXiv:2405.19509, the protocol in which workers encode once their contributors are known.

    >>> R = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> X = encoding_coefficients(R)
    >>> bool(np.allclose(R.T @ X, np.eye(2)))
    True
    """
    return np.asarray(np.linalg.pinv(rows).T, np.float64)


def decoding_coefficients(rows: Matrix) -> Matrix:
    """D = R[S]^-1, shape (l, l): a chunk's parts are D @ Y, Y the coded gradients of its l contributors.

    Raises UserError: `rows`, R[S], cannot be inverted.

    >>> R = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> G = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # two parts of three entries
    >>> bool(np.allclose(decoding_coefficients(R) @ (R @ G), G))
    True
    """
    try:
        return np.asarray(np.linalg.inv(rows), np.float64)
    except np.linalg.LinAlgError:
        raise UserError("these contributors cannot decode: their coding vectors are dependent") from None
