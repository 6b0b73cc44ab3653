"""The built-in models: least squares, logistic and softmax regression, and a network with one hidden layer.

All take dense or sparse CSR rows. Parameters are flat; a *table* is a view of some of them as rows of weights, one row
per input, and below them a row of offsets: the scores of the rows X are X @ table[:-1] + table[-1].
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.data import Chunk
from psgc.problems.base import array_namespace

_quiet = np.errstate(over="ignore", invalid="ignore")  # the caller checks whether the loss is finite


class _Model(ABC):
    """Loss, gradient and l2 term of a model, from its scores and row losses (see `psgc.problems.base`)."""

    def __init__(self, dim: int, l2: float) -> None:
        self.dim, self.l2 = dim, l2

    def initial_params(self) -> np.ndarray:
        return np.zeros(self.dim)

    @_quiet
    def loss_and_gradient(self, params: Array, chunk: Chunk, rng: Any = None) -> tuple[float, Array]:
        scores, hidden = self._forward(params, chunk.X)
        losses, derivatives = self._row_losses(scores, chunk.y)
        derivatives *= chunk.weight / len(chunk.y)
        gradient = array_namespace(params).empty_like(params)
        self._backward(params, chunk.X, hidden, derivatives, gradient)
        if self.l2:
            gradient += (chunk.weight * self.l2) * params
        return self._regularised(losses, params, chunk.weight), gradient

    def gradient(self, params: Array, chunk: Chunk, rng: np.random.Generator) -> Array:
        return self.loss_and_gradient(params, chunk)[1]

    @_quiet
    def loss(self, params: Array, chunk: Chunk) -> float:
        losses, _ = self._row_losses(self._forward(params, chunk.X)[0], chunk.y)
        return self._regularised(losses, params, chunk.weight)

    def _regularised(self, losses: Array, params: Array, weight: float) -> float:
        loss = losses.mean()
        return weight * float(loss + self.l2 / 2 * (params @ params) if self.l2 else loss)

    def _table(self, params: Array) -> Array:
        return params

    def _forward(self, params: Array, X: Any) -> tuple[Array, Array]:
        """The scores of all rows, and the activity of hidden units."""
        return _scores(X, self._table(params)), None

    @abstractmethod
    def _row_losses(self, scores: Array, y: Array) -> tuple[Array, Array]:
        """The loss of each row, and its derivatives by the row's scores; may overwrite `scores`."""

    def _backward(self, params: Array, X: Any, hidden: Array, derivatives: Array, gradient: Array) -> None:
        """Fill `gradient`, given the derivatives of the loss by the scores."""
        _fill_gradient(self._table(gradient), X, derivatives)


class LeastSquares(_Model):
    """Row loss (z - y)^2 / 2 of the score z; params = (w, b): num_features weights and the intercept."""

    def __init__(self, num_features: int, l2: float = 0.0) -> None:
        super().__init__(num_features + 1, l2)

    def _row_losses(self, scores: Array, y: Array) -> tuple[Array, Array]:
        scores -= y
        return scores * scores / 2, scores


class Logistic(_Model):
    """Row loss log(1 + exp(-s z)), s = +1 for the label 1 and -1 for the label 0 or -1; params as in `LeastSquares`."""

    def __init__(self, num_features: int, l2: float = 0.0) -> None:
        super().__init__(num_features + 1, l2)

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
        return float(((self._forward(params, chunk.X)[0] > 0) == (chunk.y > 0)).mean())


class _Classifier(_Model):
    """Row loss log(sum_c exp(z_c)) - z_y, y in 0..num_classes-1."""

    num_classes: int

    def _table(self, params: Array) -> Array:
        return params.reshape(-1, self.num_classes)

    def _row_losses(self, scores: Array, y: Array) -> tuple[Array, Array]:
        xp = array_namespace(scores)
        rows, labels = xp.arange(len(y)), y.astype(np.intp, copy=False)
        scores -= scores.max(axis=1, keepdims=True)  # the largest is 0: exp cannot overflow
        right = scores[rows, labels]
        xp.exp(scores, out=scores)
        totals = scores.sum(axis=1)
        scores /= totals[:, None]
        scores[rows, labels] -= 1
        return xp.log(totals) - right, scores

    def accuracy(self, params: Array, chunk: Chunk) -> float:
        """Fraction of the chunk's rows whose largest score is that of the label."""
        return float((self._forward(params, chunk.X)[0].argmax(axis=1) == chunk.y).mean())


class Softmax(_Classifier):
    """Multinomial logistic regression; params: the table (num_features + 1, num_classes), row by row."""

    def __init__(self, num_features: int, num_classes: int, l2: float = 0.0) -> None:
        super().__init__((num_features + 1) * num_classes, l2)
        self.num_classes = num_classes


class Mlp(_Classifier):
    """A hidden layer of tanh units; params: the tables (num_features + 1, hidden) and (hidden + 1, num_classes)."""

    def __init__(self, num_features: int, num_classes: int, hidden: int = 64, l2: float = 0.0, seed: int = 0) -> None:
        self._cut = (num_features + 1) * hidden
        super().__init__(self._cut + (hidden + 1) * num_classes, l2)
        self.num_features, self.num_classes, self.hidden, self.seed = num_features, num_classes, hidden, seed

    def initial_params(self) -> np.ndarray:
        """Weights from N(0, 1 / inputs of the layer) by `seed`, offsets 0."""
        rng = np.random.default_rng(self.seed)
        params = np.zeros(self.dim)
        for table in (self._hidden_table(params), self._table(params)):
            inputs, outputs = table.shape[0] - 1, table.shape[1]
            table[:-1] = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
        return params

    def _hidden_table(self, params: Array) -> Array:
        return params[: self._cut].reshape(-1, self.hidden)

    def _table(self, params: Array) -> Array:
        return params[self._cut :].reshape(-1, self.num_classes)

    def _forward(self, params: Array, X: Any) -> tuple[Array, Array]:
        activity = _scores(X, self._hidden_table(params))
        array_namespace(params).tanh(activity, out=activity)
        return _scores(activity, self._table(params)), activity

    def _backward(self, params: Array, X: Any, hidden: Array, derivatives: Array, gradient: Array) -> None:
        _fill_gradient(self._table(gradient), hidden, derivatives)
        backward = derivatives @ self._table(params)[:-1].T
        hidden *= hidden
        backward *= 1 - hidden  # the derivative of tanh is 1 - tanh^2
        _fill_gradient(self._hidden_table(gradient), X, backward)


def _scores(X: Any, table: Array) -> Array:
    scores = X @ table[:-1]
    scores += table[-1]
    return scores


def _fill_gradient(table: Array, X: Any, derivatives: Array) -> None:
    """The gradient by a table, given the derivatives of the loss by the scores that it makes of X."""
    table[:-1] = X.T @ derivatives
    table[-1] = derivatives.sum(axis=0)
