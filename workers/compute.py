"""The compute thread of a worker: takes chunks from the desk, computes their gradients, brings the results back."""

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.backend import Array, Backend
from psgc.data import ChunkSource
from psgc.errors import UserError, one_line
from psgc.workers.desk import Desk, Result, Work
from psgc.workers.emulation import Emulation
from psgc.workers.injection import Injector

LATE = 1e-3  # seconds at most by which an emulated chunk is shorter because the one before was too long

Evaluate = Callable[[Array, Any, np.random.Generator], tuple[float, Array]]  # (params, chunk, rng) -> loss, gradient


def gradient_of(
    evaluate: Evaluate, chunks: ChunkSource, chunk: int, params: Array, iteration: int, seed: int, batch: int | None
) -> tuple[float, Array]:
    """Loss and gradient (dim,) of a chunk: of all its rows, or of `batch` drawn from (seed, iteration, chunk)."""
    rng = np.random.default_rng((seed, iteration, chunk))
    data = chunks.chunk(chunk) if batch is None else chunks.sample(chunk, batch, rng)
    return evaluate(params, data, rng)


class ComputeThread(threading.Thread):
    """Runs until the desk stops. Everything random in a chunk is drawn from (seed, iteration, chunk).

    evaluate: loss and gradient (dim,) of a chunk; batch: rows sampled per chunk, None for all of them.
    """

    def __init__(
        self,
        desk: Desk,
        evaluate: Evaluate,
        chunks: ChunkSource,
        backend: Backend,
        dim: int,
        dtype: Any,
        emulation: Emulation,
        injector: Injector,
        seed: int,
        batch: int | None,
    ) -> None:
        super().__init__(name="psgc-compute", daemon=True)  # a gradient that never returns must not keep the rank alive
        self._desk = desk
        self._evaluate = evaluate
        self._chunks = chunks
        self._backend = backend
        self._dim = dim
        self._dtype = dtype
        self._emulation = emulation
        self._injector = injector
        self._seed = seed
        self._batch = batch
        self._late = 0.0  # seconds by which the kernel ended the last sleep too late; the next one is shorter for it

    def run(self) -> None:
        self._backend.use_in_thread()
        while (work := self._desk.take()) is not None:
            try:
                self._do(work)
            except BaseException as error:  # even sys.exit() in a model: without this thread the run would hang
                known = isinstance(error, _BadGradient | UserError)  # the latter: damaged data
                self._desk.failed(work, str(error) if known else f"{one_line(error)}\n{traceback.format_exc()}")

    def _do(self, work: Work) -> None:
        start = time.monotonic()
        loss, gradient = self._gradient(work)
        computed = time.monotonic() - start
        extra = self._emulation.extra(work.iteration, computed)
        if extra > 0:
            self._desk.wait_stale(work, extra - self._late)
            late = time.monotonic() - start - computed - (extra - self._late)
            self._late = min(max(late, 0.0), LATE)
        seconds = time.monotonic() - start
        self._injector.at("before_report", work.iteration)
        self._desk.finished(work, Result(gradient, loss, start - work.begun, seconds))

    def _gradient(self, work: Work) -> tuple[float, Array]:
        self._injector.at("gradient", work.iteration)
        loss, gradient = gradient_of(
            self._evaluate, self._chunks, work.chunk, work.params, work.iteration, self._seed, self._batch
        )
        with np.errstate(all="ignore"):
            gradient = self._backend.xp.asarray(self._backend.asarray(gradient))
            if not np.can_cast(
                gradient.dtype, self._dtype, "same_kind"
            ):  # complex, objects: a cast would lose or invent
                raise _BadGradient(f"the gradient is of dtype {gradient.dtype}, expected {np.dtype(self._dtype)}")
            if gradient.shape != (self._dim,):
                raise _BadGradient(f"the gradient has shape {gradient.shape}, expected ({self._dim},)")
            gradient = self._backend.xp.ascontiguousarray(gradient, self._dtype)
        if not self._backend.all_finite(gradient):
            raise _BadGradient("the gradient has entries that are NaN or infinite")
        _lock(gradient)
        return float(loss), gradient


def _lock(array: Any) -> None:
    """It is kept for a while: a model that writes to it again, or to what it is a view of, must hear of it."""
    while isinstance(array, np.ndarray):
        array.setflags(write=False)
        array = array.base


class _BadGradient(Exception):
    """The gradient came back, but cannot be used; the text says why."""
