"""Unbiased weights against the definition: all ways to deal out who is late, one by one."""

from itertools import permutations

import numpy as np
import pytest
from scipy.sparse import csr_array

from psgc import coding
from psgc.coding.unbiased import unbiased_weights


def recovered(ordering, done, parts):
    there = (ordering.toarray() > 0) & (ordering.toarray() <= np.array(done))
    return there.sum(axis=1) >= parts


def irregular():
    """Five chunks, four workers, one to three holders each, queues of different length."""
    matrix = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 0, 1]])
    return coding.ordering(coding.from_matrix(matrix))


CASES = [
    (coding.ordering(coding.cyclic(4, 4, 2)), [2, 1, 1, 0], 1),
    (coding.ordering(coding.cyclic(5, 5, 3)), [3, 3, 1, 0, 0], 2),
    (coding.ordering(coding.cyclic(8, 4, 2)), [4, 4, 1, 0], 1),
    (irregular(), [2, 2, 1, 0], 1),
]


@pytest.mark.parametrize(("ordering", "done", "parts"), CASES)
def test_the_expectation_over_who_is_late_is_the_gradient(ordering, done, parts):
    """Statistically: the mean of many estimates is within four standard errors of the sum, and the plain sum is not."""
    rng = np.random.default_rng(1)
    n = ordering.shape[0]
    gradients = rng.normal(3.0, 1.0, (n, 6))
    estimates, plain = [], []
    for k in range(1500):
        deal = rng.permutation(done)
        there = recovered(ordering, deal, parts)
        weights = np.ones(n) if there.all() else unbiased_weights(ordering, deal, parts, np.random.default_rng([9, k]))
        estimates.append(weights[there] @ gradients[there])
        plain.append(gradients[there].sum(axis=0))
    reachable = np.any([recovered(ordering, deal, parts) for deal in permutations(done)], axis=0)
    assert reachable.all()
    exact = gradients.sum(axis=0)
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert (np.abs(np.mean(estimates, axis=0) - exact) < 4 * error).all()
    assert (np.abs(np.mean(plain, axis=0) - exact) > 7 * np.std(plain, axis=0) / np.sqrt(len(plain))).all()


@pytest.mark.parametrize("empty", [1, 4])
@pytest.mark.parametrize(("queues", "done"), [([[0, 1], [2, 3]], [2, 1]), ([[0], [1], [2], [3]], [1, 1, 0, 0])])
def test_workers_without_chunks_are_not_late(queues, done, empty):
    """Over all ways to deal out who is late, a chunk that is there in one of them counts once on average."""
    total, deals = 0.0, [*permutations(done)]
    ordering = coding.positions(queues, 4)
    among_others = coding.positions([*queues, *[[]] * empty], 4)
    for k, deal in enumerate(deals * (960 // len(deals))):
        weights = unbiased_weights(among_others, [*deal, *[0] * empty], 1, np.random.default_rng([3, k]))
        total += np.nan_to_num(weights) / 960
        np.testing.assert_array_equal(weights, unbiased_weights(ordering, deal, 1, np.random.default_rng([3, k])))
    assert total == pytest.approx(np.ones(4), abs=0.02)


def test_a_chunk_that_is_recovered_whoever_is_late_counts_once():
    ordering = csr_array([[1, 1, 1], [2, 2, 0], [0, 0, 2]])
    weights = unbiased_weights(ordering, [1, 1, 2], 1, np.random.default_rng(0))
    assert weights[0] == 1
    assert np.isnan(weights[1])
    assert weights[2] > 1


def test_a_weight_is_on_average_one_over_how_often_the_chunk_is_there():
    """Two workers with a chunk each, one of them late: each chunk is there in half of all cases."""
    ordering = csr_array([[1, 0], [0, 1]])
    weights = [unbiased_weights(ordering, [1, 0], 1, np.random.default_rng(seed))[0] for seed in range(2000)]
    assert np.mean(weights) == pytest.approx(2, abs=0.01)  # 2.5 standard errors; the seeds are fixed
