"""The steps that gradient descent takes with the exact gradient, on NumPy or CuPy arrays."""

from abc import ABC, abstractmethod
from typing import Any

from psgc import config
from psgc.backend import Array


class Optimizer(ABC):
    """Turns (params, gradient) into the next params; both are vectors (dim,) and neither is changed."""

    def __init__(self, lr: float) -> None:
        self._lr = lr
        self._kept: dict[str, Any] = {}

    @abstractmethod
    def step(self, params: Array, gradient: Array) -> Array:
        """The parameters after one step, in a new array of params' dtype."""

    def state(self) -> dict[str, Any]:
        """What later steps depend on: vectors (dim,), never changed in place, and numbers, by name."""
        return dict(self._kept)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of an optimizer of the same kind, with arrays of the backend as vectors."""
        self._kept = dict(state)


class Sgd(Optimizer):
    """theta - lr * g."""

    def step(self, params: Array, gradient: Array) -> Array:
        return params - self._lr * gradient


class Momentum(Optimizer):
    """v = momentum * v + g; theta - lr * v, or with Nesterov's look-ahead theta - lr * (g + momentum * v).

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning"
    (ICML 2013), in the form where v does not contain the learning rate.
    """

    def __init__(self, lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(lr)
        self._momentum, self._nesterov = momentum, nesterov
        self._kept = {"velocity": 0.0}

    def step(self, params: Array, gradient: Array) -> Array:
        velocity = self._momentum * self._kept["velocity"] + gradient
        self._kept["velocity"] = velocity
        return params - self._lr * (gradient + self._momentum * velocity if self._nesterov else velocity)


class Adam(Optimizer):
    """Bias-corrected first and second moments. Source: Kingma and Ba, "Adam" (ICLR 2015), algorithm 1."""

    def __init__(self, lr: float, beta1: float, beta2: float, epsilon: float) -> None:
        super().__init__(lr)
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._kept = {"first": 0.0, "second": 0.0, "steps": 0}

    def step(self, params: Array, gradient: Array) -> Array:
        first = self._beta1 * self._kept["first"] + (1 - self._beta1) * gradient
        second = self._beta2 * self._kept["second"] + (1 - self._beta2) * gradient**2
        steps = self._kept["steps"] + 1
        self._kept = {"first": first, "second": second, "steps": steps}
        first, second = first / (1 - self._beta1**steps), second / (1 - self._beta2**steps)
        return params - self._lr * first / (second**0.5 + self._epsilon)


def make_optimizer(settings: config.Optimizer) -> Optimizer:
    """The optimizer that the configuration names."""
    match settings.kind:
        case "sgd":
            return Sgd(settings.lr)
        case "momentum" | "nesterov":
            return Momentum(settings.lr, settings.momentum, nesterov=settings.kind == "nesterov")
        case "adam":
            return Adam(settings.lr, settings.beta1, settings.beta2, settings.epsilon)
