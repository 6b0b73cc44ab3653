"""Digests of what a worker computes, by which copies of a chunk are compared (`verify: {idle: true}`)."""

import time
from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np

SHARE = 0.005  # of the time of the chunks that digests take, at most


class Digester:
    """Makes them as long as they take a small share of the time. to_host: gives a vector as a NumPy array."""

    def __init__(self, to_host: Callable[[Any], np.ndarray]) -> None:
        self._to_host = to_host
        self._computed, self._spent = 0.0, 0.0  # seconds
        self._needed = 0.0  # seconds per byte of the newest one

    def digest(self, vector: Any, seconds: float, always: bool = False) -> int:
        """A number from 1 to 2**31 - 1, which another vector has by chance only; 0 for none, since it takes too long.

        seconds: that the vector took to compute; always: also if it takes long.
        """
        self._computed += seconds
        if not always and self._spent + self._needed * vector.nbytes > SHARE * self._computed:
            return 0
        began = time.perf_counter()
        found = 1 + crc32(self._to_host(vector).data) % (2**31 - 1)
        took = time.perf_counter() - began
        self._needed = took / max(1, vector.nbytes)
        self._spent += 0.0 if always else took
        return found
