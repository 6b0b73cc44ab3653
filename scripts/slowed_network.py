"""A model whose gradients are matrix products, on workers with CPU quotas: for scripts/bench_training.py.

A process joins its group of CPU quotas (cpu_quotas.py) with its first gradient: imports at a twentieth of a core take a
minute.
"""

import os
from typing import Any

import numpy as np
from cpu_quotas import join

WIDTH, LAYERS = 64, 3
ROWS = 2816  # of a chunk: about 4.7 ms on a core
BLOCK = 128  # rows at a time, so that a large share stays in the cache as a chunk does


def make_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """X (count, WIDTH) and y (count,), the same every time."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((count, WIDTH))
    return X, np.sin(X[:, 0] + X[:, 1] * X[:, 2])


class Network:
    """Least squares with LAYERS hidden layers of WIDTH rectified units.

    groups: the folder of the CPU quotas; first: the worker that MPI's rank 0 is, 0 for psgc's server.
    """

    dim = LAYERS * WIDTH * WIDTH + WIDTH

    def __init__(self, groups: str, first: int) -> None:
        self._groups, self._worker = groups, first + int(os.environ["OMPI_COMM_WORLD_RANK"])

    def initial_params(self) -> np.ndarray:
        return np.random.default_rng(1).standard_normal(self.dim) * np.sqrt(2 / WIDTH)

    def loss_and_gradient(self, params: np.ndarray, chunk: Any, rng: Any) -> tuple[float, np.ndarray]:
        if self._groups and self._worker:
            join(self._groups, f"worker{self._worker}")
            self._groups = ""
        loss, gradient = 0.0, np.zeros_like(params)
        for first in range(0, len(chunk.y), BLOCK):
            rows = slice(first, first + BLOCK)
            loss += _add(params, chunk.X[rows], chunk.y[rows], gradient)
        gradient *= chunk.weight / len(chunk.y)
        return chunk.weight * loss / len(chunk.y), gradient

    def gradient(self, params: np.ndarray, chunk: Any, rng: Any) -> np.ndarray:
        return self.loss_and_gradient(params, chunk, rng)[1]

    def loss(self, params: np.ndarray, chunk: Any) -> float:
        return self.loss_and_gradient(params, chunk, None)[0]


def _add(params: np.ndarray, X: np.ndarray, y: np.ndarray, gradient: np.ndarray) -> float:
    """The sum of the rows' losses; adds its gradient to `gradient`."""
    layers, last = params[:-WIDTH].reshape(LAYERS, WIDTH, WIDTH), params[-WIDTH:]
    changes, last_change = gradient[:-WIDTH].reshape(LAYERS, WIDTH, WIDTH), gradient[-WIDTH:]
    values = [X]
    for weights in layers:
        values.append(np.maximum(values[-1] @ weights, 0))
    error = values[-1] @ last - y
    last_change += values[-1].T @ error
    back = np.outer(error, last)
    for place in reversed(range(LAYERS)):
        back *= values[place + 1] > 0
        changes[place] += values[place].T @ back
        if place:
            back = back @ layers[place].T
    return float(error @ error) / 2
