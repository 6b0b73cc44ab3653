"""The steps that gradient descent takes with the exact gradient, on NumPy or CuPy arrays."""

import hashlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from psgc import config
from psgc.backend import Array
from psgc.errors import RunFailed, UserError

HOST_BLOCK = 1 << 18  # bytes of a vector that are worked on at a time: they stay in the cache
DEVICE_BLOCK = 1 << 26  # on a GPU, where each operation costs some microseconds however short it is


@dataclass(frozen=True)
class Rules:
    """What a step does besides its own formula.

    Source of weight_decay: Loshchilov and Hutter, "Decoupled weight decay regularization" (ICLR 2019).
    """

    factor: Callable[[int], float] = lambda iteration: 1.0  # of the learning rate in an iteration
    clip_norm: float | None = None  # the gradient is scaled down to this Euclidean norm
    weight_decay: float = 0.0  # lr * weight_decay * theta is subtracted as well, and moments know nothing of it


class Optimizer(ABC):
    """Turns (params, gradient) into the next params; both are vectors (dim,) and neither is changed.

    A step goes through the vectors block by block and changes those of its state in place: it needs memory for the new
    parameters and a few blocks, and reads each block from memory once. NumPy's functions serve CuPy arrays as well.

    vectors: the names of the state's vectors, which are the number 0.0 before the first step; rules: what is common to
    all kinds, may be set before the first step; undoes: whether a step that raises leaves the state as it was, which
    takes memory for as many vectors again; divides: whether a step divides by the last vector, so that an infinite
    entry of it stops a parameter for good, which the parameters do not show.
    """

    undoes = divides = False

    def __init__(self, lr: float, vectors: tuple[str, ...] = ()) -> None:
        self.rules = Rules()
        self._first_lr = self._lr = lr  # without the schedule, and of the step under way
        self._vectors: dict[str, Any] = dict.fromkeys(vectors, 0.0)
        self._numbers: dict[str, int] = {}
        self._is_shared = True  # whether somebody else may read the vectors, or there are none yet
        self._spare: list[Any] = []  # vectors that are not read any more
        self._former: list[Any] = []  # the parameters before the newest step; others may read them

    def step(self, params: Array, gradient: Array, iteration: int = 0) -> Array:
        """The parameters after one step, in another array of params' dtype. iteration: for the schedule of the rate.

        That is the memory of the parameters of a step before, once nothing refers to it any more: for long vectors new
        pages take as long as the step. Raises FloatingPointError when some of them are NaN or infinite, or what a step
        divides by is. Its text says which.
        """
        self._lr = self._first_lr * self.rules.factor(iteration)
        before = tuple(self._vectors.values())
        entries = (HOST_BLOCK if isinstance(params, np.ndarray) else DEVICE_BLOCK) // params.itemsize
        stepped = self._memory_like(params)
        is_new = self._is_shared or self.undoes
        after = (self._spare or [np.empty_like(params) for _ in before]) if is_new else [*before]
        blocks = [slice(start, start + entries) for start in range(0, params.size, entries)]
        scale = self._scale(gradient, blocks)
        squares = largest = 0.0  # a sum, and of the divisor; on a GPU they are there when all blocks have been stepped
        for block in blocks:
            state = [vector if isinstance(vector, float) else vector[block] for vector in before]
            slope = gradient[block] if scale == 1 else gradient[block] * scale
            results = self._step(stepped[block], params[block], slope, *state)
            if self.rules.weight_decay:
                stepped[block] -= (self._lr * self.rules.weight_decay) * params[block]
            for target, values in zip(after, results, strict=True):
                target[block] = values
            if self.divides:
                largest = np.maximum(largest, results[-1].max())
            squares = squares + np.vdot(stepped[block], stepped[block])
        if not (math.isfinite(squares) or np.isfinite(stepped).all()):
            raise FloatingPointError("parameters")
        if not math.isfinite(largest):
            raise FloatingPointError("the optimizer's state")
        self._spare = [*before] if is_new and not self._is_shared else []
        self._former = [params]
        self._vectors, self._is_shared = dict(zip(self._vectors, after, strict=True)), False
        return stepped

    def _memory_like(self, params: Array) -> Array:
        former, self._former = self._former, []
        if former and _is_only_there(former) and former[0].shape == params.shape and former[0].dtype == params.dtype:
            former[0].setflags(write=True)
            return former[0]
        return np.empty_like(params)

    def _scale(self, gradient: Array, blocks: list[slice]) -> float:
        """What to multiply the gradient by so that its norm is at most `clip_norm`.

        Summed by NumPy, not by a BLAS, whose sums differ between processors: replicas need the same bits.
        """
        if self.rules.clip_norm is None:
            return 1.0
        norm = math.sqrt(sum(float(np.square(gradient[block], dtype=np.float64).sum()) for block in blocks))
        if not math.isfinite(norm):
            raise FloatingPointError("parameters")  # those of a gradient of zeros and NaN, which it would be scaled to
        return min(1.0, self.rules.clip_norm / norm) if norm else 1.0

    @abstractmethod
    def _step(self, stepped: Array, params: Array, gradient: Array, *state: Any) -> tuple[Array, ...]:
        """The same for one block, into `stepped`. Returns the vectors of the state after the step, in new arrays."""

    def state(self) -> dict[str, Any]:
        """What later steps depend on: vectors (dim,), which later steps do not change, and numbers, by name.

        It copies nothing. Instead the next step puts the vectors in new arrays.
        """
        self._is_shared = True
        return self._vectors | self._numbers

    def digest(self, content: Callable[[Array], bytes]) -> bytes:
        """8 bytes that depend on the `state`. content: of a vector, bytes that show other bits."""
        found = hashlib.blake2b(digest_size=8)
        for value in (*self._vectors.values(), *self._numbers.values()):
            found.update(repr(value).encode() if isinstance(value, int | float) else content(value))
        return found.digest()

    def load(self, state: dict[str, Any], is_own: bool = False) -> None:
        """Go on from the `state` of an optimizer of the same kind, with arrays of the backend as vectors.

        Integers may come as floats. is_own: no other code reads the arrays, so that steps may change them.
        """
        self._vectors = {name: state[name] for name in self._vectors}
        self._numbers = {name: int(state[name]) for name in self._numbers}
        self._is_shared = not is_own or any(isinstance(vector, float) for vector in self._vectors.values())


def _is_only_there(array: list[Any]) -> bool:
    """Whether only this list refers to the memory of the NumPy array in it."""
    return type(array[0]) is np.ndarray and array[0].flags.owndata and sys.getrefcount(array[0]) <= _ALONE


# how often an array counts while a call is under way depends on the interpreter
_ALONE = (lambda array: sys.getrefcount(array[0]))([np.empty(0)])


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

    divides = True

    def __init__(self, lr: float, beta1: float, beta2: float, epsilon: float) -> None:
        super().__init__(lr, ("first", "second"))
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._numbers = {"steps": 0}

    def step(self, params: Array, gradient: Array, iteration: int = 0) -> Array:
        stepped = super().step(params, gradient, iteration)
        self._numbers["steps"] += 1
        return stepped

    def _step(self, stepped: Array, params: Array, gradient: Array, *state: Any) -> tuple[Array, ...]:
        first = self._beta1 * state[0] + (1 - self._beta1) * gradient
        second = self._beta2 * state[1] + (1 - self._beta2) * gradient**2
        steps = self._numbers["steps"] + 1
        right_first, right_second = first / (1 - self._beta1**steps), second / (1 - self._beta2**steps)
        np.subtract(params, self._lr * right_first / (right_second**0.5 + self._epsilon), out=stepped)
        return first, second


def make_optimizer(settings: config.OptimizerSettings | config.ScriptOptimizer, iterations: int = 1) -> Optimizer:
    """The optimizer of a run of so many iterations. Raises UserError when it is a script's own."""
    if isinstance(settings, config.ScriptOptimizer):
        raise UserError("optimizer: a script makes the steps itself; start it with: psgc launch SCRIPT.py -n 8")
    optimizer: Optimizer
    match settings.kind:
        case "sgd":
            optimizer = Sgd(settings.lr)
        case "momentum" | "nesterov":
            optimizer = Momentum(settings.lr, settings.momentum, nesterov=settings.kind == "nesterov")
        case "adam" | "adamw":  # with the same steps: weight decay is decoupled in both, only its default differs
            optimizer = Adam(settings.lr, settings.beta1, settings.beta2, settings.epsilon)
    schedule = partial(factor, settings.schedule, iterations) if settings.schedule else Rules.factor
    optimizer.rules = Rules(schedule, settings.clip_norm, settings.weight_decay)
    return optimizer


def factor(schedule: config.RateSchedule, iterations: int, iteration: int) -> float:
    """What the learning rate is multiplied by in `iteration`, counted from 0.

    Warm-up: (iteration + 1) / warmup. Then, with s iterations since it and n from its end to that of the decay
    (`length`, or `iterations` of the run): constant 1; step: factor^floor(s / every); linear: from 1 to `final`, which
    it has at n and from then on; cosine likewise, along half a period.
    """
    if iteration < schedule.warmup:
        return (iteration + 1) / schedule.warmup
    since = iteration - schedule.warmup
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "step":
        return schedule.factor ** (since // schedule.every)
    share = min(1.0, since / max((schedule.length or iterations) - schedule.warmup, 1))
    left = 1 - share if schedule.kind == "linear" else (1 + math.cos(math.pi * share)) / 2
    return round(schedule.final + (1 - schedule.final) * left, 15)  # ranks may have other cosines, by a bit


def finite_step(optimizer: Optimizer, params: Array, gradient: Array, iteration: int) -> Array:
    """The step of `iteration`, as `Optimizer.step`. Raises RunFailed when it makes something NaN or infinite."""
    try:
        with np.errstate(all="ignore"):
            return optimizer.step(params, gradient, iteration)
    except FloatingPointError as error:
        raise RunFailed(
            f"the step of iteration {iteration} makes {error} NaN or infinite, the parameters before it are kept; "
            "a smaller optimizer.lr or an optimizer.clip_norm may help"
        ) from None
