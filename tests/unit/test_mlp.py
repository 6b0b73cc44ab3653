"""The one-hidden-layer network: it is the formula written out, and it learns what no linear model can."""

import math

import numpy as np
from scipy.optimize import minimize

from psgc.data import Chunk
from psgc.problems import Mlp, Softmax


def test_the_loss_is_the_formula():
    rng = np.random.default_rng(6)
    problem = Mlp(2, 3, hidden=4)
    params = rng.standard_normal(problem.dim)
    V, a = params[:8].reshape(2, 4), params[8:12]
    W, b = params[12:24].reshape(4, 3), params[24:]
    x, label = rng.standard_normal(2), 2
    z = np.tanh(x @ V + a) @ W + b
    loss = problem.loss(params, Chunk(0, x[None], np.array([float(label)]), 1.0))
    assert math.isclose(loss, math.log(np.exp(z).sum()) - z[label], rel_tol=1e-13)


def test_it_learns_exclusive_or():
    X = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    chunk = Chunk(0, X, np.array([0.0, 1, 1, 0]), 1.0)
    accuracies = []
    for problem in (Mlp(2, 2, hidden=8, l2=1e-4), Softmax(2, 2, l2=1e-4)):
        start = problem.initial_params()
        found = minimize(lambda w, of=problem: of.loss_and_gradient(w, chunk), start, jac=True).x
        accuracies.append(problem.accuracy(found, chunk))
    assert accuracies[0] == 1
    assert accuracies[1] < 1


def test_initial_parameters_depend_on_the_seed_and_keep_activity_moderate():
    first, second = (Mlp(100, 10, seed=seed).initial_params() for seed in (0, 1))
    assert not np.array_equal(first, second)
    weights = first[: 100 * 64]
    assert 0.09 < weights.std() < 0.11  # 1 / sqrt(100)
    assert not first[100 * 64 : 101 * 64].any()
    assert not first[-10:].any()
