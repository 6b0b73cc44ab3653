"""What a loader has loaded of a chunk, and what loading took."""

import resource
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from psgc.data.epochs import bounds


class Loading:
    """The rows of a chunk, in how many batches of `size` or fewer they go, those of them that are loaded and not used
    yet, and how many have been begun.
    """

    def __init__(self, rows: Sequence[int] | np.ndarray = (), size: int = 1) -> None:
        self.rows = np.asarray(rows, np.int64)
        self.batches = -(-len(self.rows) // size)
        self.loaded: deque[Any] = deque()
        self.begun = 0

    def rows_of(self, at: int) -> np.ndarray:
        """The rows of batch `at`."""
        return self.rows[slice(*bounds(at, len(self.rows), self.batches))]

    def is_like(self, other: "Loading") -> bool:
        """Whether it has the same batches."""
        return self.batches == other.batches and np.array_equal(self.rows, other.rows)


class Times:
    """What this thread has done so far, in seconds, and how often it has waited."""

    def __init__(self) -> None:
        self._now, self._computed = time.monotonic(), time.thread_time()
        self._waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

    def savings(self, end: "Times", spare_core: bool) -> float:
        """Seconds until `end` that would be saved if they passed while a chunk is computed."""
        took = end._now - self._now
        if spare_core:
            return took
        # without a wait the rest is time in which the kernel gave the core to others
        return took - (end._computed - self._computed) if end._waits > self._waits else 0.0
