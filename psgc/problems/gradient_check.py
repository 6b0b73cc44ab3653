"""Compares the gradient of a problem with differences of its loss, for `psgc train --check-gradient`."""

from collections.abc import Callable

import numpy as np

from psgc.data import Chunk
from psgc.errors import UserError, one_line, raised_at
from psgc.problems.base import Problem, evaluate, has_loss
from psgc.problems.halves import ChunkCheck, halves_of

Function = Callable[[np.ndarray], float]

STEPS = (1e-4, 1e-5)  # lengths of steps; where their differences are far apart, the loss is rough or rounded
ALLOWED = 1e-5  # difference from the gradient, relative to its length
DIRECTIONS = 3  # random ones, besides that of the gradient
ENTRIES = 200  # of a wrong gradient, that are looked at
SAME_FACTOR = 1e-5  # relative difference up to which all directions show the same factor
NEAR = 0.01  # standard deviation of what is added to the parameters, which may be special at the beginning
ADDS_UP = 1e-6  # relative difference of a chunk's gradient from the sum over its halves


def check_gradient(problem: Problem, params: np.ndarray, chunk: Chunk) -> str:
    """A line that says how well the gradient of a chunk, near `params`, agrees with its loss and with its halves.

    Raises UserError: the gradient is wrong, or there is nothing to compare it with.
    """
    if not has_loss(problem):
        raise UserError("the model has no loss to compare its gradient with; expected a method loss(params, chunk)")
    rng = np.random.default_rng(0)
    params = params + NEAR * rng.standard_normal(len(params))
    loss, gradient = _evaluated(problem, params, chunk)
    is_random = not np.array_equal(gradient, _evaluated(problem, params, chunk, seed=1)[1])
    if is_random and not hasattr(problem, "loss_and_gradient"):
        text = "expected a method loss_and_gradient(params, chunk, rng)"
        raise UserError(f"the gradient draws random numbers, which loss does not get; {text}")
    ChunkCheck(problem).check(params, chunk)

    def at(point: np.ndarray) -> float:
        return _evaluated(problem, point, chunk)[0]

    length = float(np.linalg.norm(gradient))
    directions = rng.standard_normal((DIRECTIONS, len(params)))
    if length:
        directions = np.vstack([gradient, directions])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    found = [(*_slope(at, params, direction), float(gradient @ direction)) for direction in directions]
    if any(_is_wrong(*of, length) for of in found):
        raise UserError(_wrong(at, params, gradient, found, loss))
    unknown = max(noise for _, noise, _ in found)
    if unknown > 0.1 * max(length, abs(loss)):
        raise UserError(f"the loss jumps near the parameters, by differences it changes by {unknown:.2g}: cannot tell")
    apart = max(abs(slope - expected) for slope, _, expected in found) / (length or 1.0)
    rows = 0 if chunk.X is None else int(chunk.X.shape[0])
    of = f" of {rows} rows" if rows else ""
    return f"the gradient{of} is that of the loss, up to {apart:.1g} of its length{_halves(problem, params, chunk)}"


def _evaluated(problem: Problem, params: np.ndarray, chunk: Chunk, seed: int = 0) -> tuple[float, np.ndarray]:
    try:
        loss, gradient = evaluate(problem)(params, chunk, np.random.default_rng(seed))
        loss, gradient = float(loss), np.array(gradient, np.float64)
    except Exception as error:
        raise UserError(f"the model raised {one_line(error)}{raised_at(error)}") from error
    if gradient.shape != params.shape:
        raise UserError(f"the gradient has the shape {gradient.shape}, expected {params.shape}")
    if not (np.isfinite(loss) and np.isfinite(gradient).all()):
        raise UserError("loss or gradient are NaN or infinite near the initial parameters, expected finite numbers")
    return loss, gradient


def _slope(at: Function, params: np.ndarray, direction: np.ndarray) -> tuple[float, float]:
    """The change of the loss in a direction of length 1, and how uncertain it is."""
    coarse, fine = ((at(params + step * direction) - at(params - step * direction)) / (2 * step) for step in STEPS)
    return fine, abs(coarse - fine)


def _is_wrong(slope: float, noise: float, expected: float, length: float) -> bool:
    return abs(slope - expected) > max(ALLOWED * max(length, abs(slope)), 10 * noise)


def _wrong(
    at: Function, params: np.ndarray, gradient: np.ndarray, found: list[tuple[float, float, float]], loss: float
) -> str:
    slopes, expected = np.array([of[0] for of in found]), np.array([of[2] for of in found])
    factor = float(slopes @ expected / (slopes @ slopes)) if slopes.any() else 0.0
    if np.abs(expected - factor * slopes).max() <= SAME_FACTOR * np.abs(expected).max():
        return (
            f"the gradient is {factor:.4g} times that of the loss; expected the same: one of them lacks a factor, "
            "such as chunk.weight, 1/2 or 2"
        )
    entries = np.argsort(-np.abs(gradient), kind="stable")
    if len(entries) > ENTRIES:
        others = np.random.default_rng(0).choice(entries[ENTRIES // 2 :], ENTRIES // 2, replace=False)
        entries = np.concatenate([entries[: ENTRIES // 2], others])
    by_entry = {int(entry): _slope(at, params, np.eye(1, len(params), entry)[0])[0] for entry in entries}
    worst = max(by_entry, key=lambda entry: abs(by_entry[entry] - gradient[entry]))
    return (
        f"entry {worst} of the gradient is {gradient[worst]:.4g}, but the loss ({loss:.4g}) changes by "
        f"{by_entry[worst]:.4g}; expected the same: loss and gradient must have the same terms, weight decay too"
    )


def _halves(problem: Problem, params: np.ndarray, chunk: Chunk) -> str:
    if (halves := halves_of(chunk)) is None:
        return ""
    whole, one, other = (_evaluated(problem, params, part)[1] for part in (chunk, *halves))
    apart = float(np.linalg.norm(whole - one - other)) / (float(np.linalg.norm(whole)) or 1.0)
    if apart <= ADDS_UP:
        return f", and the sum over two halves, up to {apart:.1g}"
    return (
        f"; it differs from the sum over two halves by {apart:.1g}: what is trained depends on how the data is cut, "
        "as with batch normalisation"
    )
