"""The compute thread of a worker: takes chunks from the mailbox, computes their gradients, brings the results back."""

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any, Protocol

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence

from psgc.backend import Array, Backend
from psgc.coding.sketch import sketch
from psgc.data import Chunk, ChunkSource, Epochs
from psgc.errors import ModelError, UserError, one_line, raised_at
from psgc.problems import Halves
from psgc.workers.emulation import Emulation
from psgc.workers.held_out import HeldOut
from psgc.workers.injection import Injector
from psgc.workers.mailbox import Mailbox, Result, Work
from psgc.workers.ownership import call

LATE = 1e-3  # seconds at most by which an emulated chunk is shorter because the one before was too long

NO_SKETCH = (nan, nan, nan)  # of a gradient that cannot be had

Evaluate = Callable[[Array, Any, np.random.Generator], tuple[float, Array]]  # (params, chunk, rng) -> loss, gradient


class ChunkSeed(ISpawnableSeedSequence):
    """What the random numbers of one chunk start from.

    The three numbers themselves are the state of the SFC64 generator, which mixes them. NumPy's own seeds take 25 us
    to make, as long as a small gradient.
    """

    def __init__(self, seed: int, iteration: int, chunk: int) -> None:
        self._numbers = (seed % 2**64, iteration, chunk)
        self._children: np.random.SeedSequence | None = None

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.array(self._numbers, np.uint64)  # SFC64 asks for three words of 64 bits, and for nothing else

    def spawn(self, n_children: int) -> list[np.random.SeedSequence]:  # type: ignore[override]  # as NumPy returns
        self._children = self._children or np.random.SeedSequence(self._numbers)
        return self._children.spawn(n_children)


def rng_of(seed: int, iteration: int, chunk: int) -> np.random.Generator:
    """A generator of its own for each chunk of each iteration, the same on every worker."""
    return np.random.Generator(np.random.SFC64(ChunkSeed(seed, iteration, chunk)))  # type: ignore[arg-type]


def gradient_of(
    evaluate: Evaluate,
    chunks: ChunkSource,
    chunk: int,
    params: Array,
    iteration: int,
    seed: int,
    batch: int | Epochs | None,
) -> tuple[float, Array]:
    """Loss and gradient (dim,) of a chunk.

    batch: None for all its rows; a number of them, drawn from (seed, iteration, chunk); or epochs, which say what rows
    of the data the chunk has in this iteration. Of no rows both are 0, and the model is not asked.
    """
    rng = rng_of(seed, iteration, chunk)
    data = rows_of_chunk(chunks, chunk, iteration, rng, batch)
    return (0.0, np.zeros_like(params)) if data is None else evaluate(params, data, rng)


def rows_of_chunk(
    chunks: ChunkSource, chunk: int, iteration: int, rng: np.random.Generator, batch: int | Epochs | None
) -> Chunk | None:
    """The rows that a gradient is computed over (`gradient_of`); None when there are none."""
    if isinstance(batch, Epochs):
        rows = batch.rows(iteration, chunk, chunks.num_chunks)
        return chunks.take(chunk, rows, rows.size / batch.rows_in(iteration)) if rows.size else None
    return chunks.chunk(chunk) if batch is None else chunks.sample(chunk, batch, rng)


@dataclass(frozen=True)
class Trial:
    """What a worker does to show that its gradients are those of other workers.

    iteration: the first of the run; own: the chunk that it does besides its work, None for none; chunks: those that two
    workers do in that iteration.
    """

    iteration: int
    own: int | None
    chunks: frozenset[int]


NO_TRIAL = Trial(-1, None, frozenset())


class Computing(Protocol):
    """What computes gradients: a ComputeThread, or the thread of the user's script (`psgc.torch`)."""

    @property
    def ident(self) -> int | None:
        """Of the thread."""

    def start(self) -> None:
        """Begin to take chunks."""


class ComputeThread(threading.Thread):
    """Runs until the mailbox stops. Everything random in a chunk is drawn from (seed, iteration, chunk).

    evaluate: loss and gradient (dim,) of a chunk; batch: the rows of a chunk (`gradient_of`); trial: chunks that other
    workers do as well, whose gradients are compared; held_out: rows that are evaluated with the chunks; halves: looks
    at the first chunk.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        evaluate: Evaluate,
        chunks: ChunkSource,
        backend: Backend,
        dim: int,
        dtype: Any,
        emulation: Emulation,
        injector: Injector,
        seed: int,
        batch: int | Epochs | None,
        trial: Trial = NO_TRIAL,
        held_out: HeldOut | None = None,
        halves: Halves | None = None,
    ) -> None:
        super().__init__(name="psgc-compute", daemon=True)  # a gradient that never returns must not keep the rank alive
        self._mailbox = mailbox
        self._evaluate = evaluate
        self._chunks = chunks
        self._backend = backend
        self._dim = dim
        self._dtype = np.dtype(dtype)
        self._emulation = emulation
        self._injector = injector
        self._seed = seed
        self._batch = batch
        self._trial = trial
        self._held_out = held_out
        self._halves = halves
        self._tried = trial.own is None
        self._late = 0.0  # seconds by which the kernel ended the last sleep too late; the next one is shorter for it

    def run(self) -> None:
        self._backend.use_in_thread()
        while (work := self._mailbox.take()) is not None:
            try:
                self._do(work)
                if work.iteration == self._trial.iteration and not self._tried:
                    self._tried = True
                    self._try(work)
            except ModelError as error:
                self._mailbox.broken(work, error)
                return
            except BaseException as error:  # even sys.exit() in a model: without this thread the run would hang
                known = isinstance(error, _BadGradient | UserError)  # the latter: damaged data
                told = str(error) if known else f"{one_line(error)}{raised_at(error)}\n{traceback.format_exc()}"
                self._mailbox.failed(work, told)

    def _do(self, work: Work) -> None:
        held_out = self._evaluated(work)
        if self._halves is not None:
            self._look(self._halves, work)
        start = time.monotonic()  # the seconds of a chunk are those of its gradient, from which its worker is judged
        self._injector.at("gradient", work.iteration)
        loss, gradient, is_own = self._gradient(work.iteration, work.chunk, work.params)
        seconds = time.monotonic() - start
        extra = self._emulation.extra(work.iteration, seconds, work.chunk)
        if extra > 0:
            pause = extra - self._late
            self._mailbox.wait_stale(work, pause)
            took, seconds = seconds, time.monotonic() - start
            self._late = min(max(seconds - took - pause, 0.0), LATE)
        self._injector.at("before_report", work.iteration)
        if work.iteration == self._trial.iteration and work.chunk in self._trial.chunks:
            self._mailbox.tried(work.iteration, work.chunk, sketch(gradient, self._backend.xp))
        self._mailbox.finished(work, Result(gradient, loss, start - work.begun, seconds, is_own, held_out))

    def _evaluated(self, work: Work) -> tuple[float, float]:
        """The part of the held-out loss and accuracy that goes with the chunk."""
        if self._held_out is None or not self._held_out.is_due(work.iteration):
            return 0.0, 0.0
        with self._mailbox.evaluating():
            return self._held_out.evaluate(
                *(work.iteration, work.chunk, work.params),
                gradient=lambda: self._gradient(work.iteration, work.chunk, work.params),
            )

    def _look(self, halves: Halves, work: Work) -> None:
        """Compare the chunk with its halves, as long as none was."""
        with self._mailbox.evaluating():
            rng = rng_of(self._seed, work.iteration, work.chunk)
            data = rows_of_chunk(self._chunks, work.chunk, work.iteration, rng, self._batch)
            if data is not None and halves.check(work.params, data):
                self._halves = None

    def _try(self, work: Work) -> None:
        """Do the chunk of the trial, at the parameters of `work`."""
        assert self._trial.own is not None
        start = time.monotonic()
        self._mailbox.trying(self._trial.own)
        try:
            found = sketch(self._gradient(work.iteration, self._trial.own, work.params)[1], self._backend.xp)
        except ModelError:
            raise
        except BaseException:  # the worker whose chunk it is tells what is wrong with it
            found = NO_SKETCH
        self._mailbox.wait_stale(work, self._emulation.extra(work.iteration, time.monotonic() - start, self._trial.own))
        self._mailbox.tried(work.iteration, self._trial.own, found)

    def _gradient(self, iteration: int, chunk: int, params: Array) -> tuple[float, Array, bool]:
        """Loss, gradient, and whether the gradient's memory is psgc's."""
        loss, returned, unshared = call(
            lambda: gradient_of(self._evaluate, self._chunks, chunk, params, iteration, self._seed, self._batch)
        )
        gradient, is_new = (returned, False) if self._fits(returned) else self._converted(returned)
        if not self._backend.all_finite(gradient):
            raise _BadGradient("the gradient has entries that are NaN or infinite")
        return float(loss), gradient, unshared or is_new

    def _fits(self, array: Any) -> bool:
        return (
            type(array) is self._backend.xp.ndarray
            and array.dtype == self._dtype
            and array.shape == (self._dim,)
            and array.flags.c_contiguous
        )

    def _converted(self, returned: Any) -> tuple[Array, bool]:
        """As an array of the run's type, and whether it is a copy for certain: `__array__` may give what others use."""
        gradient = self._backend.xp.asarray(self._backend.asarray(returned))
        if not np.can_cast(gradient.dtype, self._dtype, "same_kind"):  # from complex or objects a cast loses or invents
            raise _BadGradient(f"the gradient is of dtype {gradient.dtype}, expected {self._dtype}")
        if gradient.shape != (self._dim,):
            raise _BadGradient(f"the gradient has shape {gradient.shape}, expected ({self._dim},)")
        with np.errstate(all="ignore"):
            converted = self._backend.xp.ascontiguousarray(gradient, self._dtype)
        return converted, converted is not gradient and converted.base is None


class _BadGradient(Exception):
    """The gradient came back, but cannot be used; the text says why."""
