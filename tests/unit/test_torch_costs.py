"""What chunks cost, by their examples or by what the user says."""

import numpy as np
import pytest

from psgc.errors import UserError
from psgc.torch.sampling import ChunkCosts


def test_the_function_is_asked_for_each_micro_batch_as_they_are_computed():
    asked = []
    costs = ChunkCosts(lambda rows: asked.append(rows) or len(rows) * max(rows), micro_batch=2)
    assert costs.of(np.array([1, 2, 3, 4, 5]), 2) == pytest.approx([4 / 3.4, 13 / 3.4])  # an average example: 17 / 5
    assert asked == [[1, 2], [3], [4, 5]]
    assert all(type(row) is int for rows in asked for row in rows)


def test_an_average_example_is_one_of_the_first_batch():
    """Empty chunks cost nothing; rows that were asked for before are not asked for again."""
    asked = []
    costs = ChunkCosts(lambda rows: asked.append(rows) or sum(rows), micro_batch=8)
    first, second = np.array([1, 3]), np.array([4, 8])
    assert costs.of(first, 2) == [0.5, 1.5]
    assert costs.of(second, 2) == costs.of(second, 2) == [2.0, 4.0]
    assert asked == [[1], [3], [4], [8]]
    for function, expected in ((None, [0, 1, 0, 1]), (max, [0, 16 / 15, 0, 14 / 15])):
        assert ChunkCosts(function, 8).of(np.array([8, 7]), 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda rows: 0, "cost_fn returned 0 for the rows 3, 4; expected how long"),
        (lambda rows: float("nan"), "cost_fn returned nan for the rows 3, 4; "),
        (
            lambda rows: "long",
            "cost_fn failed for the rows 3, 4: ValueError: could not convert string to float: 'long'",
        ),
        (lambda rows: [][0], "cost_fn failed for the rows 3, 4: IndexError: list index out of range; expected how"),
    ],
)
def test_a_function_that_fails_or_returns_no_positive_number_is_refused(function, said):
    with pytest.raises(UserError) as refused:
        ChunkCosts(function, 2).of(np.array([3, 4]), 1)
    assert str(refused.value).startswith(said)
