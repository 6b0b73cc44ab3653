"""What a worker does with each chunk besides computing it: faults on purpose, emulated slowness, the trial, the report.

A NumPy problem has it done in a thread of its own (`psgc.workers.compute`), a script in its own thread while it is in a
call (`psgc.torch.working`).
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
from psgc.workers.mailbox import Mailbox, Result, Work

LATE = 1e-3  # seconds at most by which an emulated chunk is shorter because the one before was too long

NO_SKETCH = (nan, nan, nan)  # of a gradient that cannot be had


@dataclass(frozen=True)
class Trial:
    """What a worker does to show that its gradients are those of other workers.

    iteration: the first of the run; own: the chunk that it does besides its work, None for none; chunks: those that two
    workers do in that iteration.
    """

    iteration: int
    own: int | None
    chunks: frozenset[int]


class Computed(NamedTuple):
    """vector: of a chunk, (dim,); loss: of it; is_own: whether the vector's memory is psgc's, to write to.

    sums: of an evaluation of a script, which has no gradient. They are the vector as well.
    """

    vector: Array
    loss: float
    is_own: bool
    sums: Sequence[float] = ()


class Source(Protocol):
    """What computes chunks.

    joins: whether it can compute several in one pass; False as long as that is not known.
    """

    @property
    def joins(self) -> bool: ...

    def prepare(self, work: Work) -> tuple[float, float]:
        """What comes before the chunk, and is no part of its time; its part of the held-out loss and accuracy."""

    def compute(
        self, iteration: int, piece: Sequence[int], params: Array, is_wanted: Callable[[], bool]
    ) -> Computed | None:
        """The sum over these chunks; None once it is not wanted, if that can be noticed."""

    def told(self, error: BaseException) -> str | PsgcError:
        """What the server is told of an error; the error itself when it ends the run, since no worker can do better.

        Raises an error that is not for the server.
        """

    def here(self) -> AbstractContextManager[object]:
        """In which a vector can be worked on."""


class ChunkRunner:
    """Does the chunks of the mailbox, one after another."""

    def __init__(
        self, mailbox: Mailbox, backend: Backend, emulation: Emulation, injector: Injector, trial: Trial
    ) -> None:
        self._mailbox, self._xp = mailbox, backend.xp
        self._emulation, self._injector, self._trial = emulation, injector, trial
        self._is_tried = trial.own is None
        self._late = 0.0  # seconds by which the kernel ended the last sleep too late; the next one is shorter for it

    def run(self, source: Source, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Until the mailbox stops, or it is over; False after an error that ends the run."""
        while (work := self._mailbox.take(is_over, source.joins)) is not None:
            try:
                self._do(source, work)
                if work.iteration == self._trial.iteration and not self._is_tried:
                    self._is_tried = True
                    self._try(source, work)
            except BaseException as error:  # even sys.exit() in a model: without this thread the run would hang
                if isinstance(told := source.told(error), PsgcError):
                    self._mailbox.broken(work, told)
                    return False
                self._mailbox.failed(work, told)
        return True

    def _do(self, source: Source, work: Work) -> None:
        held_out = (0.0, 0.0) if work.is_check else source.prepare(work)
        start = time.monotonic()  # the seconds of a chunk are those of its gradient, from which its worker is judged
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
        """Do the chunk of the trial, at the parameters of `work`."""
        own = self._trial.own
        assert own is not None
        start = time.monotonic()
        self._mailbox.trying(own)
        tried, vector = NO_SKETCH, None
        try:
            if (found := source.compute(work.iteration, [own], work.params, lambda: True)) is not None:
                with source.here():
                    tried, vector = sketch(found.vector, self._xp), found.vector
        except BaseException as error:  # the worker whose chunk it is tells what else is wrong with it
            if isinstance(source.told(error), ModelError):
                raise
        self._mailbox.wait_stale(work, self._emulation.extra(work.iteration, time.monotonic() - start, own))
        self._mailbox.tried(work.iteration, own, tried, vector)
