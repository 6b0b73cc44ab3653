"""Which copies agree: against the theorem, for any code, any errors, and numbers that are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.coding import agreeing

TOLERANCE = 1e-9


def equal(one, other, tolerance):
    """Whether two copies agree, with one part."""
    return agreeing(np.ones((2, 1)), [one, other], tolerance) == (0, 1)


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(), parts=st.integers(1, 3), spare=st.integers(1, 4), dim=st.integers(1, 6), seed=st.integers(0, 999)
)
def test_those_that_are_right_are_found_among_as_many_wrong_ones_as_the_code_allows(data, parts, spare, dim, seed):
    rng = np.random.default_rng(seed)
    rows = np.ones((parts + spare, 1)) if parts == 1 else rng.standard_normal((parts + spare, parts))
    copies = rows @ rng.standard_normal((parts, dim))
    wrong = data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=spare - 1))
    for place in wrong:
        copies[place, rng.integers(dim)] += rng.choice([-1.0, 1.0]) * rng.uniform(0.1, 9.0)  # one entry is enough
    found = agreeing(rows, list(copies), TOLERANCE)
    assert set(found) == set(range(len(rows))) - wrong
    assert len(found) == len(set(found))
    decoded = np.linalg.solve(rows[list(found[:parts])], copies[list(found[:parts])])
    np.testing.assert_allclose(rows[list(found)] @ decoded, copies[list(found)], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_never_agrees_not_even_with_itself(bad):
    copy = np.array([1.0, bad])
    assert not equal(copy, copy, TOLERANCE)
    right = np.array([1.0, 2.0])
    assert agreeing(np.ones((3, 1)), [copy, right, right], TOLERANCE) == (1, 2)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_the_tolerance_is_relative_to_the_largest_entry(size):
    copy = size * np.array([3.0, -8.0, 1.0])
    off = copy + size * np.array([0.0, 0.0, 1e-3])
    assert equal(copy, off, 1.3e-4)
    assert not equal(copy, off, 1.2e-4)


def test_without_tolerance_only_what_is_equal_agrees():
    copy = np.array([1.0, 0.1])
    assert equal(copy, copy.copy(), 0.0)
    assert not equal(copy, np.nextafter(copy, 2), 0.0)
    assert equal(np.zeros(2), -np.zeros(2), 0.0)


def test_two_copies_in_the_same_role_do_not_check_a_third():
    """The two that are equal determine nothing more than each of them does; a fourth copy checks all."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((3, 2))[[0, 1, 0, 2]]
    copies = rows @ rng.standard_normal((2, 5))
    assert agreeing(rows[:3], list(copies[:3]), TOLERANCE) == ()
    assert agreeing(rows, list(copies), TOLERANCE) == (0, 1, 3, 2)
    copies[1] += 1
    assert agreeing(rows, list(copies), TOLERANCE) == ()
    assert agreeing(np.outer([1, 2, 3], [1.0, 2.0]), [np.ones(2)] * 3, TOLERANCE) == ()  # nor do dependent rows


def test_what_agreed_agrees_when_more_is_there():
    """Also when a later copy has the error of an earlier one."""
    values = [9.0, 1.0, 1.0, 9.0]
    copies = [np.array([value]) for value in values]
    assert agreeing(np.ones((3, 1)), copies[:3], TOLERANCE) == (1, 2)
    assert agreeing(np.ones((4, 1)), copies, TOLERANCE) == (1, 2)
