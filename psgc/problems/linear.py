"""Linear models with an intercept: least squares and logistic regression, over dense or sparse CSR rows.

params = (w, b): num_features weights and the intercept; the score of a row x is z = x.w + b. A gradient costs
two products with the chunk's matrix, X @ w and X.T @ r with r the derivatives of row losses by scores.
"""

from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.data import Chunk
from psgc.problems.base import array_namespace, quiet, regularise


class _Linear:
    """What both models share; they differ in the loss of a row and its derivative by the score."""

    def __init__(self, num_features: int, l2: float = 0.0) -> None:
        self.dim = num_features + 1
        self.l2 = l2

    def initial_params(self) -> np.ndarray:
        return np.zeros(self.dim)

    @quiet
    def loss_and_gradient(self, params: Array, chunk: Chunk, rng: Any = None) -> tuple[float, Array]:
        loss, derivatives = self._row_losses(_scores(params, chunk.X), chunk.y)
        derivatives *= chunk.weight / len(chunk.y)
        gradient = array_namespace(params).empty_like(params)
        gradient[:-1] = chunk.X.T @ derivatives
        gradient[-1] = derivatives.sum()
        return regularise(loss.mean(), gradient, params, chunk.weight, self.l2)

    def gradient(self, params: Array, chunk: Chunk, rng: np.random.Generator) -> Array:
        return self.loss_and_gradient(params, chunk)[1]

    @quiet
    def loss(self, params: Array, chunk: Chunk) -> float:
        rows, _ = self._row_losses(_scores(params, chunk.X), chunk.y)
        return chunk.weight * float(rows.mean() + self.l2 / 2 * (params @ params))

    def _row_losses(self, scores: Array, y: Array) -> tuple[Array, Array]:
        """The loss of every row, and its derivative by the row's score; may overwrite `scores`."""
        raise NotImplementedError


class LeastSquares(_Linear):
    """Row loss (z - y)^2 / 2."""

    def _row_losses(self, scores: Array, y: Array) -> tuple[Array, Array]:
        scores -= y
        return scores * scores / 2, scores


class Logistic(_Linear):
    """Row loss log(1 + exp(-s z)), s = +1 for the label 1 and -1 for the label 0 or -1."""

    def _row_losses(self, scores: Array, y: Array) -> tuple[Array, Array]:
        # With e = exp(-|z|) <= 1 nothing overflows: log(1 + exp(z)) = max(z, 0) + log1p(e), and the
        # probability of the label 1 is 1 / (1 + e) for z >= 0 and e / (1 + e) below.
        xp = array_namespace(scores)
        target = (y > 0).astype(scores.dtype)
        e = xp.exp(-xp.abs(scores))
        losses = xp.maximum(scores, 0) - target * scores + xp.log1p(e)
        return losses, xp.where(scores >= 0, 1, e).astype(scores.dtype, copy=False) / (1 + e) - target

    def accuracy(self, params: Array, chunk: Chunk) -> float:
        """Fraction of the chunk's rows whose score has the sign of the label."""
        return float(((_scores(params, chunk.X) > 0) == (chunk.y > 0)).mean())


def _scores(params: Array, X: Any) -> Array:
    scores = X @ params[:-1]
    scores += params[-1]
    return scores
