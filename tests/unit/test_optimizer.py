"""Each optimizer against its formula written a second time, entry by entry, and against closed forms."""

import copy
import math
import tracemalloc

import numpy as np
import pytest

from psgc import config, optimizer
from psgc.errors import RunFailed
from psgc.optimizer import HOST_BLOCK, finite_step, make_optimizer
from tests.unit.test_backend import opened

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
    descent, params, gradient = made(kind), np.ones(3, dtype), np.full(3, 0.25, dtype)
    params.setflags(write=False)
    gradient.setflags(write=False)
    first = descent.step(params, gradient)
    kept = first.copy()
    second = descent.step(first, gradient)
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


def plain(kind, params, gradients):
    """The formulas on whole vectors, without blocks and with a new array for every result."""
    s = SETTINGS[kind]
    velocity = first = second = 0.0
    for t, gradient in enumerate(gradients, start=1):
        match kind:
            case "sgd":
                params = params - s["lr"] * gradient
            case "momentum":
                velocity = s["momentum"] * velocity + gradient
                params = params - s["lr"] * velocity
            case "nesterov":
                velocity = s["momentum"] * velocity + gradient
                params = params - s["lr"] * (gradient + s["momentum"] * velocity)
            case "adam":
                first = s["beta1"] * first + (1 - s["beta1"]) * gradient
                second = s["beta2"] * second + (1 - s["beta2"]) * gradient**2
                right_first, right_second = first / (1 - s["beta1"] ** t), second / (1 - s["beta2"] ** t)
                params = params - s["lr"] * right_first / (right_second**0.5 + s["epsilon"])
    return params


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_blocks_change_no_bit(name, kind, dtype, monkeypatch):
    monkeypatch.setattr(optimizer, "DEVICE_BLOCK", HOST_BLOCK)
    backend, rng = opened(name), np.random.default_rng(0)
    entries = HOST_BLOCK // np.dtype(dtype).itemsize
    for size in (1, entries - 1, entries, entries + 1, 2 * entries, 2 * entries + 7):
        start, *gradients = (backend.asarray(rng.standard_normal(size).astype(dtype)) for _ in range(4))
        descent, params = made(kind), start
        for done, gradient in enumerate(gradients, start=1):
            params = descent.step(params, gradient)
            expected = plain(kind, start, gradients[:done])
            assert backend.to_host(params).tobytes() == backend.to_host(expected).tobytes()


LONG = 24 * HOST_BLOCK // 4 + 5  # entries of float32


@ALL
def test_a_step_takes_memory_for_the_new_parameters_and_some_blocks(kind):
    descent, params, gradient = made(kind), np.ones(LONG, np.float32), np.ones(LONG, np.float32)
    params = descent.step(params, gradient)
    state = [id(vector) for vector in descent._vectors.values()]
    tracemalloc.start()
    try:
        params = descent.step(params, gradient)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < params.nbytes + 1e5
    assert peak < params.nbytes + 12 * HOST_BLOCK
    assert state == [id(vector) for vector in descent._vectors.values()]


@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("length", [3, LONG])
def test_what_others_hold_of_the_state_is_never_changed(kind, length):
    params, gradient = np.ones(length, np.float32), np.full(length, 0.5, np.float32)
    descent, other = made(kind), made(kind)
    for _ in range(2):
        params = descent.step(params, gradient)
    state = descent.state()
    kept = copy.deepcopy(state)
    other.load(state)
    for _ in range(2):
        assert (descent.step(params, gradient) == other.step(params, gradient)).all()
    assert state.keys() == kept.keys()
    assert all(np.array_equal(state[name], kept[name]) for name in kept)
    assert not np.array_equal(descent.state()[min(state)], kept[min(state)])


def test_integers_of_a_state_stay_integers():
    descent = made("adam")
    assert descent.state() == {"first": 0.0, "second": 0.0, "steps": 0}
    descent.load({"first": 0.0, "second": 0.0, "steps": 7.0})
    descent.step(np.ones(2), np.ones(2))
    assert repr(descent.state()["steps"]) == "8"


def test_a_step_to_parameters_that_are_not_finite_is_refused():
    gradient = np.array([1.0, 1e308])
    assert finite_step(made("sgd"), np.ones(2), gradient / 1e308, 4) == pytest.approx([1.0, 0.7])
    with pytest.raises(RunFailed, match="the step of iteration 5 makes parameters NaN or infinite"):
        finite_step(make_optimizer(config.Optimizer(kind="sgd", lr=10.0)), np.ones(2), gradient, 5)
