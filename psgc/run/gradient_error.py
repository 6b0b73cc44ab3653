"""The errors of approximate gradients, computed after the run from the gradients of the chunks that they lack."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.coding import encoding_coefficients
from psgc.server.observer import Approximation

MEMORY = 64 << 20  # bytes of parameters and gradients that are kept
AT_LEAST = 2.0  # seconds that the computation may take
SHARE = 0.1  # of the run's time, that it may take where this is more


class GradientErrorEstimator:
    """Keeps the approximate gradients of some iterations, as many as there is memory for.

    to_host: makes NumPy arrays of the backend's.
    """

    def __init__(self, to_host: Callable[[Any], np.ndarray]) -> None:
        self._to_host = to_host
        self._kept: list[Approximation] = []
        self._stride, self._seen = 1, 0

    def add(self, approximation: Approximation) -> None:
        """Keep a copy, or every second one, every fourth, ... when there is no room for all."""
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        params, used = (np.array(self._to_host(vector)) for vector in (approximation.params, approximation.used))
        is_plain = approximation.plain is approximation.used  # one copy less: the workers wait meanwhile
        plain = used if is_plain else np.array(self._to_host(approximation.plain))
        self._kept.append(Approximation(approximation.iteration, params, used, plain, approximation.incomplete))
        if len(self._kept) > 1 and 3 * params.nbytes * len(self._kept) > MEMORY:
            self._kept = self._kept[::2]
            self._stride *= 2

    def actual_errors(
        self, gradient: Callable[[np.ndarray, int, int], np.ndarray], coding_matrix: np.ndarray, seconds: float
    ) -> dict[int, float]:
        """|used - exact| / |exact| by iteration, of as many as there is time for, spread over the run.

        gradient: computes the gradient (dim,) of (params, iteration, chunk).
        coding_matrix: (workers, parts).
        seconds: what the run took.
        """
        end = time.monotonic() + max(AT_LEAST, SHARE * seconds)
        errors: dict[int, float] = {}
        for place in np.random.default_rng(0).permutation(len(self._kept)):
            approximation = self._kept[place]
            lacking = np.zeros_like(approximation.used)
            for chunk, contributors in approximation.incomplete.items():
                if time.monotonic() > end:
                    return errors
                whole = gradient(approximation.params, approximation.iteration, chunk)
                lacking += unseen(whole, coding_matrix, contributors)
            exact = approximation.plain + lacking
            error = np.linalg.norm(approximation.used - exact) / max(float(np.linalg.norm(exact)), 1e-300)
            errors[approximation.iteration] = float(error)
        return errors


def unseen(gradient: np.ndarray, coding_matrix: np.ndarray, contributors: tuple[int, ...]) -> np.ndarray:
    """What a gradient (dim,) has besides its projection on the row space of R[S], where S are the contributors.

    >>> R = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> unseen(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), R, (1,))  # of the parts, 1 2 5 and 3 4, worker 1 shows the first
    array([0., 0., 3., 4., 0.])
    """
    parts = coding_matrix.shape[1]
    rows = coding_matrix[[worker - 1 for worker in contributors]]
    hidden = np.eye(parts) - rows.T @ encoding_coefficients(rows) if contributors else np.eye(parts)
    columns = len(gradient) // parts
    cut = parts * columns
    result = np.empty_like(gradient)
    result[:cut] = (hidden @ gradient[:cut].reshape(parts, columns)).reshape(-1)
    rest = np.zeros(parts, gradient.dtype)
    rest[: len(gradient) - cut] = gradient[cut:]
    result[cut:] = (hidden @ rest)[: len(gradient) - cut]
    return result
