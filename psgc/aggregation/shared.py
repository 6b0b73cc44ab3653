"""The memory that the ranks of a host share: the accumulators and the sums of each of them.

The memory has no name, so nothing is left of it when its processes have ended, however they end. Pages that are
never written cost nothing. A note says what can be read (`psgc.aggregation.protocol`), and is sent after it was
written. Accumulators are overwritten when the next map comes: no rank needs them any more. Sums are overwritten at the
second map after their own. A slower rank may read a mixture, so it must check afterwards (`is_of`).
"""

import mmap
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from psgc.aggregation.map import SLOTS
from psgc.backend import Array

GENERATIONS = 2  # of sums, since those of an iteration are still read while the next ones are made
PAGE = mmap.PAGESIZE


def memory_bytes(ranks: int, entries: int, itemsize: int) -> int:
    """Bytes of the memory of so many ranks with vectors of so many entries. About a third of it is ever written to."""
    return _table_bytes(ranks) + ranks * (SLOTS + GENERATIONS) * _vector_bytes(entries, itemsize)


def _table_bytes(ranks: int) -> int:
    return _whole_pages(ranks * GENERATIONS * 8)


def _vector_bytes(entries: int, itemsize: int) -> int:
    return _whole_pages(entries * itemsize)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class HostMemory:
    """The shared memory of one host.

    ranks: the ranks of the host
    memory: `memory_bytes` bytes, zeros at first
    """

    def __init__(self, ranks: Sequence[int], memory: Any, entries: int, dtype: Any) -> None:
        self._places = {rank: place for place, rank in enumerate(ranks)}
        table, itemsize = _table_bytes(len(ranks)), np.dtype(dtype).itemsize
        shape = len(ranks), SLOTS + GENERATIONS, _vector_bytes(entries, itemsize) // itemsize
        count = shape[0] * shape[1] * shape[2]
        self._vectors = np.frombuffer(memory, dtype, count, table).reshape(shape)[..., :entries]
        begun = np.frombuffer(memory, np.int64, len(ranks) * GENERATIONS)
        self._begun = begun.reshape(len(ranks), GENERATIONS)  # 1 + the newest iteration whose sums were begun there
        self._lock = threading.Lock()

    def accumulator(self, rank: int, slot: int) -> Array:
        """(entries,): the accumulator of `rank` in this slot."""
        return self._vectors[self._places[rank], slot]

    def sums(self, rank: int, iteration: int) -> Array:
        """(entries,): the blocks of the gradient that `rank` writes for this host."""
        return self._vectors[self._places[rank], SLOTS + iteration % GENERATIONS]

    def begin(self, rank: int, iteration: int) -> bool:
        """`rank` is about to write to its sums of `iteration`. False: it must not, since later sums are there."""
        begun, place = self._begun[self._places[rank]], iteration % GENERATIONS
        if begun[place] < iteration + 1:
            begun[place] = iteration + 1
            self._fence()
        return bool(begun[place] == iteration + 1)

    def is_of(self, rank: int, iteration: int) -> bool:
        """Whether what was just read from the sums of `rank` was of `iteration`."""
        self._fence()
        return bool(self._begun[self._places[rank], iteration % GENERATIONS] == iteration + 1)

    def _fence(self) -> None:
        """A full memory barrier, which Python does not offer.

        Other processes see the reads and writes before it happen before those after it.
        """
        for _ in range(2):  # earlier accesses stay before the first release, later ones after the second acquisition
            with self._lock:
                pass
