"""Examples in micro-batches, with random numbers of their own; errors name the row."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from psgc.errors import UserError
from psgc.torch.generators import Generators, seeded
from psgc.torch.loader import ChunkLoader

CPU = torch.device("cpu")


class Rows:
    """Example i is i, or more for the rows for which `act` says how much."""

    def __init__(self, length=100, at=(), act=None):
        self.length, self.at, self.act = length, at, act

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        assert type(row) is int
        return row + self.act() if row in self.at else row


class Many(Rows):
    """Row 3 fails, as more than four do; it gives three at most."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __getitems__(self, rows):
        self.asked.append(rows)
        if 3 in rows or len(rows) > 4:
            raise KeyError("x")
        return rows[:3]


class Short(Rows):
    def __getitem__(self, row):
        return [0, 1][row]


def loaded(loader, rows):
    return [piece.batch.tolist() for piece in loader.micro_batches(np.array(rows, np.int64))]


def test_micro_batches_are_in_order_and_none_has_a_row_alone():
    loader = ChunkLoader(Rows(), None, 3)
    assert loaded(loader, [5, 1, 7, 2, 9, 0, 4]) == [[5, 1], [7, 2], [9, 0, 4]]
    assert loaded(loader, []) == []
    assert loaded(loader, [3, 3, 3]) == [[3, 3, 3]]
    many = Many()
    assert loaded(ChunkLoader(many, None, 2), [7, 1, 4]) == [[7], [1, 4]]
    assert many.asked == [[7], [1, 4]]
    loader = ChunkLoader(["a", "bcd", "ef"], lambda texts: "-".join(texts), 2)
    assert list(loader.micro_batches([0, 1, 2])) == [(1, "a"), (2, "bcd-ef")]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: int(torch.randint(1000, ())),
        lambda: int(1000 * nn.functional.dropout(torch.ones(100), 0.5).mean()),
        lambda: int(np.random.randint(1000)),
        lambda: random.randrange(1000),
    ],
    ids=["torch", "dropout", "numpy", "random"],
)
def test_random_numbers_are_those_of_the_row_whatever_is_loaded_with_it(draw):
    dataset = Rows(at={20, 23}, act=draw)
    expected = [number for row in range(20, 24) for (number,) in loaded(ChunkLoader(dataset, None, 2), [row])]
    assert expected[1:3] == [21, 22]
    with seeded((0, 1, 2), CPU):
        before = Generators.now(CPU).contents()
        assert [*chain(*loaded(ChunkLoader(dataset, None, 2), [20, 21, 22, 23]))] == expected
        assert Generators.now(CPU).contents() == before


def test_what_rows_draw_is_another_thing_in_the_next_epoch():
    loader = ChunkLoader(Rows(at={1}, act=random.random), None, 2)
    first = loaded(loader, [1])
    loader.seed = 0, 1
    assert loaded(loader, [1]) != first
    loader.seed = 0, 0
    assert loaded(loader, [0, 1])[0][1:] == pytest.approx(first[0], rel=1e-6)


def fail():
    raise OSError("cannot\nread")


def test_an_error_comes_out_where_the_row_is_used():
    batches = ChunkLoader(Rows(at={13}, act=fail), None, 2).micro_batches([10, 11, 12, 13])
    assert next(batches).batch.tolist() == [10, 11]
    with pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value).startswith("row 13 of the dataset (Rows, 100 examples): OSError: cannot read, tests/")
    assert "test_torch_loader.py:" in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "rows", "said"),
    [
        (Short(5), [1, 4], "row 4 of the dataset (Short, 5 examples): IndexError: list index out of range, "),
        (Many(), [1, 3, 5], "row 3 of the dataset (Many, 100 examples): KeyError: 'x', "),
        (Many(), [4, 5, 6, 7, 8], "rows 4, 5, 6, ... of the dataset (Many, 100 examples): KeyError: 'x', "),
        (Many(), [4, 5, 6, 7], "the dataset (Many): __getitems__ gave 3 examples for 4 rows"),
        (
            [torch.zeros(n) for n in (1, 2, 3)],
            [0, 2],
            "default_collate of rows 0, 2: RuntimeError: stack expects each ",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(dataset, rows, said):
    with pytest.raises(UserError) as error:
        list(ChunkLoader(dataset, None, 8).micro_batches(rows))
    assert str(error.value).startswith(said)
    assert str(error.value).isprintable()
