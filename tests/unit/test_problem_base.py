"""What every built-in problem owes: true gradients, dense or sparse, sums over chunks, unbiased samples."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import approx_fprime

from psgc.data import Chunk
from psgc.problems import LeastSquares, Logistic, Mlp, Softmax, evaluate
from psgc.problems.base import has_loss

ROWS, FEATURES, CLASSES = 17, 6, 3
rng = np.random.default_rng(5)
X = np.where(rng.random((ROWS, FEATURES)) < 0.6, rng.standard_normal((ROWS, FEATURES)), 0.0)
LABELS = {
    "least_squares": rng.standard_normal(ROWS),
    "logistic": rng.integers(0, 2, ROWS).astype(float),
    "softmax": rng.integers(0, CLASSES, ROWS).astype(float),
    "mlp": rng.integers(0, CLASSES, ROWS).astype(float),
}
L2 = 0.3
PROBLEMS = {
    "least_squares": LeastSquares(FEATURES, L2),
    "logistic": Logistic(FEATURES, L2),
    "softmax": Softmax(FEATURES, CLASSES, L2),
    "mlp": Mlp(FEATURES, CLASSES, hidden=4, l2=L2, seed=1),
}
kinds = pytest.mark.parametrize("kind", PROBLEMS)


def chunk(kind, lo=0, hi=ROWS, sparse=False, dtype=np.float64):
    rows, labels = X[lo:hi].astype(dtype), LABELS[kind][lo:hi].astype(dtype)
    for array in (rows, labels):
        array.flags.writeable = False  # as those of a run
    return Chunk(0, scipy.sparse.csr_array(rows) if sparse else rows, labels, (hi - lo) / ROWS)


def params(kind, dtype=np.float64):
    point = np.random.default_rng(7).standard_normal(PROBLEMS[kind].dim).astype(dtype)
    point.flags.writeable = False
    return point


@kinds
@pytest.mark.parametrize("sparse", [False, True])
def test_the_gradient_is_that_of_the_loss(kind, sparse):
    problem, point, part = PROBLEMS[kind], params(kind), chunk(kind, 3, 10, sparse)
    differences = approx_fprime(point, problem.loss, 1e-7, part)
    assert np.abs(problem.gradient(point, part, rng) - differences).max() < 1e-6
    loss, gradient = evaluate(problem)(point, part, rng)
    assert loss == pytest.approx(problem.loss(point, part), rel=1e-14)
    assert np.array_equal(gradient, problem.gradient(point, part, rng))


@kinds
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_equals_dense(kind, dtype):
    problem, point = PROBLEMS[kind], params(kind, dtype)
    dense, sparse = (chunk(kind, sparse=sparse, dtype=dtype) for sparse in (False, True))
    tolerance = 50 * float(np.finfo(dtype).eps)
    gradients = [problem.gradient(point, part, rng) for part in (dense, sparse)]
    assert np.allclose(*gradients, rtol=tolerance, atol=tolerance)
    assert problem.loss(point, dense) == pytest.approx(problem.loss(point, sparse), rel=tolerance)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
    assert [gradient.shape for gradient in gradients] == [(problem.dim,), (problem.dim,)]


@kinds
def test_the_chunks_add_up_to_the_whole(kind):
    problem, point, cuts = PROBLEMS[kind], params(kind), [0, 2, 3, 11, ROWS]
    parts = [evaluate(problem)(point, chunk(kind, lo, hi), rng) for lo, hi in itertools.pairwise(cuts)]
    loss, gradient = evaluate(problem)(point, chunk(kind), rng)
    assert math.fsum(part[0] for part in parts) == pytest.approx(loss, rel=1e-13)
    assert np.allclose(sum(part[1] for part in parts), gradient, rtol=1e-12, atol=1e-14)


class GradientOnly:
    dim = 1

    def initial_params(self):
        return np.zeros(1)

    def gradient(self, params, chunk, rng):
        return chunk.weight * (params - 1)


class WithLoss(GradientOnly):
    def loss(self, params, chunk):
        return chunk.weight * float((params[0] - 1) ** 2 / 2)


def test_evaluate_makes_do_with_what_there_is():
    point, part = np.zeros(1), Chunk(0, None, None, 0.5)
    loss, gradient = evaluate(GradientOnly())(point, part, rng)
    assert math.isnan(loss)
    assert gradient.tolist() == [-0.5]
    loss, gradient = evaluate(WithLoss())(point, part, rng)
    assert (loss, gradient.tolist()) == (0.25, [-0.5])
    both = SimpleNamespace(loss_and_gradient=None)
    assert [has_loss(problem) for problem in (GradientOnly(), WithLoss(), both)] == [False, True, True]
