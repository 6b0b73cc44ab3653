"""Which copies of a chunk agree: the redundancy of a code, used to find errors.

The coded gradients of one chunk are y_j = sum_k R[j, k] g[k]: l = `parts` of them determine the l parts of g, and every
further one has to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgc.coding.coefficients import Matrix

LEAST_SHARE = 1e-8  # of the largest coefficient of a relation: a copy with a smaller one is not checked by the others


def relation(rows: ArrayLike) -> Matrix | None:
    """c with sum_j c[j] R[j] = 0, and so sum_j c[j] y_j = 0 whatever the gradient is.

    Args:
        rows: R[S], shape (l + 1, l), the first l of them independent.

    Returns:
        c, shape (l + 1,), its last entry 1; None when the first l rows are dependent.

    Example:
        >>> relation([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        array([-0.6, -0.8,  1. ])
    """
    matrix = np.asarray(rows, np.float64)
    try:
        return np.append(-np.linalg.solve(matrix[:-1].T, matrix[-1]), 1.0)
    except np.linalg.LinAlgError:
        return None


def consistent(rows: ArrayLike, copies: Sequence[Any], tolerance: float) -> bool:
    """Whether l + 1 coded gradients can come from one gradient: |sum_j c_j y_j| <= tolerance * max_j |c_j y_j|.

    Args:
        rows: R[S], shape (l + 1, l).
        copies: the coded gradients y_j, vectors of the same length, of NumPy or CuPy.
        tolerance: of the largest entry, relative. With l = 1 it is |y_1 - y_2| against the larger of |y_1| and |y_2|.

    Returns:
        False as well when an entry is NaN or infinite, or when the first l rows are dependent.

    Notes:
        |.| is the largest entry: an error in a single one is not lost among many. An error e in copy j is seen when
        |e| > tolerance * max_k |c_k y_k| / |c_j|.

    Example:
        >>> R = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
        >>> consistent(R, [np.array([1.0, 2.0]), np.array([5.0, 5.0]), np.array([4.6, 5.2])], 1e-9)
        True
        >>> consistent(R, [np.array([1.0, 2.0]), np.array([5.0, 5.0]), np.array([4.6, 5.3])], 1e-9)
        False
    """
    coefficients = relation(rows)
    return coefficients is not None and _fits(coefficients, copies, tolerance)


def agreeing(rows: ArrayLike, copies: Sequence[Any], tolerance: float) -> tuple[int, ...]:
    """The copies that agree: l + 1 that are consistent, and after them all others that fit to these.

    Args:
        rows: R[S], shape (n, l), n >= l; two copies may have the same row.
        copies, tolerance: as in `consistent`, n copies.

    Returns:
        Places in `copies`; the first l of them decode the chunk. Empty when no l + 1 copies agree.

    Notes:
        Let any l of the n rows be independent, and n - l - 1 copies or fewer be wrong. The l + 1 others are consistent,
        and l + 1 copies of which one is wrong never are, since no coefficient of their relation is 0. Several wrong
        ones among l + 1 can only pass if their errors cancel, c_i e_i + c_j e_j = 0, which errors that do not know of
        each other do not. Against workers that conspire it takes a majority: n >= 2 s + l for s of them.

    References:
        I. Reed and G. Solomon, Polynomial codes over certain finite fields, 1960: an (n, l) code detects n - l errors.
        L. Chen, H. Wang, Z. Charles and D. Papailiopoulos, DRACO: Byzantine-resilient distributed training via
        redundant gradients, ICML 2018, arXiv:1803.09877: the same for gradients that workers compute.

    Example:
        Five copies, l = 2: whichever two of them are wrong, the other three are found.

        >>> rng = np.random.default_rng(0)
        >>> R, g = rng.standard_normal((5, 2)), rng.standard_normal((2, 7))
        >>> for wrong in combinations(range(5), 2):
        ...     Y = R @ g
        ...     Y[list(wrong)] += rng.standard_normal((2, 7))
        ...     assert set(agreeing(R, Y, 1e-9)) == set(range(5)) - set(wrong)
    """
    matrix = np.asarray(rows, np.float64)
    parts = matrix.shape[1]
    # what agreed before some of the copies were there is found first
    for chosen in sorted(combinations(range(len(matrix)), parts + 1), key=lambda places: places[::-1]):
        coefficients = relation(matrix[list(chosen)])
        if coefficients is None or np.abs(coefficients).min() < LEAST_SHARE * np.abs(coefficients).max():
            continue  # one of them would be taken on trust
        if not _fits(coefficients, [copies[place] for place in chosen], tolerance):
            continue
        basis = chosen[:parts]
        others = [place for place in range(len(matrix)) if place not in chosen]
        fitting = [
            place
            for place in others
            if consistent(matrix[[*basis, place]], [copies[at] for at in (*basis, place)], tolerance)
        ]
        return (*chosen, *fitting)
    return ()


def _fits(coefficients: Matrix, copies: Sequence[Any], tolerance: float) -> bool:
    with np.errstate(all="ignore"):
        # sums of plain numbers times arrays: the same on every device
        terms = [float(c) * copy for c, copy in zip(coefficients, copies, strict=True)]
        largest = max((float(abs(term).max()) for term in terms), key=lambda x: np.inf if x != x else x)
        rest = float(abs(sum(terms[1:], terms[0])).max())
    return bool(np.isfinite(largest)) and rest <= tolerance * largest
