"""Each optimizer against its formula written a second time, entry by entry, and against closed forms."""

import copy
import math
import tracemalloc

import numpy as np
import pytest
import torch

from psgc import config, optimizer
from psgc.errors import RunFailed, UserError
from psgc.optimizer import HOST_BLOCK, finite_step, make_optimizer
from tests.unit.test_backend import opened

KINDS = ("sgd", "momentum", "nesterov", "adam", "adamw")
ALL = pytest.mark.parametrize("kind", KINDS)
SETTINGS = {
    "sgd": {"lr": 0.3},
    "momentum": {"lr": 0.1, "momentum": 0.8},
    "nesterov": {"lr": 0.1, "momentum": 0.8},
    "adam": {"lr": 0.05, "beta1": 0.7, "beta2": 0.95, "epsilon": 1e-3},
    "adamw": {"lr": 0.05, "beta1": 0.7, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.0},
}


def made(kind):
    return make_optimizer(config.OptimizerSettings(kind=kind, **SETTINGS[kind]))


def run(optimizer, params, gradients):
    for gradient in gradients:
        params = optimizer.step(params, gradient)
    return params


def test_nesterov_looks_ahead_as_in_the_paper():
    """Sutskever et al.: v <- mu v - lr grad(theta + mu v), theta <- theta + v; our params are their theta + mu v."""
    hessian, lr, mu = np.array([[3.0, 1.0], [1.0, 2.0]]), 0.1, 0.8
    theta, velocity = np.array([1.0, -1.0]), np.zeros(2)
    params, optimizer = theta, make_optimizer(config.OptimizerSettings(kind="nesterov", lr=lr, momentum=mu))
    for _ in range(10):
        velocity = mu * velocity - lr * hessian @ (theta + mu * velocity)
        theta = theta + velocity
        params = optimizer.step(params, hessian @ params)
        np.testing.assert_allclose(params, theta + mu * velocity, rtol=1e-12)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_stays_and_what_was_given_is_neither_changed_nor_needed_any_more(kind, dtype):
    """The decoder sums every iteration's gradient in the same array."""
    gradients = np.random.default_rng(1).standard_normal((5, 3)).astype(dtype)
    expected = run(made(kind), np.ones(3, dtype), gradients)
    buffer, params, optimizer = np.empty(3, dtype), np.ones(3, dtype), made(kind)
    for gradient in gradients:
        buffer[:] = gradient
        buffer.setflags(write=False)
        params.setflags(write=False)
        params = optimizer.step(params, buffer)
        buffer.setflags(write=True)
        buffer.fill(0)
    assert params.dtype == dtype
    np.testing.assert_array_equal(params, expected)


LONG = 24 * HOST_BLOCK // 4 + 5  # entries of float32


@ALL
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize(("dtype", "length"), [("float64", 3), ("float32", LONG)])
@pytest.mark.parametrize("is_own", [False, True])
def test_going_on_from_a_state_is_going_on_and_changes_nothing_of_it(kind, before, dtype, length, is_own):
    gradients = np.random.default_rng(1).standard_normal((6, length), dtype)
    descent, other = made(kind), made(kind)
    params = run(descent, np.ones(length, dtype), gradients[:before])
    state = descent.state()
    kept = copy.deepcopy(state)
    run(other, np.ones(length, dtype), gradients[:1])  # a rank that fell behind has made steps
    other.load(copy.deepcopy(state) if is_own else state, is_own)
    found, expected = (run(optimizer, params, gradients[before:]) for optimizer in (other, descent))
    assert found.tobytes() == expected.tobytes()
    assert found.dtype == dtype
    assert state.keys() == kept.keys()
    assert all(np.array_equal(state[name], kept[name]) for name in kept)


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
            case "adam" | "adamw":
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


@ALL
def test_a_step_takes_memory_for_the_new_parameters_and_some_blocks(kind):
    descent, params, gradient = made(kind), np.ones(LONG, np.float32), np.ones(LONG, np.float32)
    params = descent.step(params, gradient)
    tracemalloc.start()
    try:
        params = descent.step(params, gradient)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < params.nbytes + 1e5
    assert peak < params.nbytes + 12 * HOST_BLOCK


def test_integers_of_a_state_stay_integers():
    descent = made("adam")
    assert descent.state() == {"first": 0.0, "second": 0.0, "steps": 0}
    descent.load({"first": 0.0, "second": 0.0, "steps": 7.0})
    descent.step(np.ones(2), np.ones(2))
    assert repr(descent.state()["steps"]) == "8"


def test_a_step_to_parameters_that_are_not_finite_is_refused():
    gradient = np.array([1.0, 1e308])
    assert finite_step(made("sgd"), np.ones(2), gradient / 1e308, 4) == pytest.approx([1.0, 0.7])
    large = np.full(2, 1e200)  # whose squares are not finite
    assert (finite_step(made("sgd"), large, np.zeros(2), 4) == large).all()
    with pytest.raises(RunFailed, match="the step of iteration 5 makes parameters NaN or infinite"):
        finite_step(make_optimizer(config.OptimizerSettings(kind="sgd", lr=10.0)), np.ones(2), gradient, 5)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("entry", [0, LONG - 1])
@pytest.mark.parametrize("undoes", [False, True])
def test_a_gradient_whose_square_overflows_does_not_stop_a_parameter_for_good(kind, entry, undoes):
    """The parameters stay finite: those with an infinite second moment would have steps of 0 from then on."""
    descent, params, gradient = made(kind), np.ones(LONG, np.float32), np.ones(LONG, np.float32)
    descent.undoes = undoes
    params = finite_step(descent, params, gradient, 0)
    large = gradient.copy()
    large[entry] = 1e20
    with pytest.raises(RunFailed, match=r"^the step of iteration 1 makes the optimizer's state NaN or infinite"):
        finite_step(descent, params, large, 1)
    if undoes:
        for iteration in range(1, 5):
            params, before = finite_step(descent, params, gradient, iteration), params
            assert (params < before).all()


@ALL
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_step_that_fails_is_undone(kind, before, is_shared):
    """In the last of several blocks only, after the state of the others has been stepped."""
    rng = np.random.default_rng(before)
    start, *gradients = rng.standard_normal((7, 2 * HOST_BLOCK // 8 + 3))
    huge = np.append(gradients[0][:-1], np.inf)
    descent, other = made(kind), made(kind)
    descent.undoes = True
    params = run(descent, start, gradients[:before])
    expected = run(other, start, gradients[:before])
    taken = copy.deepcopy(descent.state()) if is_shared else None
    for _ in range(2):
        with pytest.raises(RunFailed):
            finite_step(descent, params, huge, 5)
    if is_shared:
        np.testing.assert_equal(descent.state(), taken)
    assert run(descent, params, gradients[before:]).tobytes() == run(other, expected, gradients[before:]).tobytes()
    np.testing.assert_equal(descent.state(), other.state())


# Rates, clipping, weight decay: against the formulas


def rates(schedule, iterations=10):
    """The rate of each of twelve iterations, seen in the steps of sgd from 0 with gradient -1."""
    settings = config.OptimizerSettings(kind="sgd", lr=0.5, schedule=config.RateSchedule(**schedule))
    descent = make_optimizer(settings, iterations)
    return [float(descent.step(np.zeros(1), -np.ones(1), t)[0]) for t in range(12)]


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ({"kind": "constant"}, lambda t: 1),
        ({"kind": "constant", "warmup": 4}, lambda t: min(1, (t + 1) / 4)),
        ({"kind": "step", "every": 3, "factor": 0.5}, lambda t: 0.5 ** (t // 3)),
        ({"kind": "step", "warmup": 2, "every": 3}, lambda t: (t + 1) / 2 if t < 2 else 0.1 ** ((t - 2) // 3)),
        ({"kind": "linear"}, lambda t: max(0, 1 - t / 10)),
        ({"kind": "linear", "final": 0.25, "length": 4}, lambda t: max(0.25, 1 - 0.75 * t / 4)),
        ({"kind": "linear", "warmup": 2, "length": 6}, lambda t: (t + 1) / 2 if t < 2 else max(0, 1 - (t - 2) / 4)),
        ({"kind": "cosine"}, lambda t: (1 + math.cos(math.pi * min(t / 10, 1))) / 2),
        (
            {"kind": "cosine", "warmup": 2, "final": 0.1},
            lambda t: (t + 1) / 2 if t < 2 else 0.1 + 0.45 * (1 + math.cos(math.pi * min((t - 2) / 8, 1))),
        ),
    ],
)
def test_the_rate_follows_its_schedule(schedule, formula):
    np.testing.assert_allclose(rates(schedule), [0.5 * formula(t) for t in range(12)], rtol=1e-13, atol=1e-15)


def test_a_run_that_is_all_warmup_divides_by_nothing():
    assert rates({"kind": "cosine", "warmup": 3}, 3)[:5] == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.5, 0])


@ALL
def test_weight_decay_is_beside_the_step(kind):
    rng = np.random.default_rng(2)
    start, gradients = rng.standard_normal(5), rng.standard_normal((6, 5))
    schedule = config.RateSchedule(kind="step", every=2, factor=0.5)
    given = SETTINGS[kind] | {"schedule": schedule}
    decaying = make_optimizer(config.OptimizerSettings(kind=kind, **given | {"weight_decay": 0.3}))
    plain, params, expected = make_optimizer(config.OptimizerSettings(kind=kind, **given)), start, start
    for t, gradient in enumerate(gradients):
        params = decaying.step(params, gradient, t)
        decay = SETTINGS[kind]["lr"] * 0.5 ** (t // 2) * 0.3
        expected = plain.step(expected, gradient, t) - decay * expected
    np.testing.assert_allclose(params, expected, rtol=1e-13)


def test_adamw_is_that_of_torch():
    rng = np.random.default_rng(4)
    start, gradients = rng.standard_normal(50), rng.standard_normal((30, 50)) * np.logspace(-6, 3, 50)
    schedule = config.RateSchedule(kind="cosine", warmup=5)
    ours, theta = make_optimizer(config.OptimizerSettings(kind="adamw", lr=0.02, schedule=schedule), 30), start
    theirs = torch.nn.Parameter(torch.tensor(start))
    other = torch.optim.AdamW([theirs], lr=0.02)
    rates = torch.optim.lr_scheduler.LambdaLR(other, lambda t: optimizer.factor(schedule, 30, t))
    for t, gradient in enumerate(gradients):
        theta = ours.step(theta, gradient, t)
        theirs.grad = torch.tensor(gradient)
        other.step()
        rates.step()
        np.testing.assert_allclose(theta, theirs.detach().numpy(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("kind", "decay"), [("adam", 0.0), ("sgd", 0.0), ("adamw", 0.01)])
def test_only_adamw_decays_weights_when_nothing_is_said(kind, decay):
    assert config.OptimizerSettings(kind=kind, lr=1.0).weight_decay == decay
    assert config.OptimizerSettings(kind=kind, lr=1.0, weight_decay=None).weight_decay == decay
    assert config.OptimizerSettings(kind=kind, lr=1.0, weight_decay=0.0).weight_decay == 0.0


@ALL
@pytest.mark.parametrize("dim", [5, HOST_BLOCK // 8 * 2 + 3])
def test_gradients_are_scaled_to_the_norm_and_shorter_ones_are_not(kind, dim):
    rng = np.random.default_rng(3)
    gradients = [rng.standard_normal(dim) * length / dim**0.5 for length in (8.0, 0.01, 2.0, 0.0)]
    clipping = make_optimizer(config.OptimizerSettings(kind=kind, clip_norm=1.5, **SETTINGS[kind]))
    kept = [gradient.copy() for gradient in gradients]
    found = run(clipping, np.ones(dim), gradients)
    scaled = [gradient * min(1.0, 1.5 / max(np.linalg.norm(gradient), 1e-300)) for gradient in gradients]
    np.testing.assert_allclose(found, run(made(kind), np.ones(dim), scaled), rtol=1e-10)
    assert all(np.array_equal(*pair) for pair in zip(gradients, kept, strict=True))
    short = [gradient * 0.1 for gradient in gradients]
    np.testing.assert_array_equal(
        run(make_optimizer(config.OptimizerSettings(kind=kind, clip_norm=1.5, **SETTINGS[kind])), np.ones(dim), short),
        run(made(kind), np.ones(dim), short),
    )


@pytest.mark.parametrize("entry", [1.0, 1e25])  # the square of the second is no float32
def test_the_norm_of_many_float32_is_not_rounded_and_the_dtype_stays(entry):
    descent = make_optimizer(config.OptimizerSettings(kind="sgd", lr=1.0, clip_norm=512.0))
    stepped = descent.step(np.zeros(1 << 20, np.float32), np.full(1 << 20, entry, np.float32))
    assert stepped.dtype == np.float32
    np.testing.assert_allclose(stepped, -0.5, rtol=1e-7)


def test_a_gradient_without_finite_norm_is_refused():
    descent = make_optimizer(config.OptimizerSettings(kind="sgd", lr=1.0, clip_norm=1.0))
    for value in (np.inf, np.nan, 1e200):
        with pytest.raises(RunFailed, match="the step of iteration 5"):
            finite_step(descent, np.zeros(2), np.array([1.0, value]), 5)


def test_a_scripts_own_optimizer_is_none_of_ours():
    with pytest.raises(UserError, match="a script makes the steps itself"):
        make_optimizer(config.ScriptOptimizer())


@ALL
@pytest.mark.parametrize("keeps", [lambda params: None, lambda params: params, lambda params: params[1:], memoryview])
def test_parameters_that_somebody_refers_to_are_never_overwritten_and_memory_of_others_is_used_again(kind, keeps):
    optimizer, gradient = made(kind), np.ones(5)
    params, kept, places = np.zeros(5), [], set()
    for _ in range(6):
        params = optimizer.step(params, gradient)
        params.setflags(write=False)  # as a worker does
        places.add(params.ctypes.data)
        kept.append((keeps(params), params.tolist()))
    assert (len(places) == 6) == (keeps(params) is not None)
    assert all(one is None or [*one] == before[-len(one) :] for one, before in kept)


def test_memory_of_other_parameters_is_not_used():
    optimizer = made("sgd")
    for params in (np.zeros(5), np.zeros(5, np.float32), np.zeros(3)):
        for _ in range(3):
            stepped = optimizer.step(params, np.zeros_like(params))
            assert (stepped.shape, stepped.dtype) == (params.shape, params.dtype)
