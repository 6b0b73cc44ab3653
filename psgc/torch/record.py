"""The record of a script's run on rank 0: its run directory, progress, and the rows that the script asked for."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from psgc import __version__
from psgc.config import Config
from psgc.disk import write_text
from psgc.plan import Plan
from psgc.record.progress import RunProgress
from psgc.record.recorder import Recorder
from psgc.record.run_record import RunRecord
from psgc.record.summary import lines, settings_of, summarise, takeovers_in
from psgc.run import launched
from psgc.run.claim import Claim
from psgc.run.takeover import Beginning
from psgc.run_rows import IterationRow
from psgc.server.observer import Approximation, IterationRecord
from psgc.terminal import say
from psgc.torch.hand_over import ScriptState


class Record(RunRecord):
    """The observer of a run (`psgc.server.observer.Observer`).

    output: the run directory, or None: then only `psgc launch` is told how the run ended, and there is no progress.
    columns: of the terminal, where nobody else says; rows: those that the script has not been given yet.
    beginning: of the term, where this rank has taken over; its claim is `claim` then. may_lose: another rank may take
    the claim over while this one is cut off. on_lost: is told which worker is lost, and why.

    Raises UserError: another run has the directory, or it cannot be written.
    """

    may_lose = False
    metrics: Mapping[str, float] = MappingProxyType({})  # for the summary, and "epoch"
    on_lost: Callable[[int, str], object] = staticmethod(lambda worker, reason: None)
    make_room: Callable[[], object] = staticmethod(lambda: None)  # removes the oldest checkpoint

    def __init__(
        self,
        output: str | None,
        columns: int | None = None,
        beginning: Beginning | None = None,
        claim: Claim | None = None,
    ) -> None:
        super().__init__(None, None)
        self.rows: deque[IterationRow] = deque()
        self._beginning, self._claim = beginning, claim
        if beginning is None and output is not None:
            self._claim = Claim(Path(output))
        self._summary_in = launched.name_directory(output if beginning is None else None)
        self._output, self._columns = output, columns
        self._began = time.monotonic()

    def begin(self, config: Config, plan: Plan, state: ScriptState | None) -> None:
        """The run begins, or goes on from this state. Raises UserError."""
        self._config, self._plan = config, plan
        resume_at = None if state is None else state.iteration
        if self._claim is not None and self._output is not None:
            self._claim.make_room(resume_at is not None)
            directory, own_chunks = Path(self._output), plan.own_chunks.tolist()
            about = directory, config.to_yaml(), plan.assignment, plan.parts, own_chunks, 100_000
            took = self._beginning.took if self._beginning else None
            self.record_in(Recorder(*about, resume_at, took))
        self._began = time.monotonic() - (0.0 if state is None else state.seconds)

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None:
        super().lost(worker, host, iteration, reason)
        self.on_lost(worker, reason)

    @property
    def seconds(self) -> float:
        """That the run has taken, also before it was resumed."""
        return time.monotonic() - self._began

    def check_claim(self) -> None:
        """Raises RunFailed when another rank writes from now on."""
        if self.may_lose and self._claim is not None:
            self._claim.check()

    # of the script

    def expects(self, steps: int, done: int) -> None:
        """The script will have made so many steps at the end of its loop, and has made so many of them."""
        if self.progress is not None:
            self.progress.expect(steps, done)
        elif self.recorder is not None:
            self.progress = RunProgress(steps, done, self._columns)

    def step(self, loss: float, seconds: float) -> None:
        if self.progress is not None:
            self.progress.update(loss, seconds)

    # of the server

    def iteration(self, row: IterationRecord) -> None:
        self.check_claim()
        super().iteration(row)
        self.rows.append(row)

    def approximate(self, approximation: Approximation) -> None: ...

    def stepped(self, done: int, row: IterationRow, params: object) -> bool:
        return False

    # the end

    def finish(self, params: np.ndarray, status: str, reason: str, code: int, compared: Mapping[str, object]) -> None:
        """Write the summary, and say it. Raises OSError, and as `check_claim`."""
        self.check_claim()
        if self.progress is not None:
            self.progress.close()
        if self.recorder is not None:
            settings = settings_of(self._config, self._plan, code)
            if self.metrics:
                settings["metrics"] = self.metrics
            settings |= compared
            settings |= takeovers_in(self.recorder, self._beginning.lost if self._beginning else None)
            summary = summarise(self.recorder, self.seconds, settings, status, reason)
            goes_on = status == "interrupted" and launched.hands_over(Path(self._output or ""))
            summary = self._written(self.recorder, None if goes_on else params, summary)
            for line in [] if goes_on else [*lines(summary), f"  run directory      {self._output}"]:
                say(line)
        elif self._summary_in is not None:
            summary = {"version": __version__, "status": status, "reason": reason, "exit_code": code}
            write_text(self._summary_in / "summary.json", json.dumps(summary, indent=2) + "\n")
        if self._claim is not None:
            self._claim.release()

    def _written(self, recorder: Recorder, params: np.ndarray | None, summary: dict[str, Any]) -> dict[str, Any]:
        """The summary as it is on the disk, beside the parameters: they matter more than older checkpoints."""
        with suppress(OSError):
            done = recorder.finish(params, summary)
            if not recorder.lacks_room:
                return done
        self.make_room()
        return recorder.finish(params, summary)
