"""The steps that gradient descent takes with the exact gradient, on NumPy or CuPy arrays."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from psgc import config
from psgc.backend import Array
from psgc.errors import RunFailed, UserError

HOST_BLOCK = 1 << 18  # bytes of a vector that are worked on at a time: they stay in the cache
DEVICE_BLOCK = 1 << 26  # on a GPU, where each operation costs some microseconds however short it is


class Optimizer(ABC):
    """Turns (params, gradient) into the next params; both are vectors (dim,) and neither is changed.

    A step goes through the vectors block by block and changes those of its state in place, so that it needs memory for
    the new parameters and a few blocks, and each block is read from memory once. NumPy's functions serve CuPy arrays as
    well.

    vectors: the names of the state's vectors, which are the number 0.0 before the first step.
    """

    def __init__(self, lr: float, vectors: tuple[str, ...] = ()) -> None:
        self._lr = lr
        self._vectors: dict[str, Any] = dict.fromkeys(vectors, 0.0)
        self._numbers: dict[str, int] = {}
        self._is_shared = True  # whether somebody else may read the vectors, or there are none yet

    def step(self, params: Array, gradient: Array) -> Array:
        """The parameters after one step, in a new array of params' dtype.

        Raises FloatingPointError when some of them are NaN or infinite.
        """
        before = tuple(self._vectors.values())
        entries = (HOST_BLOCK if isinstance(params, np.ndarray) else DEVICE_BLOCK) // params.itemsize
        stepped = np.empty_like(params)
        after = [np.empty_like(params) for _ in before] if self._is_shared else [*before]
        squares = 0.0  # their sum; on a GPU it is there when all blocks have been stepped
        for start in range(0, params.size, entries):
            block = slice(start, start + entries)
            state = [vector if isinstance(vector, float) else vector[block] for vector in before]
            results = self._step(stepped[block], params[block], gradient[block], *state)
            for target, values in zip(after, results, strict=True):
                target[block] = values
            squares = squares + np.vdot(stepped[block], stepped[block])
        self._vectors, self._is_shared = dict(zip(self._vectors, after, strict=True)), False
        if not (math.isfinite(squares) or np.isfinite(stepped).all()):
            raise FloatingPointError("parameters are NaN or infinite")
        return stepped

    @abstractmethod
    def _step(self, stepped: Array, params: Array, gradient: Array, *state: Any) -> tuple[Array, ...]:
        """The same for one block, into `stepped`. Returns the vectors of the state after the step, in new arrays."""

    def state(self) -> dict[str, Any]:
        """What later steps depend on: vectors (dim,), which later steps do not change, and numbers, by name.

        It copies nothing. Instead the next step puts the vectors in new arrays.
        """
        self._is_shared = True
        return self._vectors | self._numbers

    def load(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of an optimizer of the same kind, with arrays of the backend as vectors.

        The arrays are not changed. Integers may come as floats.
        """
        self._vectors = {name: state[name] for name in self._vectors}
        self._numbers = {name: int(state[name]) for name in self._numbers}
        self._is_shared = True


class Sgd(Optimizer):
    """theta - lr * g."""

    def _step(self, stepped: Array, params: Array, gradient: Array, *state: Any) -> tuple[Array, ...]:
        np.multiply(gradient, self._lr, out=stepped)
        np.subtract(params, stepped, out=stepped)
        return ()


class Momentum(Optimizer):
    """v = momentum * v + g; theta - lr * v, or with Nesterov's look-ahead theta - lr * (g + momentum * v).

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning"
    (ICML 2013), in the form where v does not contain the learning rate.
    """

    def __init__(self, lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(lr, ("velocity",))
        self._momentum, self._nesterov = momentum, nesterov

    def _step(self, stepped: Array, params: Array, gradient: Array, *state: Any) -> tuple[Array, ...]:
        velocity = self._momentum * state[0] + gradient
        change = gradient + self._momentum * velocity if self._nesterov else velocity
        np.subtract(params, self._lr * change, out=stepped)
        return (velocity,)


class Adam(Optimizer):
    """Bias-corrected first and second moments. Source: Kingma and Ba, "Adam" (ICLR 2015), algorithm 1."""

    def __init__(self, lr: float, beta1: float, beta2: float, epsilon: float) -> None:
        super().__init__(lr, ("first", "second"))
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._numbers = {"steps": 0}

    def step(self, params: Array, gradient: Array) -> Array:
        self._numbers["steps"] += 1
        return super().step(params, gradient)

    def _step(self, stepped: Array, params: Array, gradient: Array, *state: Any) -> tuple[Array, ...]:
        first = self._beta1 * state[0] + (1 - self._beta1) * gradient
        second = self._beta2 * state[1] + (1 - self._beta2) * gradient**2
        steps = self._numbers["steps"]
        right_first, right_second = first / (1 - self._beta1**steps), second / (1 - self._beta2**steps)
        np.subtract(params, self._lr * right_first / (right_second**0.5 + self._epsilon), out=stepped)
        return first, second


def make_optimizer(settings: config.Optimizer | config.ScriptOptimizer) -> Optimizer:
    """The optimizer that the configuration names. Raises UserError when that is a script's own."""
    match settings.kind:
        case "sgd":
            return Sgd(settings.lr)
        case "momentum" | "nesterov":
            return Momentum(settings.lr, settings.momentum, nesterov=settings.kind == "nesterov")
        case "adam":
            return Adam(settings.lr, settings.beta1, settings.beta2, settings.epsilon)
        case "script":
            raise UserError("optimizer: a script makes the steps itself; start it with: psgc launch SCRIPT.py -n 9")


def finite_step(optimizer: Optimizer, params: Array, gradient: Array, iteration: int) -> Array:
    """The step of `iteration`, as `Optimizer.step`. Raises RunFailed when it makes parameters NaN or infinite."""
    try:
        with np.errstate(all="ignore"):
            return optimizer.step(params, gradient)
    except FloatingPointError:
        raise RunFailed(
            f"the step of iteration {iteration} makes parameters NaN or infinite, those before "
            "it are kept; a smaller optimizer.lr may help"
        ) from None
