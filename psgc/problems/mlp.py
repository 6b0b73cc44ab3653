"""A network with one hidden layer of tanh units and a softmax output, over dense or sparse CSR rows."""

from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.data import Chunk
from psgc.problems.base import array_namespace, quiet, regularise
from psgc.problems.softmax import cross_entropy


class Mlp:
    """Flat (V, a, W, b), shapes (num_features, hidden), (hidden,), (hidden, num_classes) and (num_classes,).

    The scores of a row x are z = tanh(x V + a) W + b, its loss is that of `Softmax`.
    """

    def __init__(self, num_features: int, num_classes: int, hidden: int = 64, l2: float = 0.0, seed: int = 0) -> None:
        self.num_features, self.num_classes, self.hidden = num_features, num_classes, hidden
        self.dim = (num_features + 1) * hidden + (hidden + 1) * num_classes
        self.l2 = l2
        self.seed = seed

    def initial_params(self) -> np.ndarray:
        """Weights from N(0, 1 / inputs of the layer) by `seed`, offsets 0."""
        rng = np.random.default_rng(self.seed)
        params = np.zeros(self.dim)
        lower, upper = self._layers(params)
        lower[:-1] = rng.standard_normal((self.num_features, self.hidden)) / np.sqrt(self.num_features)
        upper[:-1] = rng.standard_normal((self.hidden, self.num_classes)) / np.sqrt(self.hidden)
        return params

    @quiet
    def loss_and_gradient(self, params: Array, chunk: Chunk, rng: Any = None) -> tuple[float, Array]:
        _, upper = self._layers(params)
        activity, scores = self._forward(params, chunk.X)
        loss, derivatives = cross_entropy(scores, chunk.y)
        derivatives *= chunk.weight / len(chunk.y)
        gradient = array_namespace(params).empty_like(params)
        lower_gradient, upper_gradient = self._layers(gradient)
        upper_gradient[:-1] = activity.T @ derivatives
        upper_gradient[-1] = derivatives.sum(axis=0)
        backward = derivatives @ upper[:-1].T
        activity *= activity
        backward *= 1 - activity  # the derivative of tanh is 1 - tanh^2
        lower_gradient[:-1] = chunk.X.T @ backward
        lower_gradient[-1] = backward.sum(axis=0)
        return regularise(loss, gradient, params, chunk.weight, self.l2)

    def gradient(self, params: Array, chunk: Chunk, rng: np.random.Generator) -> Array:
        return self.loss_and_gradient(params, chunk)[1]

    @quiet
    def loss(self, params: Array, chunk: Chunk) -> float:
        loss, _ = cross_entropy(self._forward(params, chunk.X)[1], chunk.y)
        return chunk.weight * float(loss + self.l2 / 2 * (params @ params))

    def accuracy(self, params: Array, chunk: Chunk) -> float:
        """Fraction of the chunk's rows whose largest score is that of the label."""
        return float((self._forward(params, chunk.X)[1].argmax(axis=1) == chunk.y).mean())

    def _layers(self, params: Array) -> tuple[Array, Array]:
        """Views of (V; a) as (num_features + 1, hidden) and (W; b) as (hidden + 1, num_classes)."""
        cut = (self.num_features + 1) * self.hidden
        return params[:cut].reshape(-1, self.hidden), params[cut:].reshape(-1, self.num_classes)

    def _forward(self, params: Array, X: Any) -> tuple[Array, Array]:
        """Activity of the hidden units, (rows, hidden), and scores, (rows, num_classes)."""
        lower, upper = self._layers(params)
        activity = X @ lower[:-1]
        activity += lower[-1]
        array_namespace(params).tanh(activity, out=activity)
        return activity, activity @ upper[:-1] + upper[-1]
