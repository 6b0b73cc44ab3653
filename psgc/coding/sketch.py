"""A few numbers that compare copies of a gradient without sending the copies."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from psgc.coding.agreement import first_agreeing

COLUMNS = 4096
SAFE = (1e-15, 1e15)  # sizes of the largest entry whose square float32 can hold, and the sum of many such

Sketch: TypeAlias = tuple[float, float, float]


def sketch(vector: Any, xp: Any = np) -> Sketch:
    """Two random projections of a vector, always the same ones, and its Euclidean norm: (u . x, v . x, |x|).

    vector: shape (d,), float32 or float64, of finite numbers; xp: the library it belongs to, NumPy or CuPy.

    The entries of u and v are random, of mean 0. The vector is seen as rows of 4096 entries, and u and v as outer
    products of two short random vectors: one pass over x forms both projections.

    >>> x = np.random.default_rng(1).standard_normal(10_000)
    >>> y = x.copy()
    >>> y[1234] += 1e-3
    >>> relative_difference(sketch(x), sketch(x))
    0.0
    >>> 1e-8 < relative_difference(sketch(x), sketch(y)) < 1e-3
    True
    """
    largest = max(float(vector.max()), -float(vector.min())) if vector.size else 0.0
    if largest == 0:
        return 0.0, 0.0, 0.0
    scale = 1.0 if SAFE[0] < largest < SAFE[1] else largest
    if scale != 1.0:
        vector = vector / vector.dtype.type(scale)
    num_rows, rest = divmod(vector.size, COLUMNS)
    rng = np.random.default_rng(0)
    across, down, last = (rng.standard_normal((length, 2)) for length in (COLUMNS, num_rows, rest))
    rows, tail = vector[: num_rows * COLUMNS].reshape(num_rows, COLUMNS), vector[num_rows * COLUMNS :]
    sums = xp.asarray(down) * (rows @ xp.asarray(across, vector.dtype))  # in float64 from here on
    u, v = (float(x) for x in sums.sum(axis=0) + tail @ xp.asarray(last))
    return u * scale, v * scale, math.sqrt(float(vector @ vector)) * scale


def relative_difference(one: Sketch, other: Sketch) -> float:
    """How far apart two vectors are, as their sketches show: about |x - y| / max(|x|, |y|), infinity for NaN.

    It is 0 for equal vectors. For others it is smaller than t |x - y| / |x| with probability below t^2.
    """
    if not all(map(math.isfinite, (*one, *other))):
        return math.inf
    scale = max(one[2], other[2])
    return max(abs(one[0] - other[0]), abs(one[1] - other[1])) / scale if scale else 0.0


def adds_up(whole: tuple[float, Sketch], parts: Sequence[tuple[float, Sketch]], tolerance: float) -> bool:
    """Whether a loss and a vector are the sums of these, as the vectors' sketches show: that of a sum is their sum.

    >>> one, two = (1.0, sketch(np.ones(3))), (2.0, sketch(np.arange(3.0)))
    >>> both = (3.0, sketch(1 + np.arange(3.0)))
    >>> adds_up(both, [one, two], 1e-9)
    True
    >>> adds_up(both, [(1.0, two[1]), two], 1e-9), adds_up((4.0, both[1]), [one, two], 1e-9)
    (False, False)
    """
    loss, (*projections, length) = whole
    sums = (sum(vector[place] for _, vector in parts) for place in (0, 1))
    off = [abs(its - total) for its, total in zip(projections, sums, strict=True)]
    is_close = math.isclose(loss, sum(part for part, _ in parts), rel_tol=tolerance)
    return is_close and all(one <= tolerance * length for one in off)


def agreeing(sketches: Sequence[Sketch], tolerance: float) -> tuple[int, ...]:
    """The copies of a vector that agree: two, then all others that agree with the first of these.

    tolerance: relative difference up to which they do.

    Returns places in `sketches`; empty when no two agree.

    >>> right, wrong = sketch(np.ones(3)), sketch(np.arange(3.0))
    >>> agreeing([wrong, right, right], 1e-9), agreeing([right, wrong], 1e-9)
    ((1, 2), ())
    """

    def fits(pair: tuple[int, ...]) -> bool:
        return relative_difference(sketches[pair[0]], sketches[pair[1]]) <= tolerance

    return first_agreeing(len(sketches), 1, fits, fits)
