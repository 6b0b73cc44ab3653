"""What approximate gradients lacked, found out after the run."""

import numpy as np
import pytest

from psgc.coding import coding_matrix, cyclic, encoding_coefficients
from psgc.run import gradient_error as module
from psgc.run.gradient_error import GradientErrorEstimator, unseen
from psgc.server.observer import Approximation

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("parts", "dim"), [(1, 5), (2, 7), (3, 8), (3, 2)])
def test_seen_and_unseen_add_up_to_the_gradient(parts, dim):
    """Seen is what the server decodes from the contributors' coded gradients, part by part."""
    R = coding_matrix("gaussian", cyclic(6, 6, 4), parts, seed=0)
    gradient = RNG.normal(size=dim)
    cut = dim // parts * parts
    padded = np.concatenate([gradient[cut:], np.zeros(parts - (dim - cut))])
    blocks = np.column_stack([gradient[:cut].reshape(parts, -1), padded])
    for contributors in [(), (2,), (5, 1), (1, 2, 3)][: parts + 1]:
        rows = R[[worker - 1 for worker in contributors]]
        seen = encoding_coefficients(rows).T @ (rows @ blocks) if contributors else np.zeros_like(blocks)
        there = np.concatenate([seen[:, :-1].reshape(-1), seen[: dim - cut, -1]])
        np.testing.assert_allclose(unseen(gradient, R, contributors) + there, gradient, atol=1e-12)


def approximation(iteration, params, gradients, missing, weights=None):
    """Of a gradient that is the sum over the rows of `gradients`, of which those in `missing` were not there."""
    there = [i for i in range(len(gradients)) if i not in missing]
    plain = gradients[there].sum(axis=0)
    used = plain if weights is None else np.array(weights) @ gradients[there]
    return Approximation(iteration, params, used, plain, dict.fromkeys(missing, ()))


def test_the_actual_error_is_relative_to_the_exact_gradient():
    gradients = 1e-3 * RNG.normal(size=(6, 3))
    exact = gradients.sum(axis=0)
    kept = GradientErrorEstimator(np.asarray)
    kept.add(approximation(4, np.zeros(3), gradients, [1, 5]))
    kept.add(approximation(7, np.zeros(3), gradients, [0], weights=[1.5, 1, 1, 1, 2]))
    errors = kept.actual_errors(lambda params, iteration, chunk: gradients[chunk], np.ones((3, 1)), 1.0)
    lacking = np.linalg.norm(gradients[[1, 5]].sum(axis=0)) / np.linalg.norm(exact)
    weighed = np.linalg.norm(np.array([0, 1.5, 1, 1, 1, 2]) @ gradients - exact) / np.linalg.norm(exact)
    assert errors == {4: pytest.approx(lacking), 7: pytest.approx(weighed)}


def test_what_the_server_changes_later_does_not_matter():
    params, used = np.ones(2), np.array([1.0, 2.0])
    kept = GradientErrorEstimator(np.asarray)
    kept.add(Approximation(0, params, used, used, {0: ()}))
    params[:], used[:] = 99, 99
    (error,) = kept.actual_errors(lambda params, *_: params, np.ones((1, 1)), 1.0).values()
    assert error == pytest.approx(np.linalg.norm([1, 1]) / np.linalg.norm([2, 3]))


def test_many_are_thinned_out_evenly(monkeypatch):
    monkeypatch.setattr(module, "MEMORY", 3 * 8 * 10 * 16)  # sixteen of them
    kept = GradientErrorEstimator(np.asarray)
    for iteration in range(200):
        kept.add(Approximation(iteration, *[np.ones(10)] * 3, {0: ()}))
    errors = kept.actual_errors(lambda params, *_: params, np.ones((1, 1)), 1.0)
    assert 8 <= len(errors) <= 16
    assert set(np.diff(sorted(errors))) == {16}


def test_it_ends_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(module, "AT_LEAST", 0.0)
    kept = GradientErrorEstimator(np.asarray)
    kept.add(Approximation(0, *[np.ones(2)] * 3, {0: ()}))
    assert kept.actual_errors(lambda params, *_: params, np.ones((1, 1)), 0.0) == {}
