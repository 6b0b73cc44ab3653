"""The built-in models: known optima, the formulas written out, extreme scores, both label conventions."""

import math

import numpy as np
import pytest

from psgc.data import Chunk
from psgc.problems import LeastSquares, Logistic, Mlp, Softmax

rng = np.random.default_rng(3)
X = rng.standard_normal((40, 3))


def test_least_squares_loss_by_hand():
    chunk = Chunk(0, np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([1.0, 0.0]), 0.5)
    params = np.array([1.0, 1.0, -1.0])  # scores 2 and 0: row losses 1/2 and 0
    assert LeastSquares(2, l2=2.0).loss(params, chunk) == 0.5 * (0.25 + 3)


def test_logistic_labels_may_be_0_1_or_minus_1_1():
    y, problem, params = rng.integers(0, 2, 40).astype(float), Logistic(3), rng.standard_normal(4)
    chunks = Chunk(0, X, y, 1.0), Chunk(0, X, 2 * y - 1, 1.0)
    (loss, gradient), (other_loss, other) = (problem.loss_and_gradient(params, chunk) for chunk in chunks)
    assert loss == other_loss
    assert np.array_equal(gradient, other)
    assert problem.accuracy(params, chunks[0]) == problem.accuracy(params, chunks[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_survives_extreme_scores(dtype):
    chunk = Chunk(0, np.array([[-1e4], [1e4], [-1e4], [1e4]], dtype), np.array([0, 0, 1, 1], dtype), 1.0)
    loss, gradient = Logistic(1).loss_and_gradient(np.array([1, 0], dtype), chunk)
    assert loss == 5000  # two rows right, two wrong by a score of 1e4
    assert gradient.tolist() == [5000, 0]
    assert gradient.dtype == dtype


def test_two_classes_are_logistic_regression():
    chunk = Chunk(0, rng.standard_normal((30, 4)), rng.integers(0, 2, 30).astype(float), 0.25)
    weights = rng.standard_normal(5)
    table = np.column_stack([np.zeros(5), weights])  # class 0 scores 0, class 1 scores x.w + b
    loss, gradient = Softmax(4, 2).loss_and_gradient(table.ravel(), chunk)
    logistic_loss, logistic_gradient = Logistic(4).loss_and_gradient(weights, chunk)
    assert loss == pytest.approx(logistic_loss, rel=1e-13)
    assert np.allclose(gradient.reshape(5, 2), np.outer(logistic_gradient, [-1, 1]), rtol=1e-11, atol=1e-15)
    assert Softmax(4, 2).accuracy(table.ravel(), chunk) == Logistic(4).accuracy(weights, chunk)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_survives_extreme_scores(dtype):
    chunk = Chunk(0, np.array([[1e4], [1e4]], dtype), np.array([0, 2], dtype), 1.0)
    params = np.array([1, 0, -1, 0, 0, 0], dtype)  # scores 1e4, 0, -1e4
    loss, gradient = Softmax(1, 3).loss_and_gradient(params, chunk)
    assert loss == 1e4  # 0 for the right row, 2e4 for the wrong one
    assert gradient.tolist() == [5000, 0, -5000, 0.5, 0, -0.5]
    assert gradient.dtype == dtype


def test_accuracy_counts_signs_or_the_largest_scores():
    chunk = Chunk(0, np.array([[1.0], [2.0], [-1.0], [-2.0]]), np.array([1.0, 0.0, 0.0, 0.0]), 1.0)
    assert Logistic(1).accuracy(np.array([1.0, 0.0]), chunk) == 0.75
    chunk = Chunk(0, np.eye(3), np.array([0.0, 1.0, 0.0]), 1.0)
    assert Softmax(3, 3).accuracy(np.vstack([np.eye(3), np.zeros(3)]).ravel(), chunk) == pytest.approx(2 / 3)


def test_the_loss_of_the_network_is_the_formula():
    rng = np.random.default_rng(6)
    problem = Mlp(2, 3, hidden=4)
    params = rng.standard_normal(problem.dim)
    V, a = params[:8].reshape(2, 4), params[8:12]
    W, b = params[12:24].reshape(4, 3), params[24:]
    x, label = rng.standard_normal(2), 2
    z = np.tanh(x @ V + a) @ W + b
    loss = problem.loss(params, Chunk(0, x[None], np.array([float(label)]), 1.0))
    assert math.isclose(loss, math.log(np.exp(z).sum()) - z[label], rel_tol=1e-13)


def test_initial_parameters_depend_on_the_seed_and_keep_activity_moderate():
    first, second = (Mlp(100, 10, seed=seed).initial_params() for seed in (0, 1))
    assert not np.array_equal(first, second)
    weights = first[: 100 * 64]
    assert 0.09 < weights.std() < 0.11  # 1 / sqrt(100)
    assert not first[100 * 64 : 101 * 64].any()
    assert not first[-10:].any()
