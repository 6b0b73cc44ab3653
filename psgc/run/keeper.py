"""The observer of a run: it passes what the server reports to the record, the screen and the checkpoints."""

import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np

from psgc.backend import Array
from psgc.checkpoints import CheckpointStore, Content
from psgc.errors import RunFailed, one_line, raised_at
from psgc.record.loggers import Loggers
from psgc.record.progress import RunProgress
from psgc.record.recorder import Recorder
from psgc.record.run_record import RunRecord
from psgc.run.best import Best, Figures
from psgc.run.gradient_error import GradientErrorEstimator
from psgc.run.inputs import Callback
from psgc.run_rows import COLUMNS, IterationRow, WorkerEvent
from psgc.server.observer import Approximation, IterationRecord
from psgc.terminal import say

LATER = ("bound", "efficiency", "actual_error", "redundant")  # columns that are known once the next iteration goes on
KNOWN = tuple(name for name in COLUMNS if name not in LATER)


@dataclass
class Keeper(RunRecord):
    """The observer of a run (`psgc.server.observer.Observer`).

    every: iterations between two checkpoints, 0 for none before the end.
    snapshot: takes a checkpoint, given how many iterations are done.
    done: how many iterations are done at the start.
    saved: whether there is a checkpoint of them already.
    gradient_error: is told what approximate gradients lack.
    debug: whether to show the tracebacks of gradients that failed.
    callbacks: of a program, are told each step, and say when it is enough; loggers: are told each row.
    best: which parameters are the best.
    enough: why the run ends before its last iteration, empty as long as it does not.
    check_claim: raises RunFailed when another rank has taken over and writes from now on.
    is_wrong: whether the state of rank 0 is wrong, so that it is not kept.
    """

    recorder: Recorder
    progress: RunProgress
    store: CheckpointStore
    every: int
    snapshot: Callable[[int], Content]
    done: int
    saved: InitVar[bool]
    gradient_error: GradientErrorEstimator
    debug: bool = False
    callbacks: Sequence[Callback] = ()
    loggers: Loggers | None = None
    best: Best = field(default_factory=Best)
    enough: str = ""
    check_claim: Callable[[], object] = lambda: None
    is_wrong: bool = False

    def __post_init__(self, saved: bool) -> None:
        super().__init__(self.recorder, self.progress)
        self._shown: set[str] = set()  # tracebacks
        self._raised: set[int] = set()  # workers on which a gradient failed
        self._diverged = False  # the loss of the newest row is not finite
        self._saved = self.done if saved else -1  # the iteration of the newest checkpoint
        self._pending: list[Content] = []  # whose loss is not known yet, the oldest first

    def iteration(self, row: IterationRecord) -> None:
        self.check_claim()
        super().iteration(row)
        self.progress.update(row.loss, row.seconds, self.best.told())
        if self.loggers is not None:
            self.loggers.row(row)
        self._diverged = row.loss is not None and not math.isfinite(row.loss)
        if self.store.no_room:
            self.recorder.drop_timeline()
        while self._pending and self._pending[0].step <= row.iteration and not self._diverged:
            self._write(self._pending.pop(0))
        if self.best.keep is not None and row.params is not None and self.best.is_of(row.iteration):
            self.best.keep(row.params)  # now, since the workers compute meanwhile
        row.params = None

    def approximate(self, approximation: Approximation) -> None:
        self.gradient_error.add(approximation)

    def stepped(self, done: int, row: IterationRecord, params: Array) -> bool:
        self.done = done
        if self.every and done % self.every == 0:
            self._pending.append(self.snapshot(done))
        if row.is_evaluated and not self.best.add(Figures.of(row)):
            row.params = None
        self.enough = self._called_back(row, params) or self.best.enough
        return bool(self.enough)

    def _called_back(self, row: IterationRow, params: Array) -> str:
        """Call the functions of the program. Returns why it is enough, empty when the run goes on."""
        if not self.callbacks:
            return ""
        told = {name: getattr(row, name) for name in KNOWN}
        shown = params.view()
        if hasattr(shown, "setflags"):  # CuPy has no read-only arrays
            shown.setflags(write=False)
        enough = ""
        for function in self.callbacks:
            name = getattr(function, "__name__", type(function).__name__)
            try:
                answer = function(dict(told), shown)
                if isinstance(answer, bool | np.bool_) and answer:
                    enough = enough or f"callback {name} said so"
            except Exception as error:  # of the user's code
                raise RunFailed(f"callback {name} raised {one_line(error)}{raised_at(error)}") from error
        return enough

    def spoiled(self, iteration: int) -> str:
        if (said := super().spoiled(iteration)) and self.best.forget_after(iteration):
            self.recorder.drop_best()
        return said

    def go_back(self, iteration: int) -> None:
        """The steps after this iteration are wrong: only an older checkpoint stays."""
        self.is_wrong = True
        self.done = self.store.give_up_after(iteration, anyway=True) or 0
        if self.best.forget_after(iteration):
            self.recorder.drop_best()

    def tell(self, event: WorkerEvent) -> None:
        if event.event == "lost" and event.worker in self._raised:
            self.progress.hold(event.line)  # a wrong model fails on the others too: then one line at the end says so
        else:
            super().tell(event)

    def failure_text(self, worker: int, text: str) -> str:
        self._raised.add(worker)
        if self.debug and text not in self._shown:
            self._shown.add(text)
            for line in text.rstrip("\n").split("\n"):
                say(line, error=True)
        return super().failure_text(worker, text)

    def save(self) -> None:
        """Write a checkpoint of the state after the last good step, unless there is one.

        A state whose loss is not finite is of no use, and must not take the place of a better one.
        """
        self.check_claim()
        if not (self._diverged or self.is_wrong) and self._saved != self.done:
            self._write(self.snapshot(self.done))

    def _write(self, checkpoint: Content) -> None:
        self.check_claim()
        self.store.write(checkpoint)
        self._saved = checkpoint.step
