"""Sketches: copies of a vector have the same, others have not, and rounding stays small."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.coding.sketch import COLUMNS, agreeing, relative_difference, sketch


@given(dim=st.integers(1, 3 * COLUMNS), place=st.floats(0, 1), power=st.integers(-6, 0), seed=st.integers(0, 9))
def test_one_entry_that_differs_is_seen_wherever_it_is(dim, place, power, seed):
    vector = np.random.default_rng(seed).standard_normal(dim)
    other = vector.copy()
    other[int(place * (dim - 1))] += 10.0**power * np.linalg.norm(vector)
    assert relative_difference(sketch(vector), sketch(vector.copy())) == 0
    assert relative_difference(sketch(vector), sketch(other)) > 1e-9


@pytest.mark.parametrize("dim", [5, 20_000])
def test_the_difference_is_about_as_large_as_that_of_the_vectors(dim):
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(200):
        vector, error = rng.standard_normal(dim), 1e-3 * rng.standard_normal(dim)
        found = relative_difference(sketch(vector), sketch(vector + error))
        ratios.append(found * np.linalg.norm(vector) / np.linalg.norm(error))
    assert 0.5 < np.median(ratios) < 2
    assert max(ratios) < 10
    assert sum(ratio < 0.05 for ratio in ratios) <= 1  # of 200; with one projection it would be about eight


def test_swapped_blocks_and_signs_are_seen():
    vector = np.random.default_rng(0).standard_normal(4 * COLUMNS)
    swapped = np.concatenate([vector[2 * COLUMNS :], vector[: 2 * COLUMNS]])
    for other in (swapped, vector[::-1].copy(), -vector, 2 * vector):
        assert relative_difference(sketch(vector), sketch(other)) > 1e-2


@pytest.mark.parametrize(("dtype", "rounding", "seen"), [("float32", 1e-7, 1e-5), ("float64", 1e-16, 1e-9)])
def test_rounding_stays_far_below_the_tolerance(dtype, rounding, seen):
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(100_000).astype(dtype)
    rounded = (vector * (1 + rounding * rng.standard_normal(vector.size))).astype(dtype)
    assert relative_difference(sketch(vector), sketch(rounded)) < seen / 10


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1.0, 1e25, 3e38])
def test_very_small_and_very_large_entries_neither_vanish_nor_overflow(size):
    vector = np.full(10, size, np.float32)
    other = vector.copy()
    other[4] *= 0.5
    assert relative_difference(sketch(vector), sketch(vector.copy())) == 0
    assert 1e-3 < relative_difference(sketch(vector), sketch(other)) < 10


def test_zeros_differ_from_everything_else_only():
    zeros = sketch(np.zeros(5))
    assert zeros == sketch(np.empty(0)) == (0.0, 0.0, 0.0)
    assert relative_difference(zeros, zeros) == 0
    assert relative_difference(zeros, sketch(np.array([0.0, 1e-300, 0, 0, 0]))) > 0.01


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_differs_from_everything(place, number):
    wrong = tuple(number if at == place else 0.0 for at in range(3))
    for other in (wrong, (0.0, 0.0, 0.0), (1.0, 1.0, 2.0)):
        assert relative_difference(wrong, other) == relative_difference(other, wrong) == np.inf


def test_two_agree_and_the_others_with_the_first_of_them():
    one, other, third = (sketch(np.full(5, value)) for value in (1.0, 2.0, 3.0))
    close = sketch(np.full(5, 1.0 + 1e-6))
    assert agreeing([], 1e-9) == agreeing([one], 1e-9) == agreeing([one, other, third], 1e-9) == ()
    assert agreeing([one, other, third, other, one, other], 1e-9) == (1, 3, 5)  # the first two that came
    assert agreeing([one, close], 1e-9) == ()
    assert agreeing([other, one, close, third], 1e-3) == (1, 2)
