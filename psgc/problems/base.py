"""The Problem protocol, for the built-in models and for users' models.

The objective is a sum over chunks, L = sum over i of loss_i, and a worker computes gradients of loss_i. For
the built-in problems

    loss_i = weight_i * (mean over the rows of chunk i of the row's loss  +  l2 / 2 * |params|^2)

with weight_i = rows of chunk i / rows of the data (with epochs: of the iteration's batch, both). So L is the mean row
loss plus l2 / 2 |params|^2 however the data is cut, and a batch drawn from a chunk gives an unbiased estimate.

A complete problem, which fits the mean of the labels:

    class Mean:
        dim = 1

        def initial_params(self):
            return np.zeros(1)

        def gradient(self, params, chunk, rng):
            return chunk.weight * (params - chunk.y.mean())
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np

from psgc.backend import Array
from psgc.data import Chunk

Evaluation: TypeAlias = Callable[[Array, Chunk, np.random.Generator], tuple[float, Array]]


class Problem(Protocol):
    """The methods of a problem. Copies of a chunk must agree, so `gradient` must depend on its arguments alone.

    Optional methods:

    * `loss(params, chunk) -> float`: loss_i, shown and recorded. The run ends when its sum over the chunks is not
      finite.
    * `loss_and_gradient(params, chunk, rng) -> (float, vector)`: both at the cost of one.
    * `accuracy(params, chunk) -> float`: the fraction of the chunk's rows that are classified correctly.
    * `prepare_evaluation(params, chunks)`: called before `loss` and `accuracy` in an evaluation. From its arguments
      alone it computes the state that the problem keeps besides its parameters, such as running statistics. `chunks`
      yields the chunks of the training data, each read when it is taken.
    """

    dim: int
    """Number of parameters, d."""

    def initial_params(self) -> np.ndarray:
        """The parameters training starts from: (dim,) float64."""

    def gradient(self, params: Array, chunk: Chunk, rng: np.random.Generator) -> Array:
        """Gradient of loss_i at `params`: (dim,), of the dtype and on the device of `params`.

        All its terms must contain the factor chunk.weight, which `psgc.problems.halves` checks. psgc copies the vector
        if other code may use its memory. `params` and `chunk` must not be written to.

        rng: seeded by (seed, iteration, chunk); the only source of random numbers that is allowed
        """


def has_loss(problem: Problem) -> bool:
    return hasattr(problem, "loss_and_gradient") or hasattr(problem, "loss")


def evaluate(problem: Problem) -> Evaluation:
    """A function (params, chunk, rng) -> (loss, gradient), from the cheapest methods of the problem.

    The loss is nan for a problem without one (`has_loss`).
    """
    both: Evaluation | None = getattr(problem, "loss_and_gradient", None)
    if both is not None:
        return both
    loss: Callable[[Array, Chunk], float] | None = getattr(problem, "loss", None)

    def separately(params: Array, chunk: Chunk, rng: np.random.Generator) -> tuple[float, Array]:
        gradient = problem.gradient(params, chunk, rng)
        return (float("nan") if loss is None else loss(params, chunk)), gradient

    return separately


def prepare_evaluation(problem: Problem, params: Array, chunks: Iterator[Chunk]) -> None:
    """Let the problem recompute its own state for an evaluation at `params`, if it has a method for that.

    chunks: the chunks of the training data, in order (`psgc.data.ChunkSource.each`)
    """
    if (prepare := getattr(problem, "prepare_evaluation", None)) is not None:
        prepare(params, chunks)


def array_namespace(array: Array) -> Any:
    """numpy or cupy, whichever `array` belongs to."""
    return sys.modules["cupy"] if type(array).__module__.partition(".")[0] == "cupy" else np
