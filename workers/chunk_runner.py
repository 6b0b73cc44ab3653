"""What a worker does with a chunk besides computing it: injected faults, emulated slowness, the trial, the report.

For a NumPy problem a thread of its own does this (`psgc.workers.compute`). For a script the script's own thread does it
during a call (`psgc.torch.working`).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import nan
from typing import NamedTuple, Protocol

from psgc.backend import Array, Backend
from psgc.coding.sketch import sketch
from psgc.errors import ModelError, PsgcError
from psgc.workers.emulation import Emulation
from psgc.workers.injection import Injector
from psgc.workers.mailbox import Mailbox
from psgc.workers.work import Result, Work

LATE = 1e-3  # seconds; the most by which an emulated chunk is shortened because the one before took too long

NO_SKETCH = (nan, nan, nan)  # of a gradient that failed


@dataclass(frozen=True)
class Trial:
    """The trial of a worker: gradients that another worker computes too.

    iteration: the first iteration of the run
    own: the chunk that the worker does for the trial besides its work, None for none
    chunks: the chunks that two workers do in that iteration
    """

    iteration: int
    own: int | None
    chunks: frozenset[int]


class Computed(NamedTuple):
    """The gradient of a chunk or of a piece.

    vector: (dim,)
    loss: of the same rows
    is_own: whether psgc may write to the vector's memory
    sums: the sums of a script's evaluation, which has no gradient; `vector` holds them too
    """

    vector: Array
    loss: float
    is_own: bool
    sums: Sequence[float] = ()


class Source(Protocol):
    """Computes chunks.

    joins: whether it can compute several chunks in one pass; False while that is not known
    at: the chunk of a piece that is computed, or -1 for all of them
    """

    at: int

    @property
    def joins(self) -> bool: ...

    def prepare(self, work: Work) -> tuple[float, float]:
        """Do what comes before the chunk and is no part of its time. Returns the chunk's held-out loss and accuracy."""

    def compute(
        self, iteration: int, piece: Sequence[int], params: Array, is_wanted: Callable[[], bool]
    ) -> Computed | None:
        """The sum over these chunks, or None if the source stopped early because it is not wanted any more."""

    def told(self, error: BaseException) -> str | PsgcError:
        """The text about an error for the server, or the error itself if it must end the run.

        Raises an error that is not for the server.
        """

    def here(self) -> AbstractContextManager[object]:
        """A context in which a vector can be used."""


class ChunkRunner:
    """Does the chunks of the mailbox, one after another."""

    def __init__(
        self, mailbox: Mailbox, backend: Backend, emulation: Emulation, injector: Injector, trial: Trial
    ) -> None:
        self._mailbox, self._xp = mailbox, backend.xp
        self._emulation, self._injector, self._trial = emulation, injector, trial
        self._is_tried = trial.own is None
        self._late = 0.0  # seconds by which the last sleep was too long; the next one is shortened by them

    def run(self, source: Source, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Run until the mailbox stops, or `is_over()`. Returns False after an error that ends the run."""
        while (work := self._mailbox.take(is_over, source.joins)) is not None:
            try:
                self._do(source, work)
                if work.iteration == self._trial.iteration and not self._is_tried:
                    self._is_tried = True
                    self._try(source, work)
            except BaseException as error:  # even sys.exit() in a model: the run would hang without this thread
                if isinstance(told := source.told(error), PsgcError):
                    self._mailbox.broken(work, told)
                    return False
                self._mailbox.failed(work, told, source.at)
        return True

    def _do(self, source: Source, work: Work) -> None:
        held_out = (0.0, 0.0) if work.is_check else source.prepare(work)
        start = time.monotonic()  # only the gradient counts for the time by which the server judges this worker
        self._injector.at("gradient", work.iteration)
        found = source.compute(work.iteration, work.piece, work.params, lambda: self._mailbox.wants(work))
        seconds = time.monotonic() - start
        if found is not None and not found.sums and self._injector.flips("gradient", work.iteration):
            with source.here():
                found = found._replace(vector=found.vector if found.is_own else found.vector.copy(), is_own=True)
                self._injector.flip("gradient", found.vector, work.iteration)
        if found is None:
            self._mailbox.gave_up(work, start - work.begun, seconds)
            return
        share = seconds / len(work.piece)
        extra = sum(self._emulation.extra(work.iteration, share, chunk) for chunk in work.piece)
        if extra > 0:
            pause = extra - self._late
            self._mailbox.wait_stale(work, pause)
            took, seconds = seconds, time.monotonic() - start
            self._late = min(max(seconds - took - pause, 0.0), LATE)
        self._injector.at("before_report", work.iteration)
        with source.here():
            if work.iteration == self._trial.iteration and work.chunk in self._trial.chunks:
                self._mailbox.tried(work.iteration, work.chunk, sketch(found.vector, self._xp), found.vector)
            gradient, sums = (None, found.sums) if found.sums else (found.vector, held_out)
            started, joins = start - work.begun, source.joins
            self._mailbox.finished(work, Result(gradient, found.loss, started, seconds, found.is_own, sums, joins))

    def _try(self, source: Source, work: Work) -> None:
        """Do the chunk of the trial, with the parameters of `work`."""
        own = self._trial.own
        assert own is not None
        start = time.monotonic()
        self._mailbox.trying(own)
        tried, vector = NO_SKETCH, None
        try:
            if (found := source.compute(work.iteration, [own], work.params, lambda: True)) is not None:
                with source.here():
                    tried, vector = sketch(found.vector, self._xp), found.vector
        except BaseException as error:  # the worker that owns the chunk reports the error
            if isinstance(source.told(error), ModelError):
                raise
        self._mailbox.wait_stale(work, self._emulation.extra(work.iteration, time.monotonic() - start, own))
        self._mailbox.tried(work.iteration, own, tried, vector)
