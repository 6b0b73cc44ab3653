"""Examples in micro-batches: what is asked for, in time, by one thread, and with errors that name the row."""

import random
import threading
import time
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from psgc.errors import UserError
from psgc.torch.generators import DRAWING, Generators, seeded
from psgc.torch.loader import AHEAD, ChunkLoader, has_spare_core

CPU = torch.device("cpu")
TIMEOUT = 20.0  # seconds; only a defect takes as long


class Rows:
    """Example i is i. It records who asked for which row, and may do something for some rows."""

    def __init__(self, length=100, at=None, act=None):
        self.length, self.at, self.act = length, at or set(), act
        self.asked = []
        self._busy = threading.Lock()

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        assert type(row) is int
        assert self._busy.acquire(blocking=False), "two threads use the dataset"
        try:
            self.asked.append((row, threading.current_thread().name))
            if row in self.at:
                return row + self.act()
            return row
        finally:
            self._busy.release()

    @property
    def ahead(self):
        """The rows that were loaded ahead."""
        return [row for row, thread in self.asked if thread == "psgc-loader"]


def loaded(loader, rows):
    return [piece.batch.tolist() for piece in loader.micro_batches(np.array(rows, np.int64))]


def eventually(condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def at_once(monkeypatch):
    """Everything takes long enough to be loaded ahead, from the first load on."""
    monkeypatch.setattr("psgc.torch.loader.LEAST", 1)
    monkeypatch.setattr("psgc.torch.loader.LONG", 0.0)


@pytest.fixture
def opened(at_once):
    """Makes loaders that have seen a first chunk, rows 0 and 1, and closes them."""
    loaders = []

    def opening(dataset, micro_batch=2, collate_fn=None):
        loaders.append(ChunkLoader(dataset, collate_fn, micro_batch))
        list(loaders[-1].micro_batches([0, 1]))
        return loaders[-1]

    yield opening
    for loader in loaders:
        loader.close()


class Many(Rows):
    """Row 3 fails, as more than four do; it gives three at most."""

    def __getitems__(self, rows):
        self.asked.append(rows)
        if 3 in rows or len(rows) > 4:
            raise KeyError("x")
        return rows[:3]


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


def test_the_next_chunk_is_loaded_while_this_one_is_computed(opened):
    dataset = Rows()
    loader = opened(dataset)
    batches = loader.micro_batches([10, 11, 12, 13])
    loader.expect(range(20, 30))
    assert next(batches).batch.tolist() == [10, 11]
    assert next(batches).batch.tolist() == [12, 13]
    eventually(lambda: 23 in dataset.ahead)
    time.sleep(0.02)
    assert max(row for row, _ in dataset.asked) == 19 + 2 * AHEAD  # and no more
    assert list(batches) == []
    assert loaded(loader, range(20, 30)) == [[20, 21], [22, 23], [24, 25], [26, 27], [28, 29]]
    assert sorted(row for row, _ in dataset.asked) == [0, 1, 10, 11, 12, 13, *range(20, 30)]  # each once


class Clock:
    """Times of this thread: `spend` lets it compute, or be away because it waits or is interrupted."""

    def __init__(self, monkeypatch):
        self.now = self.computed = self.waits = 0
        monkeypatch.setattr("psgc.torch.loading.time", self)
        monkeypatch.setattr("psgc.torch.loading.resource", self)

    RUSAGE_THREAD = None
    monotonic = property(lambda self: lambda: self.now)
    thread_time = property(lambda self: lambda: self.computed)

    def getrusage(self, _):
        return SimpleNamespace(ru_nvcsw=self.waits)

    def spend(self, computing=0.0, waiting=0.0, interrupted=0.0):
        self.now += 1e-3 * (computing + waiting + interrupted)
        self.computed += 1e-3 * computing
        self.waits += waiting > 0
        return 0


SHORT, COMPUTING, WAITING = {"computing": 0.4}, {"computing": 2.0}, {"computing": 0.4, "waiting": 2.0}
INTERRUPTED = {"computing": 0.4, "interrupted": 9.0}


@pytest.mark.parametrize(
    ("loads", "ahead", "spare_core"),
    [
        ([COMPUTING] * 3, True, True),
        ([WAITING] * 2, False, False),
        ([WAITING] * 3, True, False),
        ([WAITING, SHORT, SHORT] * 30, False, False),  # the first is often slow, and any may be now and then
        ([SHORT] * 9 + [WAITING] * 4, False, False),
        ([SHORT] * 9 + [WAITING] * 5, True, False),
        ([INTERRUPTED] * 9, False, False),
        ([COMPUTING] * 9, False, False),
        ([{"waiting": 0.9}] * 9, False, False),
    ],
)
def test_what_a_thread_would_not_save_is_not_loaded_ahead(monkeypatch, loads, ahead, spare_core):
    clock, left = Clock(monkeypatch), iter([*loads, SHORT])
    dataset = Rows(at=set(range(100)), act=lambda: clock.spend(**next(left)))
    loader = ChunkLoader(dataset, None, 1, spare_core)
    for row in range(len(loads)):
        assert loaded(loader, [row]) == [[row]]
    loader.expect([99])
    if ahead:
        eventually(lambda: 99 in dataset.ahead)
    assert loaded(loader, [99]) == [[99]]
    assert (99 in dataset.ahead) == ahead
    loader.close()


@pytest.mark.parametrize(("threads", "ranks", "spare"), [(1, 3, True), (1, 4, False), (2, 2, False)])
def test_a_core_is_spare_when_the_ranks_of_this_machine_do_not_take_all(monkeypatch, threads, ranks, spare):
    monkeypatch.setattr("psgc.torch.loader.usable_cores", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", str(ranks))
    assert has_spare_core(CPU) == spare
    assert has_spare_core(torch.device("meta"))


def test_nothing_is_loaded_ahead_before_the_first_chunk_was_seen_whole(at_once):
    dataset = Rows()
    loader = ChunkLoader(dataset, None, 2)
    batches = loader.micro_batches([0, 1, 2, 3])
    loader.expect([4, 5])
    next(batches)
    batches.close()
    assert loaded(loader, [8, 9]) == [[8, 9]]
    loader.expect([6, 7])
    eventually(lambda: dataset.ahead[-2:] == [6, 7])
    loader.close()


def test_the_chunk_after_the_next_may_be_expected_before_the_next_is_asked_for(opened):
    dataset = Rows()
    loader = opened(dataset)
    loader.expect([10, 11, 12, 13])
    for start in range(10, 50, 4):
        eventually(lambda start=start: start + 3 in dataset.ahead)
        loader.expect(range(start + 4, start + 8))
        assert loaded(loader, range(start, start + 4)) == [[start, start + 1], [start + 2, start + 3]]
    assert len(dataset.asked) == len({row for row, _ in dataset.asked})


@pytest.mark.parametrize("why", ["it draws for its first row", "of a default device"])
def test_a_dataset_that_may_not_be_loaded_ahead(at_once, why):
    dataset = Rows(at={0}, act=lambda: random.randrange(1)) if why == "it draws for its first row" else Rows()
    loader = ChunkLoader(dataset, lambda examples: examples, 1)
    with torch.device("cpu" if dataset.at else "meta"):  # a default device is that of one thread
        list(loader.micro_batches([]))  # which says nothing
        list(loader.micro_batches([0, 1]))
        loader.expect([2, 3])
        time.sleep(0.05)
        assert [piece.batch for piece in loader.micro_batches([2, 3])] == [[2], [3]]
    assert dataset.ahead == []
    loader.close()


def test_what_is_expected_may_change_and_what_comes_may_be_something_else(opened):
    dataset = Rows()
    loader = opened(dataset)
    loader.expect([20, 21])
    eventually(lambda: 21 in dataset.ahead)
    loader.expect([30, 31])
    eventually(lambda: 31 in dataset.ahead)
    assert loaded(loader, [40, 41]) == [[40, 41]]
    assert loaded(loader, [30, 31]) == [[30, 31]]
    assert dataset.ahead.count(30) + [row for row, _ in dataset.asked].count(30) == 2  # once, ahead
    loader.expect([])
    assert loaded(loader, [20, 21]) == [[20, 21]]
    loader.expect([50, 51])
    loader.expect([60, 61])
    for _ in range(2):  # some chunks are computed twice
        assert loaded(loader, [50, 51]) == [[50, 51]]


def test_a_chunk_that_is_left_makes_room_for_the_next(opened):
    dataset = Rows()
    loader = opened(dataset)
    batches = loader.micro_batches(range(10, 20))
    next(batches)
    eventually(lambda: len(dataset.ahead) >= 4)
    batches.close()
    loader.expect([30, 31, 32, 33])
    eventually(lambda: 33 in dataset.ahead)


def test_a_loader_that_is_closed_loads_nothing_ahead_and_still_serves(opened):
    dataset, before = Rows(), set(threading.enumerate())
    loader = opened(dataset)
    loader.expect([10, 11])
    eventually(lambda: 11 in dataset.ahead)
    loader.close()
    loader.close()
    eventually(lambda: before.issuperset(threading.enumerate()))
    loader.expect([20, 21])
    assert loaded(loader, [20, 21]) == [[20, 21]]
    assert 20 not in dataset.ahead


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
    assert "test_torch_loader.py:" in str(error.value)


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
