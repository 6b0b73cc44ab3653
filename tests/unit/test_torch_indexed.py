"""Batches of tensors by one index: those that torch's DataLoader makes row by row."""

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset, default_collate, random_split

from psgc.errors import UserError
from psgc.torch.loader import ChunkLoader
from psgc.torch.reading import indexed

X, Y = torch.randn(20, 2, 3), torch.arange(20)
WHOLE = TensorDataset(X, Y)
ROWS = np.array([7, 0, 3])


class Doubled(TensorDataset):
    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return 2 * x, y


@pytest.mark.parametrize(
    "dataset",
    [
        WHOLE,
        random_split(WHOLE, [12, 8], torch.Generator())[0],
        Subset(Subset(WHOLE, range(4, 20)), [*range(9, 0, -1)]),
    ],
    ids=["whole", "part", "part of a part"],
)
def test_the_batch_is_that_of_its_rows(dataset):
    one, expected = indexed(dataset, default_collate)(ROWS), default_collate([dataset[row] for row in ROWS])
    assert type(one) is type(expected)
    for tensor, other in zip(one, expected, strict=True):
        assert (tensor.dtype, tensor.stride()) == (other.dtype, other.stride())
        torch.testing.assert_close(tensor, other, rtol=0, atol=0)
    one[0].zero_()
    assert X.any()  # memory of its own


@pytest.mark.parametrize(
    "dataset",
    [
        Doubled(X, Y),
        Subset(Doubled(X, Y), [1, 2]),
        [(X[0], 0)],
        TensorDataset(X.transpose(1, 2), Y),
        TensorDataset(X.clone().requires_grad_(), Y),
    ],
    ids=["other rows", "other rows in a part", "a list", "another layout", "with a gradient"],
)
def test_what_is_more_than_tensors_is_collated_row_by_row(dataset):
    assert indexed(dataset, default_collate) is None


def test_a_collate_function_of_the_user_is_called():
    assert indexed(WHOLE, lambda examples: examples) is None


def test_a_row_that_is_not_there_is_named():
    loader = ChunkLoader(Subset(WHOLE, [0, 1, 99]), None, 4)
    with pytest.raises(UserError, match=r"^row 2 of the dataset \(Subset, 3 examples\): IndexError: index 99 "):
        next(loader.micro_batches([0, 1, 2]))
