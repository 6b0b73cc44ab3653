"""Datasets that know who has loaded which of their rows, and loaders of them."""

import threading
import time

import numpy as np
import pytest
import torch

from psgc.torch.loader import ChunkLoader

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
