"""Finds a model that writes to the parameters or to its chunk.

Both are shared: other chunks are computed with the same parameters, and the chunk is used again in the next iteration.
NumPy's read-only flag stops NumPy, but neither PyTorch nor C code. So checksums are compared around a gradient in each
of a worker's first iterations, and later as often as a small share of the computing time allows.
"""

import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from psgc.backend import Array, Backend
from psgc.data import Chunk
from psgc.errors import ModelError
from psgc.problems.base import Evaluation

FIRST = 3  # parameters whose first gradient is checked; more than one, since a 0 written over a 0 goes unnoticed
SHARE = 0.005  # of the computing time, which later checksums may take


class InputGuard:
    """An evaluation, (params, chunk, rng) -> (loss, gradient). Raises ModelError if `evaluate` has written to
    `params`, `chunk.X` or `chunk.y`.

    always: check every gradient
    """

    def __init__(self, evaluate: Evaluation, backend: Backend, always: bool = False) -> None:
        self._always = always
        self._evaluate = evaluate
        self._backend = backend
        self._params: Array = None  # of the last gradient
        self._met = 0  # number of different parameters
        self._computing = self._checking = 0.0  # seconds

    def __call__(self, params: Array, chunk: Chunk, rng: np.random.Generator) -> tuple[float, Array]:
        start = time.perf_counter()
        checks = self._always or self._is_among_the_first(params) or self._checking < SHARE * self._computing
        before = self._checksums(params, chunk) if checks else {}
        began = time.perf_counter()
        result = self._evaluate(params, chunk, rng)
        ended = time.perf_counter()
        if before:
            after = self._checksums(params, chunk)
            if written := [name for name in before if before[name] != after[name]]:
                names = " and ".join(written)
                raise ModelError(f"the gradient writes to {names}, which it must only read; let it work on a copy")
        self._computing += ended - began
        self._checking += began - start + time.perf_counter() - ended
        return result

    def _is_among_the_first(self, params: Array) -> bool:
        is_new = params is not self._params
        self._params = params
        self._met += is_new
        return is_new and self._met <= FIRST

    def _checksums(self, params: Array, chunk: Chunk) -> dict[str, int]:
        arrays = {"params": [params], "chunk.X": list(_arrays(chunk.X)), "chunk.y": list(_arrays(chunk.y))}
        return {name: self._checksum(parts) for name, parts in arrays.items()}

    def _checksum(self, arrays: list[Array]) -> int:
        checksum = 0
        for array in arrays:
            host = np.ascontiguousarray(self._backend.to_host(array))
            checksum = zlib.crc32(host.reshape(-1).view(np.uint8).data, checksum)
        return checksum


def _arrays(data: Any) -> Iterator[Array]:
    """The arrays that hold a chunk's features or labels: several for a sparse matrix, none when there is no data."""
    if data is not None:
        yield from (data.data, data.indices, data.indptr) if hasattr(data, "indptr") else (data,)
