"""The memory that the ranks of a host share: what each of them has accumulated, and what it has summed.

It has no name, so nothing is left of it when its processes have ended, however they end. Pages that nobody writes to
cost nothing. Who may read what when is said by messages (`psgc.aggregation.protocol`): they come after what they tell
of. Accumulators are overwritten when the next map is there, and nobody needs them any more. Sums are overwritten at the
second map after theirs. Who is slower than that may read a mixture, so it has to look afterwards (`is_of`).
"""

import mmap
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from psgc.aggregation.map import SLOTS
from psgc.backend import Array

GENERATIONS = 2  # of sums: those of an iteration are still read while the next ones are made
PAGE = mmap.PAGESIZE


def memory_bytes(ranks: int, entries: int, itemsize: int) -> int:
    """Of the memory of so many ranks with vectors of so many entries; about a third of it is ever written to."""
    return _table_bytes(ranks) + ranks * (SLOTS + GENERATIONS) * _vector_bytes(entries, itemsize)


def _table_bytes(ranks: int) -> int:
    return _whole_pages(ranks * GENERATIONS * 8)


def _vector_bytes(entries: int, itemsize: int) -> int:
    return _whole_pages(entries * itemsize)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class HostMemory:
    """ranks: those that share it; memory: of `memory_bytes`, zeros in the beginning."""

    def __init__(self, ranks: Sequence[int], memory: Any, entries: int, dtype: Any) -> None:
        self._places = {rank: place for place, rank in enumerate(ranks)}
        table, itemsize = _table_bytes(len(ranks)), np.dtype(dtype).itemsize
        shape = len(ranks), SLOTS + GENERATIONS, _vector_bytes(entries, itemsize) // itemsize
        count = shape[0] * shape[1] * shape[2]
        self._vectors = np.frombuffer(memory, dtype, count, table).reshape(shape)[..., :entries]
        begun = np.frombuffer(memory, np.int64, len(ranks) * GENERATIONS)
        self._begun = begun.reshape(len(ranks), GENERATIONS)  # the iteration after the newest one that was begun
        self._lock = threading.Lock()

    def accumulator(self, rank: int, slot: int) -> Array:
        """(entries,): one of those of `rank`."""
        return self._vectors[self._places[rank], slot]

    def sums(self, rank: int, iteration: int) -> Array:
        """(entries,): where `rank` puts the blocks of the gradient that it has first of the ranks of this host."""
        return self._vectors[self._places[rank], SLOTS + iteration % GENERATIONS]

    def begin(self, rank: int, iteration: int) -> bool:
        """`rank` is about to write to its sums of `iteration`. False: it must not, since there are later ones."""
        begun, place = self._begun[self._places[rank]], iteration % GENERATIONS
        if begun[place] < iteration + 1:
            begun[place] = iteration + 1
            self._fence()
        return bool(begun[place] == iteration + 1)

    def is_of(self, rank: int, iteration: int) -> bool:
        """Whether what was read from the sums of `rank` was of `iteration`."""
        self._fence()
        return bool(self._begun[self._places[rank], iteration % GENERATIONS] == iteration + 1)

    def _fence(self) -> None:
        """What was read and written before is so for all processes, before what follows. (A lock does that twice.)"""
        for _ in range(2):
            with self._lock:
                pass
