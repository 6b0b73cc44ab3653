"""A sample of rows tells data from other data, on every kind of row, and leaves the script's random numbers alone."""

import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from psgc.torch.generators import Generators
from psgc.torch.rows import LEAST, MOST, differing, sample

CPU = torch.device("cpu")


def sampled(dataset, seed=0):
    return sample(dataset, len(dataset), seed, CPU)


class Picture:
    __array_interface__ = np.arange(12, dtype=np.uint8).__array_interface__  # as pictures of PIL have it


ROWS = [
    torch.ones(3),
    (torch.ones(2, 2), 1),
    {"x": np.ones(3, np.float32), "more": [np.int64(3), (2.5, None)]},
    {"text": "some words", "raw": b"bytes"},
    [1.0, 2.0, 3.0],
    torch.ones(3, dtype=torch.bfloat16),
    torch.ones(3, dtype=torch.complex64),
    torch.eye(3).to_sparse(),
    np.array(["a", "b"]),
    True,
    7,
    Picture(),
]


PAIRS = [
    *zip(ROWS, [ROWS[-1], *ROWS], strict=False),
    (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
    (torch.tensor([1.0, np.nan]), torch.tensor([2.0, np.nan])),
    ("a text", "another"),
    ({"x": 1}, {"y": 1}),
    ([0, 1], [0, 2]),
    (torch.zeros(3), torch.zeros(4)),
    (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    ((torch.zeros(3), 1), (torch.zeros(3), 2)),
]


@pytest.mark.parametrize("place", range(len(PAIRS)))
def test_whatever_a_row_is_made_of_another_one_is_noticed(place):
    row, other = PAIRS[place]
    assert differing(sampled([row] * 9), sampled([row] * 9)) is None
    assert differing(sampled([row] * 9), sampled([other] * 9)) == 0
    assert differing(sampled([row] * 9), sampled([row] * 8 + [other])) == 8


def test_data_of_another_seed_is_noticed_and_rounding_is_not():
    """An augmentation on another processor."""
    x, y = (torch.randn(200, 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert differing(sampled(TensorDataset(x)), sampled(TensorDataset(y))) == 0
    assert differing(sampled(TensorDataset(x)), sampled(TensorDataset(x * (1 + 3e-7)))) is None
    assert differing(sampled(TensorDataset(x)), sampled(TensorDataset(x * (1 + 1e-3)))) == 0


def test_what_cannot_be_described_or_loaded_is_left_out():
    class Broken(list):
        def __getitem__(self, row):
            if row == 0:
                raise KeyError(row)
            return super().__getitem__(row)

    assert differing(sampled([object()] * 5), sampled([object()] * 5)) is None
    assert differing(sampled(Broken([torch.ones(2)] * 5)), sampled([torch.ones(2)] * 5)) is None
    assert differing(sampled(Broken([torch.ones(2)] * 5)), sampled([torch.zeros(2)] * 5)) == 4
    assert differing(sampled([]), sampled([])) is None


class Augmented(list):
    """Draws random numbers of all kinds for each row."""

    def __getitem__(self, row):
        return super().__getitem__(row) + torch.rand(3) + np.random.rand() + random.random()


def test_random_augmentation_is_the_same_on_every_rank_and_draws_nothing_of_the_scripts():
    data = Augmented([torch.zeros(3)] * 20)
    before, found = Generators.now(CPU).contents(), sampled(data)
    assert Generators.now(CPU).contents() == before
    torch.rand(1), np.random.rand(), random.random()  # the scripts of other ranks have drawn others
    assert differing(found, sampled(data)) is None
    assert differing(found, sampled(Augmented([torch.ones(3)] * 20))) == 0


def test_many_rows_at_a_time_are_asked_for_where_a_dataset_gives_them():
    class Many(list):
        def __getitems__(self, rows):
            return [torch.full((2,), float(row)) for row in rows]

    assert differing(sampled(Many(range(9))), sampled([torch.full((2,), float(row)) for row in range(9)])) is None


@pytest.mark.parametrize(("seconds", "most"), [(0.0, MOST), (0.03, LEAST)])
def test_few_rows_are_loaded_and_fewer_where_that_takes_long(seconds, most):
    asked = []

    class Slow(list):
        def __getitem__(self, row):
            asked.append(row)
            time.sleep(seconds)
            return row

    quick = sampled(range(1000))
    slow = sampled(Slow(range(1000)))
    assert len(asked) <= most
    assert {0, 999} < set(asked)
    assert differing(slow, quick) is None
    assert differing(slow, sampled(range(1, 1001))) == 0
