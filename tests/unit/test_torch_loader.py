"""Examples in micro-batches: what is asked for, in time, by one thread."""

import random
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from psgc.torch.loader import AHEAD, ChunkLoader, has_spare_core
from tests.unit.loading import CPU, Many, Rows, eventually, loaded
from tests.unit.loading import at_once as at_once
from tests.unit.loading import opened as opened


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
