"""Each optimizer against its formula written a second time, entry by entry, and against closed forms."""

import copy
import math

import numpy as np
import pytest

from psgc import config
from psgc.server.optimizer import make_optimizer

KINDS = ("sgd", "momentum", "nesterov", "adam")
ALL = pytest.mark.parametrize("kind", KINDS)
SETTINGS = {
    "sgd": {"lr": 0.3},
    "momentum": {"lr": 0.1, "momentum": 0.8},
    "nesterov": {"lr": 0.1, "momentum": 0.8},
    "adam": {"lr": 0.05, "beta1": 0.7, "beta2": 0.95, "epsilon": 1e-3},
}


def reference(kind, theta, gradients):
    """Where one number goes, by the formula of the optimizer."""
    s = SETTINGS[kind]
    v = m = second = 0.0
    for t, g in enumerate(gradients, start=1):
        match kind:
            case "sgd":
                theta -= s["lr"] * g
            case "momentum":
                v = s["momentum"] * v + g
                theta -= s["lr"] * v
            case "nesterov":
                v = s["momentum"] * v + g
                theta -= s["lr"] * (g + s["momentum"] * v)
            case "adam":
                m = s["beta1"] * m + (1 - s["beta1"]) * g
                second = s["beta2"] * second + (1 - s["beta2"]) * g * g
                right_m, right_second = m / (1 - s["beta1"] ** t), second / (1 - s["beta2"] ** t)
                theta -= s["lr"] * right_m / (math.sqrt(right_second) + s["epsilon"])
    return theta


def made(kind):
    return make_optimizer(config.Optimizer(kind=kind, **SETTINGS[kind]))


def run(optimizer, params, gradients):
    for gradient in gradients:
        params = optimizer.step(params, gradient)
    return params


@ALL
@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_steps_follow_the_formula(kind, steps):
    rng = np.random.default_rng(steps)
    start, gradients = rng.standard_normal(5), rng.standard_normal((steps, 5))
    found = run(made(kind), start, gradients)
    expected = [reference(kind, start[i], gradients[:, i]) for i in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_nesterov_looks_ahead_as_in_the_paper():
    """Sutskever et al.: v <- mu v - lr grad(theta + mu v), theta <- theta + v; our params are their theta + mu v."""
    hessian, lr, mu = np.array([[3.0, 1.0], [1.0, 2.0]]), 0.1, 0.8
    theta, velocity = np.array([1.0, -1.0]), np.zeros(2)
    params, optimizer = theta, make_optimizer(config.Optimizer(kind="nesterov", lr=lr, momentum=mu))
    for _ in range(10):
        velocity = mu * velocity - lr * hessian @ (theta + mu * velocity)
        theta = theta + velocity
        params = optimizer.step(params, hessian @ params)
        np.testing.assert_allclose(params, theta + mu * velocity, rtol=1e-12)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_stays_and_neither_argument_is_changed(kind, dtype):
    optimizer, params, gradient = made(kind), np.ones(3, dtype), np.full(3, 0.25, dtype)
    params.setflags(write=False)
    gradient.setflags(write=False)
    first = optimizer.step(params, gradient)
    kept = first.copy()
    second = optimizer.step(first, gradient)
    assert first.dtype == second.dtype == dtype
    assert not np.shares_memory(first, second)
    assert (first == kept).all()


@ALL
def test_the_gradients_memory_may_be_used_again(kind):
    """The decoder sums every iteration's gradient in the same array."""
    gradients = np.random.default_rng(1).standard_normal((5, 3))
    expected = run(made(kind), np.ones(3), gradients)
    buffer, params, optimizer = np.empty(3), np.ones(3), made(kind)
    for gradient in gradients:
        buffer[:] = gradient
        params = optimizer.step(params, buffer)
        buffer.fill(0)
    np.testing.assert_array_equal(params, expected)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("before", [0, 3])
def test_going_on_from_a_state_is_going_on(kind, dtype, before):
    gradients = np.random.default_rng(1).standard_normal((7, 3)).astype(dtype)
    optimizer = made(kind)
    params = run(optimizer, np.ones(3, dtype), gradients[:before])
    state = optimizer.state()
    kept = copy.deepcopy(state)
    expected = run(optimizer, params, gradients[before:])
    for name, value in kept.items():  # later steps have not changed what was taken before
        assert np.array_equal(state[name], value)
    other = made(kind)
    other.load(state)
    found = run(other, params, gradients[before:])
    assert found.tobytes() == expected.tobytes()
    assert found.dtype == dtype
