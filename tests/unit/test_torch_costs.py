"""What chunks cost, by their examples or by what the user says."""

import numpy as np
import pytest

from psgc.errors import UserError
from psgc.torch.sampling import ChunkCosts


def test_without_a_function_chunks_cost_as_many_examples_as_they_have():
    assert ChunkCosts(None, 4).of(np.arange(7, 12), 3) == [1, 2, 2]
    assert ChunkCosts(None, 4).of(np.arange(2), 4) == [0, 1, 0, 1]


def test_the_function_is_asked_for_each_micro_batch_as_they_are_computed():
    asked = []
    costs = ChunkCosts(lambda rows: asked.append(rows) or len(rows) * max(rows), micro_batch=2)
    assert costs.of(np.array([1, 2, 3, 4, 5]), 2) == pytest.approx([4 / 3.4, 13 / 3.4])  # an average example: 17 / 5
    assert asked == [[1, 2], [3], [4, 5]]
    assert all(type(row) is int for rows in asked for row in rows)


def test_an_average_example_is_one_of_the_first_batch():
    costs = ChunkCosts(sum, micro_batch=8)
    first, second = np.array([1, 3]), np.array([4, 8])
    assert costs.of(first, 2) == [0.5, 1.5]
    assert costs.of(second, 2) == [2.0, 4.0]


def test_rows_that_were_asked_for_before_are_not_asked_for_again():
    asked = []
    costs = ChunkCosts(lambda rows: asked.append(rows) or 1.0, micro_batch=8)
    first, second = np.arange(2), np.arange(2, 4)
    for rows in (first, second, second):  # a step, what follows, and then that
        costs.of(rows, 1)
    assert asked == [[0, 1], [2, 3]]


def test_an_empty_chunk_costs_nothing_and_the_function_is_not_asked():
    assert ChunkCosts(max, micro_batch=8).of(np.array([5]), 3) == [0, 0, 1]


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
