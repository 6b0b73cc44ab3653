"""Examples that draw random numbers, whoever loads them, and those that cannot be loaded: errors name the row."""

import random
import threading
import time
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from psgc.errors import UserError
from psgc.torch.generators import DRAWING, Generators, seeded
from psgc.torch.loader import ChunkLoader
from tests.unit.loading import CPU, TIMEOUT, Many, Rows, eventually, loaded
from tests.unit.loading import at_once as at_once
from tests.unit.loading import opened as opened


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
@pytest.mark.parametrize("first", [0, 20], ids=["seen with the first chunk", "later"])
def test_random_numbers_are_those_of_the_row_whoever_was_ahead(opened, draw, first):
    rows = {first, 23}
    expected = [
        number for row in range(20, 24) for (number,) in loaded(ChunkLoader(Rows(at=rows, act=draw), None, 2), [row])
    ]
    dataset = Rows(at=rows, act=draw)
    loader = opened(dataset)
    with seeded((5, 5, 5), CPU):
        before = torch.get_rng_state()
        loader.expect([20, 21, 22, 23])
        if first:
            eventually(lambda: not loader.may_load_ahead)
        assert torch.equal(torch.get_rng_state(), before)  # the model of this chunk draws what it should
    with seeded((0, 1, 2), CPU):
        before = Generators.now(CPU).contents()
        assert [*chain(*loaded(loader, [20, 21, 22, 23]))] == expected
        assert Generators.now(CPU).contents() == before
    assert (20 in dataset.ahead) == bool(first)


def test_what_rows_draw_is_another_thing_in_the_next_epoch():
    loader = ChunkLoader(Rows(at={1}, act=random.random), None, 2)
    first = loaded(loader, [1])
    loader.seed = 0, 1
    assert loaded(loader, [1]) != first
    loader.seed = 0, 0
    assert loaded(loader, [0, 1])[0][1:] == pytest.approx(first[0], rel=1e-6)


def test_a_generator_of_the_datasets_own_does_not_stop_it(opened):
    def act():
        own = torch.Generator().manual_seed(3)
        return int(torch.randint(1000, (), generator=own)) + int(torch.randperm(5, generator=own)[0])

    dataset = Rows(at=set(range(50)), act=act)
    loader = opened(dataset)
    loader.expect([10, 11])
    eventually(lambda: 11 in dataset.ahead)
    (batch,) = loaded(loader, [10, 11])
    assert batch[1] == batch[0] + 1
    assert [row for row, _ in dataset.asked].count(10) == 1


def test_seeding_in_another_thread_is_not_mistaken_for_a_draw(opened):
    def slow():
        time.sleep(0.002)
        return 0

    dataset = Rows(1000, at=set(range(1000)), act=slow)
    loader = opened(dataset)
    for start in range(10, 60, 4):
        loader.expect(range(start, start + 4))
        for step in range(20):
            with seeded((step, start), CPU):
                time.sleep(0.0002)
    assert loader.may_load_ahead


def fail():
    raise OSError("cannot\nread")


def test_an_error_comes_out_where_the_row_is_used(opened):
    dataset = Rows(at={13}, act=fail)
    loader = opened(dataset)
    loader.expect([10, 11, 12, 13])
    eventually(lambda: 13 in dataset.ahead)
    assert loaded(loader, [20, 21]) == [[20, 21]]
    batches = loader.micro_batches([10, 11, 12, 13])
    assert next(batches).batch.tolist() == [10, 11]
    with pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value).startswith("row 13 of the dataset (Rows, 100 examples): OSError: cannot read, tests/")
    assert "test_torch_loader_draws.py:" in str(error.value)


def test_who_waits_for_a_row_that_fails_ahead_loads_it_itself(opened):
    asked, got = threading.Event(), []

    def fails_late():
        if threading.current_thread().name != "psgc-loader":
            return 0
        assert asked.wait(TIMEOUT)
        time.sleep(0.1)  # until who asks for the row waits for it
        raise OSError("only there")

    def ask():
        asked.set()
        got.extend(loaded(loader, [12, 13]))

    dataset = Rows(at={13}, act=fails_late)
    loader = opened(dataset)
    loader.expect([12, 13])
    eventually(lambda: 13 in dataset.ahead)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(TIMEOUT)
    assert got == [[12, 13]]


class Short(Rows):
    def __getitem__(self, row):
        return [0, 1][row]


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


def test_all_functions_of_torch_that_draw_are_known():
    found = set()
    for name in {name for place in (torch, torch.Tensor, nn.functional) for name in dir(place)}:
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            if torch.Tag.nondeterministic_seeded in getattr(packet, overload).tags:
                found.add(name.rstrip("_"))
    internal = ("attention", "_rnn", "dropout_state", "dropout_mask", "_lstm_mps", "inplace", "_sdp_choice", "_nested")
    assert {name for name in found if not any(part in name for part in internal)} <= DRAWING
    assert {"rand", "bernoulli", "normal", "dropout"} <= found
