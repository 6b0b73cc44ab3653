"""The steps that gradient descent takes with the exact gradient, on NumPy or CuPy arrays."""

from abc import ABC, abstractmethod
from typing import Any

from psgc.backend import Array
from psgc.errors import UserError


class Optimizer(ABC):
    """Turns (params, gradient) into the next params; both are vectors (dim,) and neither is changed."""

    @abstractmethod
    def step(self, params: Array, gradient: Array) -> Array:
        """The parameters after one step, in a new array of params' dtype."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What the steps so far have left: vectors (dim,), never changed later, and numbers, by name."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` of an optimizer of the same kind gave, vectors being arrays of the backend."""


class Sgd(Optimizer):
    """theta - lr * g."""

    def __init__(self, lr: float) -> None:
        self._lr = lr

    def step(self, params: Array, gradient: Array) -> Array:
        return params - self._lr * gradient

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass  # nothing is kept


class Momentum(Optimizer):
    """v = momentum * v + g; theta - lr * v, or with Nesterov's look-ahead theta - lr * (g + momentum * v).

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning"
    (ICML 2013), in the form where v does not contain the learning rate.
    """

    def __init__(self, lr: float, momentum: float, nesterov: bool) -> None:
        self._lr, self._momentum, self._nesterov = lr, momentum, nesterov
        self._velocity: Array = 0.0

    def step(self, params: Array, gradient: Array) -> Array:
        self._velocity = self._momentum * self._velocity + gradient
        ahead = gradient + self._momentum * self._velocity if self._nesterov else self._velocity
        return params - self._lr * ahead

    def state(self) -> dict[str, Any]:
        return {"velocity": self._velocity}

    def load(self, state: dict[str, Any]) -> None:
        self._velocity = state["velocity"]


class Adam(Optimizer):
    """Bias-corrected first and second moments. Source: Kingma and Ba, "Adam" (ICLR 2015), algorithm 1."""

    def __init__(self, lr: float, beta1: float, beta2: float, epsilon: float) -> None:
        self._lr, self._beta1, self._beta2, self._epsilon = lr, beta1, beta2, epsilon
        self._first: Array = 0.0
        self._second: Array = 0.0
        self._steps = 0

    def step(self, params: Array, gradient: Array) -> Array:
        self._steps += 1
        self._first = self._beta1 * self._first + (1 - self._beta1) * gradient
        self._second = self._beta2 * self._second + (1 - self._beta2) * gradient**2
        first = self._first / (1 - self._beta1**self._steps)
        second = self._second / (1 - self._beta2**self._steps)
        return params - self._lr * first / (second**0.5 + self._epsilon)

    def state(self) -> dict[str, Any]:
        return {"first": self._first, "second": self._second, "steps": self._steps}

    def load(self, state: dict[str, Any]) -> None:
        self._first, self._second, self._steps = state["first"], state["second"], state["steps"]


def make_optimizer(
    kind: str,
    lr: float,
    momentum: float = 0.9,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> Optimizer:
    """The optimizer called `kind`: sgd, momentum, nesterov or adam. Raises UserError for another name."""
    match kind:
        case "sgd":
            return Sgd(lr)
        case "momentum" | "nesterov":
            return Momentum(lr, momentum, nesterov=kind == "nesterov")
        case "adam":
            return Adam(lr, beta1, beta2, epsilon)
    raise UserError(f"optimizer.kind: expected sgd, momentum, nesterov or adam, got {kind!r}")
