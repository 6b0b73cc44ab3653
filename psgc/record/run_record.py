"""Receives the events of the server on rank 0: chunks, iterations, lost workers. Records and prints them."""

from collections.abc import Callable
from typing import Any

from psgc.record.progress import RunProgress
from psgc.record.recorder import Recorder
from psgc.run_rows import WorkerEvent
from psgc.terminal import say


class RunRecord:
    """The part of the observer (`psgc.server.observer.Observer`) that all runs share.

    recorder: writes the run directory; None: there is no run directory
    progress: the progress bar, which then prints the lines; None: there is no progress
    undo: undoes the step of an iteration, and says what is done (`psgc.run.launched.undo`)
    """

    recorder: Recorder | None
    progress: RunProgress | None
    undo: Callable[[int], str] = staticmethod(lambda iteration: "")

    def __init__(self, recorder: Recorder | None, progress: RunProgress | None) -> None:
        self.progress = progress
        self.record_in(recorder)

    def record_in(self, recorder: Recorder | None) -> None:
        self.recorder = recorder
        # called for each chunk, so it is the recorder's method itself
        self.chunk: Callable[[int, int, int, float, float, int], None] = recorder.chunk if recorder else lambda *_: None

    def iteration(self, row: Any) -> None:
        if self.recorder is not None:
            row.measures = self.recorder.iteration(row)

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None:
        self._happened(WorkerEvent(iteration, worker, host, "lost", reason))

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> None:
        self._happened(WorkerEvent(iteration, worker, host, "wrong", reason))

    def spoiled(self, iteration: int) -> str:
        return self.undo(iteration)

    def returned(self, worker: int, iteration: int) -> None:
        self._happened(WorkerEvent(iteration, worker, "", "returned", ""))

    def _happened(self, event: WorkerEvent) -> None:
        if self.recorder is not None:
            self.recorder.event(event)
        self.tell(event)

    def tell(self, event: WorkerEvent) -> None:
        self.say(event.line)

    def say(self, line: str) -> None:
        if self.progress is not None:
            self.progress.say(line)
        else:
            say(line)

    def failure_text(self, worker: int, text: str) -> str:
        if self.recorder is not None:
            return self.recorder.failure_text(worker, text)
        return next(iter(text.splitlines()), "it failed without a reason")
