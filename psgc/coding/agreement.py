"""Which copies of a chunk agree: the redundancy of a code, used to find errors.

The coded gradients of one chunk are y_j = sum_k R[j, k] g[k]: l = `parts` of them determine the l parts of g, and every
further one has to fit.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgc.coding.coding_matrix import Matrix

LEAST_SHARE = 1e-8  # of the largest coefficient of a relation: a copy with a smaller one is not checked by the others


def agreeing(rows: ArrayLike, copies: Sequence[Any], tolerance: float) -> tuple[int, ...]:
    """The copies that agree: l + 1 that are consistent, then all others that fit these.

    rows: R[S], shape (n, l), n >= l; two copies may have the same row.
    copies: the n coded gradients y_j, vectors of one length, of NumPy or CuPy.
    tolerance: relative. With c_j the coefficients of a relation, sum_j c_j R[j] = 0, l + 1 copies are consistent when
        |sum_j c_j y_j| <= tolerance * max_j |c_j y_j|; with l = 1, |y_1 - y_2| against the larger of |y_1| and |y_2|.
        |.| is the largest entry: an error in a single one is not lost among many. NaN and infinity agree with nothing.

    Returns places in `copies`; the first l of them decode the chunk. Empty when no l + 1 copies agree.

    Let any l of the n rows be independent, and at most n - l - 1 copies be wrong. The l + 1 others are consistent, and
    l + 1 copies of which one is wrong never are, since no coefficient of their relation is 0. Several wrong ones pass
    only if their errors cancel, c_i e_i + c_j e_j = 0. Against s workers that conspire it takes n >= 2 s + l copies.

    Sources: I. Reed and G. Solomon, Polynomial codes over certain finite fields, 1960: an (n, l) code detects n - l
    errors. L. Chen, H. Wang, Z. Charles and D. Papailiopoulos, DRACO: Byzantine-resilient distributed training via
    redundant gradients, ICML 2018, arXiv:1803.09877: the same for gradients that workers compute.

    Five copies, l = 2: whichever two of them are wrong, the other three are found.

    >>> rng = np.random.default_rng(0)
    >>> R, g = rng.standard_normal((5, 2)), rng.standard_normal((2, 7))
    >>> for wrong in combinations(range(5), 2):
    ...     Y = R @ g
    ...     Y[list(wrong)] += rng.standard_normal((2, 7))
    ...     assert set(agreeing(R, Y, 1e-9)) == set(range(5)) - set(wrong)
    """
    matrix = np.asarray(rows, np.float64)

    def checks(places: tuple[int, ...]) -> bool:
        """Whether each of these copies is checked by the others, so that none would be taken on trust."""
        try:
            sizes = np.abs(_relation(matrix[list(places)]))
        except np.linalg.LinAlgError:
            return False
        return bool(sizes.min() >= LEAST_SHARE * sizes.max())

    def fits(places: tuple[int, ...]) -> bool:
        return _fits(_relation(matrix[list(places)]), [copies[place] for place in places], tolerance)

    return first_agreeing(len(matrix), matrix.shape[1], lambda chosen: checks(chosen) and fits(chosen), fits)


def first_agreeing(
    number: int, parts: int, agree: Callable[[tuple[int, ...]], bool], fits: Callable[[tuple[int, ...]], bool]
) -> tuple[int, ...]:
    """The first `parts` + 1 of so many places that agree, and all others that fit to `parts` of them; or nothing."""
    # what agreed before some of the copies were there is found first
    for chosen in sorted(combinations(range(number), parts + 1), key=lambda places: places[::-1]):
        if agree(chosen):
            others = (place for place in range(number) if place not in chosen)
            return (*chosen, *(place for place in others if fits((*chosen[:parts], place))))
    return ()


def _relation(rows: Matrix) -> Matrix:
    """c with sum_j c[j] R[j] = 0, the last entry 1, for l + 1 rows. LinAlgError: the first l are dependent."""
    return np.append(-np.linalg.solve(rows[:-1].T, rows[-1]), 1.0)


def _fits(coefficients: Matrix, copies: Sequence[Any], tolerance: float) -> bool:
    """Whether the copies are consistent, see `agreeing`."""
    with np.errstate(all="ignore"):
        # sums of plain numbers times arrays: the same on every device
        terms = [float(c) * copy for c, copy in zip(coefficients, copies, strict=True)]
        largest = max((float(abs(term).max()) for term in terms), key=lambda x: np.inf if x != x else x)
        rest = float(abs(sum(terms[1:], terms[0])).max())
    return bool(np.isfinite(largest)) and rest <= tolerance * largest
