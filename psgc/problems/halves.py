"""Checks that a model weights its figures correctly, by comparing a chunk with its halves.

Losses and gradients of chunks are added up, so each must contain `chunk.weight`. Accuracies are weighted by psgc. A
model that confuses the two returns a mean instead of a sum, or a sum instead of a mean. Then the chunk and its halves
differ by a factor of about two. Models whose rows depend on each other differ by less.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.data import Chunk
from psgc.errors import ModelError
from psgc.problems.base import Evaluation, Problem, array_namespace, evaluate

NEAR, FAR = 0.1, 0.3  # relative differences: at most NEAR from the wrong value, more than FAR from the right value
TINY = 1e-9  # a figure that may consist of rounding errors
TRIES = 8  # chunks that are compared at most, if each shows nothing
SAME = 1e-3  # relative difference up to which a figure is not random
MEAN = "a mean over its rows; expected the mean times chunk.weight, in all terms, so that the chunks add up"
SUM = "a sum over its rows; expected the fraction of its rows that are right, without chunk.weight"

Measure = Callable[[Any, Chunk], float]


class ChunkCheck:
    """Checks the first chunk of a problem that has at least two rows, and figures that say something.

    of: the problem's evaluation, if it is watched
    """

    def __init__(self, problem: Problem, of: Evaluation | None = None) -> None:
        self._problem, self._evaluate = problem, of or evaluate(problem)
        self._left = TRIES  # chunks that may still show nothing

    def check(self, params: Array, chunk: Chunk) -> bool:
        """Check a chunk. Returns whether the check is done; else it needs another chunk.

        Raises ModelError: the chunk's loss, gradient or accuracy does not agree with its halves.
        """
        if (halves := halves_of(chunk)) is None:
            return chunk.X is None
        self._left, self._tells = self._left - 1, False
        try:
            wrong = self._wrong_sum(params, chunk, halves) or self._wrong_accuracy(params, chunk)
        except ModelError:
            raise
        except Exception:  # the model may need more rows; other errors appear when the gradient is used
            return True
        if wrong:
            raise ModelError(wrong)
        return self._tells or not self._left

    def _wrong_sum(self, params: Array, chunk: Chunk, halves: tuple[Chunk, Chunk]) -> str:
        """What is wrong with the loss or the gradient of a chunk; empty when nothing is."""
        parts = [self._copied(params, part) for part in (chunk, *halves)]
        self._tells = any(_size(of) > TINY for of in parts[0])  # not of NaN, or of zeros
        for what, whole, one, other in zip(("loss", "gradient"), *parts, strict=True):
            wrong = _wrong(what, whole, one, other, chunk, halves)
            if wrong and not self._is_random(params, chunk, parts[0]):
                return wrong
        return ""

    def _wrong_accuracy(self, params: Array, chunk: Chunk) -> str:
        """What is wrong with the accuracy; empty when nothing is, or when it needs `prepare_evaluation`."""
        accuracy: Measure | None = getattr(self._problem, "accuracy", None)
        if accuracy is None or hasattr(self._problem, "prepare_evaluation"):
            return ""
        return wrong_measure("accuracy", accuracy, params, chunk)

    def _copied(self, params: Array, chunk: Chunk, seed: int = 0) -> tuple[float, Array]:
        """The loss and a copy of the gradient, since a model may use the memory of its gradient again."""
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
    except Exception:  # it is raised again when the figure is used
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
    """What is wrong with a figure of a chunk, given the figures of its halves; empty when nothing is.

    A loss or a gradient must not be the mean of the two, and an accuracy must not be their sum.
    """
    mean, text = (halves[0].weight * one + halves[1].weight * other) / chunk.weight, MEAN
    wrong = chunk.weight < 1 and _is_nearer(whole, mean, one + other)  # a chunk of all rows may be either
    if what == "accuracy":
        wrong, text = _is_nearer(whole, one + other, mean), SUM
    if not wrong:
        return ""
    numbers = (f"{_size(value):.4g}" for value in (whole, one, other))
    length = " has the length" if what == "gradient" else " is"
    return "the {} of a chunk{} {}, and those of its halves {} and {}: {}".format(what, length, *numbers, text)


def _is_nearer(whole: Any, near: Any, far: Any) -> bool:
    size = _size(whole)
    return size > TINY and _size(whole - near) <= NEAR * size and _size(whole - far) > FAR * size


def _size(value: Any) -> float:
    return float((value * value).sum()) ** 0.5 if hasattr(value, "sum") else abs(float(value))
