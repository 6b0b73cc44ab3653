"""Which chunks are checked when."""

from doctests import assert_examples_hold
from hypothesis import given
from hypothesis import strategies as st

from psgc.checks import is_checked


def test_examples():
    assert_examples_hold("psgc.checks")


@given(chunk=st.integers(0, 99), first=st.integers(0, 99), every=st.integers(1, 20))
def test_each_chunk_is_checked_once_in_so_many_iterations(chunk, first, every):
    assert sum(is_checked(chunk, iteration, every) for iteration in range(first, first + every)) == 1


def test_without_verify_nothing_is_checked():
    assert not any(is_checked(chunk, iteration, 0) for chunk in range(5) for iteration in range(5))
