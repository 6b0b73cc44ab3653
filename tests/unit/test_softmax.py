"""Softmax: the two-class case is logistic regression, scores shift freely, extremes do not overflow."""

import math

import numpy as np
import pytest

from psgc.data import Chunk
from psgc.problems import Logistic, Softmax
from psgc.problems.softmax import cross_entropy

rng = np.random.default_rng(4)


def test_two_classes_are_logistic_regression():
    chunk = Chunk(0, rng.standard_normal((30, 4)), rng.integers(0, 2, 30).astype(float), 0.25)
    weights = rng.standard_normal(5)
    table = np.column_stack([np.zeros(5), weights])  # class 0 scores 0, class 1 scores x.w + b
    loss, gradient = Softmax(4, 2).loss_and_gradient(table.ravel(), chunk)
    logistic_loss, logistic_gradient = Logistic(4).loss_and_gradient(weights, chunk)
    assert loss == pytest.approx(logistic_loss, rel=1e-13)
    assert np.allclose(gradient.reshape(5, 2), np.outer(logistic_gradient, [-1, 1]), rtol=1e-11, atol=1e-15)
    assert Softmax(4, 2).accuracy(table.ravel(), chunk) == Logistic(4).accuracy(weights, chunk)


def test_at_the_start_every_class_is_equally_likely():
    problem = Softmax(4, 10)
    chunk = Chunk(0, rng.standard_normal((20, 4)), np.arange(20.0) % 10, 1.0)
    assert problem.dim == 50
    assert problem.loss(problem.initial_params(), chunk) == pytest.approx(math.log(10))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_scores_do_not_overflow(dtype):
    scores = np.array([[1e4, 0, -1e4], [1e4, 0, -1e4]], dtype)
    loss, derivatives = cross_entropy(scores, np.array([0, 2], dtype))
    assert loss == 1e4  # 0 for the right row, 2e4 for the wrong one
    assert derivatives.tolist() == [[0, 0, 0], [1, 0, -1]]
    assert derivatives.dtype == dtype


def test_accuracy_counts_the_largest_scores():
    chunk = Chunk(0, np.eye(3), np.array([0.0, 1.0, 0.0]), 1.0)
    params = np.vstack([np.eye(3), np.zeros(3)]).ravel()
    assert Softmax(3, 3).accuracy(params, chunk) == pytest.approx(2 / 3)
