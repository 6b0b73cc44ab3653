"""Whether figures of a chunk follow from those of its halves, as far as what a chunk is worth is in the right place.

Losses and gradients of chunks are added up, so each must contain `chunk.weight`; accuracies are weighted by psgc. A
model that has it the other way round gives a mean for a sum, or a sum for a mean. Halves of a chunk tell these apart:
they differ by a factor of about two, unlike models whose rows depend on each other.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.data import Chunk
from psgc.errors import ModelError
from psgc.problems.base import Problem, array_namespace, evaluate

NEAR, FAR = 0.1, 0.3  # relative differences from what it is, and from what it should be
TINY = 1e-9  # a figure that may be nothing but rounding errors
SAME = 1e-3  # relative difference up to which a figure is not random
MEAN = "a mean over its rows; expected the mean times chunk.weight, in all terms, so that the chunks add up"
SUM = "a sum over its rows; expected the fraction of its rows that are right, without chunk.weight"

Measure = Callable[[Any, Chunk], float]


class ChunkCheck:
    """Looks at the first chunk of a problem that has two rows."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._evaluate = problem, evaluate(problem)

    def check(self, params: Array, chunk: Chunk) -> bool:
        """Whether the check is done: no other chunk is needed.

        Raises ModelError: the chunk's loss, gradient or accuracy does not follow from its halves.
        """
        if (halves := halves_of(chunk)) is None:
            return chunk.X is None
        try:
            wrong = self._wrong_sum(params, chunk, halves) or self._wrong_accuracy(params, chunk)
        except Exception:  # it may need more rows than these; what else is wrong comes out where the gradient is used
            return True
        if wrong:
            raise ModelError(wrong)
        return True

    def _wrong_sum(self, params: Array, chunk: Chunk, halves: tuple[Chunk, Chunk]) -> str:
        """What is wrong with the loss or the gradient of a chunk; empty when nothing is."""
        parts = [self._copied(params, part) for part in (chunk, *halves)]
        for what, whole, one, other in zip(("loss", "gradient"), *parts, strict=True):
            wrong = _wrong(what, whole, one, other, chunk, halves)
            if wrong and not self._is_random(params, chunk, parts[0]):
                return wrong
        return ""

    def _wrong_accuracy(self, params: Array, chunk: Chunk) -> str:
        """What is wrong with the accuracy, where it can be had at any time; empty when nothing is."""
        accuracy: Measure | None = getattr(self._problem, "accuracy", None)
        if accuracy is None or hasattr(self._problem, "prepare_evaluation"):
            return ""
        return wrong_measure("accuracy", accuracy, params, chunk)

    def _copied(self, params: Array, chunk: Chunk, seed: int = 0) -> tuple[float, Array]:
        """Loss and gradient, copied: a model may use the memory of its gradient again."""
        loss, gradient = self._evaluate(params, chunk, np.random.default_rng(seed))
        return float(loss), array_namespace(params).array(gradient, dtype=params.dtype)

    def _is_random(self, params: Array, chunk: Chunk, first: tuple[float, Array]) -> bool:
        again = self._copied(params, chunk, seed=1)
        return any(_size(one - other) > SAME * _size(one) for one, other in zip(first, again, strict=True))


def wrong_measure(what: str, measure: Measure, params: Array, chunk: Chunk) -> str:
    """What is wrong with the loss or the accuracy of a chunk, see `_wrong`; empty when nothing is."""
    if (halves := halves_of(chunk)) is None:
        return ""
    try:
        whole, one, other = (float(measure(params, part)) for part in (chunk, *halves))
    except Exception:  # whoever needs the figure meets it again
        return ""
    return _wrong(what, whole, one, other, chunk, halves)


def halves_of(chunk: Chunk) -> tuple[Chunk, Chunk] | None:
    """A chunk's rows in two halves, each with its weight; None when it has no data or a single row."""
    rows = 0 if chunk.X is None else int(chunk.X.shape[0])
    if rows < 2:
        return None
    cut = rows // 2

    def part(start: int, stop: int) -> Chunk:
        labels = None if chunk.y is None else chunk.y[start:stop]
        return Chunk(chunk.index, chunk.X[start:stop], labels, chunk.weight * (stop - start) / rows)

    return part(0, cut), part(cut, rows)


def _wrong(what: str, whole: Any, one: Any, other: Any, chunk: Chunk, halves: tuple[Chunk, Chunk]) -> str:
    """What is wrong with a figure of a chunk, given those of its halves; empty when nothing is.

    A loss or a gradient must not be the mean of the two, an accuracy not their sum.
    """
    mean, told = (halves[0].weight * one + halves[1].weight * other) / chunk.weight, MEAN
    wrong = chunk.weight < 1 and _is_nearer(whole, mean, one + other)  # a chunk of all rows may be either
    if what == "accuracy":
        wrong, told = _is_nearer(whole, one + other, mean), SUM
    if not wrong:
        return ""
    numbers = (f"{_size(value):.4g}" for value in (whole, one, other))
    length = " has the length" if what == "gradient" else " is"
    return "the {} of a chunk{} {}, and those of its halves {} and {}: {}".format(what, length, *numbers, told)


def _is_nearer(whole: Any, near: Any, far: Any) -> bool:
    size = _size(whole)
    return size > TINY and _size(whole - near) <= NEAR * size and _size(whole - far) > FAR * size


def _size(value: Any) -> float:
    return float((value * value).sum()) ** 0.5 if hasattr(value, "sum") else abs(float(value))
