"""The examples in the docstrings of the server and of training."""

import pytest
from tests.unit.doctests import assert_examples_hold


@pytest.mark.parametrize(
    "module",
    [
        "psgc.server.horvitz_thompson",
        "psgc.server.membership",
        "psgc.server.rebalance",
        "psgc.server.recovery",
        "psgc.server.stuck",
        "psgc.training.chunk_choice",
        "psgc.training.gradient_error",
    ],
)
def test_they_hold(module):
    assert_examples_hold(module)
