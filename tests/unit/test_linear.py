"""Least squares and logistic regression: known optima, extreme scores, both label conventions."""

import numpy as np
import pytest
from scipy.optimize import minimize

from psgc.data import Chunk
from psgc.problems import LeastSquares, Logistic

rng = np.random.default_rng(3)
X = rng.standard_normal((40, 3))


def test_least_squares_is_stationary_at_the_normal_equations_solution():
    y, l2 = X @ [1.0, -2.0, 0.5] + 4 + rng.standard_normal(40), 0.2
    design = np.column_stack([X, np.ones(40)])
    optimum = np.linalg.solve(design.T @ design / 40 + l2 * np.eye(4), design.T @ y / 40)
    gradient = LeastSquares(3, l2).gradient(optimum, Chunk(0, X, y, 1.0), rng)
    assert np.abs(gradient).max() < 1e-13


def test_least_squares_loss_by_hand():
    chunk = Chunk(0, np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([1.0, 0.0]), 0.5)
    params = np.array([1.0, 1.0, -1.0])  # scores 2 and 0: row losses 1/2 and 0
    assert LeastSquares(2, l2=2.0).loss(params, chunk) == 0.5 * (0.25 + 3)


def test_logistic_recovers_the_model_that_made_the_labels():
    big = rng.standard_normal((20000, 3))
    true = np.array([1.0, -2.0, 0.5, 0.7])
    y = (rng.random(20000) < 1 / (1 + np.exp(-(big @ true[:3] + true[3])))).astype(float)
    problem, chunk = Logistic(3), Chunk(0, big, y, 1.0)
    found = minimize(lambda w: problem.loss_and_gradient(w, chunk), problem.initial_params(), jac=True).x
    assert np.abs(found - true).max() < 0.1
    assert problem.accuracy(found, chunk) > 0.8


def test_logistic_labels_may_be_0_1_or_minus_1_1():
    y, problem, params = rng.integers(0, 2, 40).astype(float), Logistic(3), rng.standard_normal(4)
    zero_one, signs = Chunk(0, X, y, 1.0), Chunk(0, X, 2 * y - 1, 1.0)
    assert np.array_equal(problem.gradient(params, zero_one, rng), problem.gradient(params, signs, rng))
    assert problem.loss(params, zero_one) == problem.loss(params, signs)
    assert problem.accuracy(params, zero_one) == problem.accuracy(params, signs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_survives_extreme_scores(dtype):
    chunk = Chunk(0, np.array([[-1e4], [1e4], [-1e4], [1e4]], dtype), np.array([0, 0, 1, 1], dtype), 1.0)
    loss, gradient = Logistic(1).loss_and_gradient(np.array([1, 0], dtype), chunk)
    assert loss == 5000  # two rows right, two wrong by a score of 1e4
    assert gradient.tolist() == [5000, 0]
    assert gradient.dtype == dtype


def test_logistic_accuracy_counts_signs():
    chunk = Chunk(0, np.array([[1.0], [2.0], [-1.0], [-2.0]]), np.array([1.0, 0.0, 0.0, 0.0]), 1.0)
    assert Logistic(1).accuracy(np.array([1.0, 0.0]), chunk) == 0.75
