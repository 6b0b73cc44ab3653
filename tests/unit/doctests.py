"""The examples in docstrings, as an assertion for the test of each file."""

import doctest
import importlib


def assert_examples_hold(module: str) -> None:
    """Run the doctests of a module; it must have some and none may fail."""
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
