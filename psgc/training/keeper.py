"""What the server sees of a run, passed on to who keeps it: the record, the screen, the checkpoints."""

import math
from collections.abc import Callable

from psgc.reporting.progress import RunProgress
from psgc.reporting.records import Recorder
from psgc.server.checkpoint import Checkpoint, CheckpointWriter
from psgc.server.observer import Approximation, IterationRecord
from psgc.terminal import say
from psgc.training.gradient_error import GradientErrorEstimator


class Keeper:
    """The observer of a run (`psgc.server.observer.Observer`).

    every: iterations between two checkpoints, 0 for none before the end; snapshot: the checkpoint of now, given how
    many iterations are done; done: how many are at the start; saved: whether there is a checkpoint of them already;
    gradient_error: what the approximate gradients lack; debug: whether to show the tracebacks of gradients that failed.
    """

    def __init__(
        self,
        recorder: Recorder,
        progress: RunProgress,
        writer: CheckpointWriter,
        every: int,
        snapshot: Callable[[int], Checkpoint],
        done: int,
        saved: bool,
        gradient_error: GradientErrorEstimator,
        debug: bool = False,
    ) -> None:
        self.chunk: Callable[[int, int, int, float, float, int], None] = recorder.chunk
        self._recorder = recorder
        self._progress = progress
        self._writer = writer
        self._every = every
        self._snapshot = snapshot
        self._gradient_error = gradient_error
        self._debug = debug
        self._shown: set[str] = set()  # tracebacks
        self._raised: set[int] = set()  # workers on which a gradient failed
        self.done = done
        self._diverged = False  # the loss of the newest row is not finite
        self._saved = done if saved else -1  # the iteration of the newest checkpoint
        self._pending: list[Checkpoint] = []  # whose loss is not known yet, the oldest first

    def iteration(self, row: IterationRecord) -> None:
        self._recorder.iteration(row)
        self._progress.update(row.loss, row.seconds)
        self._diverged = row.loss is not None and not math.isfinite(row.loss)
        if self._writer.no_room:
            self._recorder.drop_timeline()
        while self._pending and self._pending[0].iteration <= row.iteration and not self._diverged:
            self._write(self._pending.pop(0))

    def approximate(self, approximation: Approximation) -> None:
        self._gradient_error.add(approximation)

    def stepped(self, done: int) -> None:
        self.done = done
        if self._every and done % self._every == 0:
            self._pending.append(self._snapshot(done))

    def stuck(self, line: str) -> None:
        self._progress.say(line)

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None:
        line = self._recorder.lost(worker, host, iteration, reason)
        if worker in self._raised:  # if it was the model, the others follow, and one line at the end says it all
            self._progress.hold(line)
        else:
            self._progress.say(line)

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> None:
        self._progress.say(self._recorder.wrong(worker, host, iteration, reason))

    def returned(self, worker: int, iteration: int) -> None:
        self._progress.say(self._recorder.returned(worker, iteration))

    def failure_text(self, worker: int, text: str) -> str:
        self._raised.add(worker)
        if self._debug and text not in self._shown:
            self._shown.add(text)
            for line in text.rstrip("\n").split("\n"):
                say(line, error=True)
        return self._recorder.failure_text(worker, text)

    def save_last(self) -> None:
        """Have the state after the last good step written, unless it has been.

        Parameters whose loss is not finite are nothing to go on from: they must not take the place of better ones.
        """
        if not self._diverged and self._saved != self.done:
            self._write(self._snapshot(self.done))

    def _write(self, checkpoint: Checkpoint) -> None:
        self._writer.write(checkpoint)
        self._saved = checkpoint.iteration
