"""Coding matrices: well conditioned wherever workers meet."""

import importlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.coding import (
    blocks,
    coding_matrix,
    cyclic,
    decoding_coefficients,
    encoding_coefficients,
    fractional,
    graph,
    worst_condition,
)
from psgc.errors import UserError
from tests.unit.small_assignments import any_parts, assignments

module = importlib.import_module("psgc.coding.coding_matrix")  # the package exports a function of this name


@pytest.mark.parametrize(("workers", "parts", "limit"), [(200, 2, 15), (120, 3, 100)])
def test_many_workers_on_a_graph(workers, parts, limit):
    assignment = graph(workers, workers, 8, seed=0)
    matrix = coding_matrix("spread", assignment, parts, seed=0)
    assert matrix.shape == (workers, parts)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1)
    assert worst_condition(matrix, assignment) <= limit
    gaussian = coding_matrix("gaussian", assignment, parts, seed=0)
    assert worst_condition(gaussian, assignment) > 10 * limit


@pytest.mark.parametrize("num_workers", [4, 7, 8])
def test_small_clusters(num_workers):
    """As good as sensible from replication 1 to m: never singular, orthogonal where that is possible."""
    for replication in range(1, num_workers + 1):
        assignment = blocks(num_workers, num_workers, replication, seed=0)
        for parts in range(1, min(replication, 4) + 1):
            condition = worst_condition(coding_matrix("spread", assignment, parts, seed=0), assignment)
            assert condition <= {1: 1, 2: 7, 3: 40, 4: 120}[parts]


@pytest.mark.parametrize("parts", range(2, 9))
def test_disjoint_groups_of_as_many_as_parts_are_orthogonal(parts):
    assignment = fractional(16, 2 * parts, parts)
    matrix = coding_matrix("spread", assignment, parts, seed=0)
    assert worst_condition(matrix, assignment) <= 1.1


@given(assignments(), st.integers(0, 5), st.data())
@settings(max_examples=15, deadline=None)
def test_any_assignment_can_be_decoded(assignment, seed, data):
    parts = data.draw(any_parts(assignment))
    matrix = coding_matrix("spread", assignment, parts, seed)
    assert matrix.shape == (assignment.shape[1], parts)
    assert worst_condition(matrix, assignment) < 100


@given(assignments(), st.integers(0, 10**6), st.data())
def test_worst_condition_agrees_with_brute_force(assignment, seed, data):
    parts = data.draw(any_parts(assignment))
    matrix = np.random.default_rng(seed).standard_normal((assignment.shape[1], parts))
    meeting = [subset for row in assignment.toarray() for subset in combinations(row.nonzero()[0].tolist(), parts)]
    assert worst_condition(matrix, assignment) == max(np.linalg.cond(matrix[list(workers)]) for workers in meeting)


def test_all_sets_are_looked_at_however_many_at_a_time(monkeypatch):
    matrix = np.random.default_rng(0).standard_normal((8, 2))
    expected = worst_condition(matrix, np.ones((1, 8)))
    monkeypatch.setattr(module, "_BATCH", 4)
    assert worst_condition(matrix, np.ones((1, 8))) == expected


def test_too_many_workers_share_the_vectors_of_their_colours(monkeypatch):
    assignment = graph(60, 60, 6, seed=0)
    single = coding_matrix("spread", assignment, 3, seed=0)
    monkeypatch.setattr(module, "_SAMPLE", 1000)
    monkeypatch.setattr(module, "_WORK", 9_000)  # 500 sets: enough for the colours, too few for the workers
    shared = coding_matrix("spread", assignment, 3, seed=0)
    assert len(np.unique(single, axis=0)) == 60
    assert len(np.unique(shared, axis=0)) < 20
    assert worst_condition(single, assignment) < 40
    assert worst_condition(shared, assignment) < 60


def test_seeds_reproduce_and_differ():
    assignment = cyclic(12, 12, 5)
    for kind in ("gaussian", "spread"):
        first, attempt, other = (coding_matrix(kind, assignment, 3, seed) for seed in (1, 1, 2))
        assert (first == attempt).all()
        assert (first != other).any()


def test_singular_is_infinite():
    assert worst_condition(np.ones((3, 2)), cyclic(3, 3, 2)) > 1e15


def test_one_part_is_not_coded_and_no_more_than_holders_are_possible():
    assignment = cyclic(4, 4, 2)
    for kind in ("gaussian", "spread"):
        assert coding_matrix(kind, assignment, 1, 0).tolist() == [[1.0]] * 4
    with pytest.raises(UserError, match="'gaussian' or 'spread'"):
        coding_matrix("gausian", assignment, 2, 0)
    with pytest.raises(UserError, match="parts is 3"):
        coding_matrix("spread", assignment, 3, 0)
    with pytest.raises(UserError, match="parts is 3"):
        worst_condition(np.ones((4, 3)), assignment)


# coefficients: the algebra that makes the gradient exact

sizes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))


def gaussian(size):
    contributors, parts, seed = size
    return np.random.default_rng(seed).standard_normal((contributors, parts))


@given(sizes)
def test_encoding_recovers_or_projects(size):
    rows = gaussian(size)
    contributors, parts = rows.shape
    coefficients = encoding_coefficients(rows)
    product = rows.T @ coefficients  # the server's sum_j R[j, k] y_j, as a matrix on the parts
    scale = 1 + np.abs(coefficients).max()
    assert coefficients.shape == rows.shape
    if contributors >= parts:
        np.testing.assert_allclose(product, np.eye(parts), atol=1e-9 * scale**2)
    else:
        np.testing.assert_allclose(product @ product, product, atol=1e-9 * scale**2)  # a projection
        np.testing.assert_allclose(product, product.T, atol=1e-9 * scale**2)  # an orthogonal one
        np.testing.assert_allclose(rows @ product, rows, atol=1e-9 * scale**2)  # on the row space of R[S]


def test_encoding_is_of_minimum_norm():
    rows = gaussian((4, 2, 0))
    coefficients = encoding_coefficients(rows)
    null = np.linalg.svd(rows.T)[2][2:]  # adding these to X solves the equation as well
    np.testing.assert_allclose(null @ coefficients, 0, atol=1e-12)


def test_decoding_needs_an_invertible_matrix():
    with pytest.raises(UserError, match="dependent"):
        decoding_coefficients(np.ones((2, 2)))
