"""The texts of errors: printable, on one line."""

from tests.unit.doctests import assert_examples_hold


def test_the_examples() -> None:
    assert_examples_hold("psgc.errors")
