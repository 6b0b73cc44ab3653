"""Encoding and decoding: the algebra that makes the gradient exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.coding import decoding_coefficients, encoding_coefficients
from psgc.errors import UserError

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


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_both_protocols_give_the_same_parts(parts, seed):
    """Per chunk (decode l coded gradients) and combined (encode knowing S) are two ways to the same gradient."""
    rows = gaussian((parts, parts, seed))
    gradient = np.random.default_rng(seed + 1).standard_normal((parts, 7))
    per_chunk = decoding_coefficients(rows) @ (rows @ gradient)
    combined = rows.T @ (encoding_coefficients(rows) @ gradient)
    atol = 1e-12 * np.linalg.cond(rows) ** 2
    np.testing.assert_allclose(per_chunk, gradient, atol=atol)
    np.testing.assert_allclose(combined, gradient, atol=atol)


def test_decoding_needs_an_invertible_matrix():
    with pytest.raises(UserError, match="dependent"):
        decoding_coefficients(np.ones((2, 2)))
