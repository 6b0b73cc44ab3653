"""Multinomial logistic regression over dense or sparse CSR rows."""

from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.data import Chunk
from psgc.problems.base import array_namespace, quiet, regularise


class Softmax:
    """params = (W, b): W (num_features, num_classes) in row order, then b (num_classes,).

    The loss of a row x with label y in 0..num_classes-1 is log(sum_c exp(z_c)) - z_y, with z = x W + b.
    """

    def __init__(self, num_features: int, num_classes: int, l2: float = 0.0) -> None:
        self.num_classes = num_classes
        self.dim = (num_features + 1) * num_classes
        self.l2 = l2

    def initial_params(self) -> np.ndarray:
        return np.zeros(self.dim)

    @quiet
    def loss_and_gradient(self, params: Array, chunk: Chunk, rng: Any = None) -> tuple[float, Array]:
        loss, derivatives = cross_entropy(self._scores(params, chunk.X), chunk.y)
        derivatives *= chunk.weight / len(chunk.y)
        gradient = array_namespace(params).empty_like(params)
        table = gradient.reshape(-1, self.num_classes)
        table[:-1] = chunk.X.T @ derivatives
        table[-1] = derivatives.sum(axis=0)
        return regularise(loss, gradient, params, chunk.weight, self.l2)

    def gradient(self, params: Array, chunk: Chunk, rng: np.random.Generator) -> Array:
        return self.loss_and_gradient(params, chunk)[1]

    @quiet
    def loss(self, params: Array, chunk: Chunk) -> float:
        loss, _ = cross_entropy(self._scores(params, chunk.X), chunk.y)
        return chunk.weight * float(loss + self.l2 / 2 * (params @ params))

    def accuracy(self, params: Array, chunk: Chunk) -> float:
        """Fraction of the chunk's rows whose largest score is that of the label."""
        return float((self._scores(params, chunk.X).argmax(axis=1) == chunk.y).mean())

    def _scores(self, params: Array, X: Any) -> Array:
        table = params.reshape(-1, self.num_classes)
        scores = X @ table[:-1]
        scores += table[-1]
        return scores


def cross_entropy(scores: Array, y: Array) -> tuple[Any, Array]:
    """Mean row loss (a scalar of the array library) and the derivatives of the row losses by the scores.

    scores: (rows, num_classes), overwritten by the derivatives; y: (rows,) labels 0..num_classes-1.
    """
    xp = array_namespace(scores)
    rows, labels = xp.arange(len(y)), y.astype(np.intp, copy=False)
    scores -= scores.max(axis=1, keepdims=True)  # the largest is 0: exp cannot overflow
    right = scores[rows, labels]
    xp.exp(scores, out=scores)
    totals = scores.sum(axis=1)
    scores /= totals[:, None]
    scores[rows, labels] -= 1
    return (xp.log(totals) - right).mean(), scores
