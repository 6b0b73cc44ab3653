"""The record of a script's run on rank 0: its run directory, progress, and the rows that the script asked for."""

import json
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psgc import __version__
from psgc.config import Config
from psgc.disk import write_text
from psgc.plan import Plan
from psgc.record.progress import RunProgress
from psgc.record.recorder import Recorder
from psgc.record.summary import lines, summarise
from psgc.run_rows import IterationRow
from psgc.server.observer import Approximation, IterationRecord
from psgc.terminal import say
from psgc.torch.hand_over import State
from psgc.training import launched
from psgc.training.claim import Claim


class Record:
    """The observer of a run (`psgc.server.observer.Observer`).

    output: the run directory, or None: then only `psgc launch` is told how the run ended, and there is no progress.
    columns: of the terminal, where nobody else says; rows: those that the script has not been given yet.

    Raises UserError: another run has the directory, or it cannot be written.
    """

    def __init__(self, output: str | None, columns: int | None = None) -> None:
        self.rows: deque[IterationRow] = deque()
        self._claim = Claim(Path(output)) if output is not None else None
        self._summary_in = launched.name_directory(output)
        self._output = output
        self._recorder: Recorder | None = None
        self._columns = columns
        self._progress: RunProgress | None = None
        self._metrics: dict[str, float] = {}
        self._began = time.monotonic()

    def begin(self, config: Config, plan: Plan, state: State | None) -> None:
        """The run begins, or goes on from this state. Raises UserError."""
        self._config, self._plan = config, plan
        resume_at = None if state is None else state.iteration
        if self._claim is not None and self._output is not None:
            self._claim.make_room(resume_at is not None)
            directory, own_chunks = Path(self._output), plan.own_chunks.tolist()
            text = config.to_yaml()
            self._recorder = Recorder(directory, text, plan.assignment, plan.parts, own_chunks, 100_000, resume_at)
        self._began = time.monotonic() - (0.0 if state is None else state.seconds)

    @property
    def seconds(self) -> float:
        """That the run has taken, also before it was resumed."""
        return time.monotonic() - self._began

    # of the script

    def expects(self, steps: int, done: int) -> None:
        """The script will have made so many steps at the end of its loop, and has made so many of them."""
        if self._progress is not None:
            self._progress.expect(steps, done)
        elif self._recorder is not None:
            self._progress = RunProgress(steps, done, self._columns)

    def step(self, loss: float, seconds: float) -> None:
        """It has made one more step."""
        if self._progress is not None:
            self._progress.update(loss, seconds)

    def evaluated(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """After so many epochs these are the means of metrics; the newest ones go into the summary."""
        say(f"epoch {epoch}  " + "  ".join(f"{name} {value:.6g}" for name, value in metrics.items()))
        self._metrics = {"epoch": epoch, **metrics}

    # of the server

    def chunk(self, worker: int, chunk: int, iteration: int, start: float, seconds: float, outcome: int) -> None:
        if self._recorder is not None:
            self._recorder.chunk(worker, chunk, iteration, start, seconds, outcome)

    def iteration(self, row: IterationRecord) -> None:
        if self._recorder is not None:
            self._recorder.iteration(row)
        self.rows.append(row)

    def approximate(self, approximation: Approximation) -> None: ...

    def stepped(self, done: int, row: IterationRow, params: object) -> bool:
        return False

    def stuck(self, line: str) -> None:
        say(line)

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None:
        if self._recorder is not None:
            self._recorder.lost(worker, host, iteration, reason)
        say(f"worker {worker} on {host} lost in iteration {iteration}: {reason}")

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> None:
        if self._recorder is not None:
            self._recorder.wrong(worker, host, iteration, reason)
        say(f"worker {worker} on {host} sent a wrong copy in iteration {iteration}: {reason}")

    def returned(self, worker: int, iteration: int) -> None:
        if self._recorder is not None:
            self._recorder.returned(worker, iteration)
        say(f"worker {worker} is back in iteration {iteration}")

    def failure_text(self, worker: int, text: str) -> str:
        if self._recorder is not None:
            return self._recorder.failure_text(worker, text)
        return next(iter(text.splitlines()), "it failed without a reason")

    # the end

    def finish(
        self, params: np.ndarray, status: str, reason: str, code: int, replicas: dict[str, object] | None
    ) -> None:
        """Write the summary, and say it. Raises OSError."""
        if self._progress is not None:
            self._progress.close()
        settings: dict[str, Any] = {"exit_code": code}
        if self._recorder is not None:
            settings |= {
                "workers": self._plan.num_workers,
                "chunks": self._plan.num_chunks,
                "schedule": self._config.schedule,
                "transfer": self._config.transfer,
                "chunks_per_worker": None,
                "batch": None,
                "too_few_workers": False,
            }
            if self._metrics:
                settings["metrics"] = self._metrics
            if replicas is not None:
                settings["replicas"] = replicas
            summary = self._recorder.finish(params, summarise(self._recorder, self.seconds, settings, status, reason))
            for line in lines(summary):
                say(line)
            say(f"  run directory      {self._output}")
        elif self._summary_in is not None:
            summary = {"version": __version__, "status": status, "reason": reason} | settings
            write_text(self._summary_in / "summary.json", json.dumps(summary, indent=2) + "\n")
        if self._claim is not None:
            self._claim.release()
