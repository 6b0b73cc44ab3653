"""The record of a script's run on rank 0: the run directory, progress, and the rows for the script's functions."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from psgc import __version__
from psgc.config import Config
from psgc.disk import write_text
from psgc.plan import Plan
from psgc.record.csv_files import ranks_before
from psgc.record.progress import RunProgress
from psgc.record.recorder import Recorder
from psgc.record.run_record import RunRecord
from psgc.record.summary import lines, settings_of, summarise, takeovers_in
from psgc.run import launched
from psgc.run.claim import Claim
from psgc.run.ending import RunOutcome
from psgc.run.resume import is_done
from psgc.run.takeover import Beginning
from psgc.run_rows import EvaluationRow, IterationRow
from psgc.server.observer import Approximation, IterationRecord
from psgc.terminal import say
from psgc.torch.hand_over import ScriptState


class Record(RunRecord):
    """The observer of a run (`psgc.server.observer.Observer`).

    output: the run directory; None: then only `psgc launch` gets the result, and there is no progress
    columns: width of the terminal, if `psgc launch` has not set it
    beginning: the beginning of the term, after a takeover
    claim: the claim of the run directory, after a takeover

    rows: rows that the script has not got yet
    was_done: whether the run was done before
    ranks_before: as of `psgc.record.csv_files`
    may_lose: another rank may take the claim over while this one is cut off
    metrics: the newest means of metrics, and "epoch", for the summary
    make_room: removes the oldest checkpoint

    Raises UserError: another run has the directory, or it cannot be written.
    """

    may_lose = was_done = False
    ranks_before = 0
    metrics: Mapping[str, float] = MappingProxyType({})
    make_room: Callable[[], object] = staticmethod(lambda: None)

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
        if output is None and beginning is None and self._summary_in is not None:
            # of an earlier run of the script; who takes over in this one would take it for the end of the run
            (self._summary_in / "summary.json").unlink(missing_ok=True)
        self.output, self._columns = output, columns
        self._began = time.monotonic()

    def begin(self, config: Config, plan: Plan, state: ScriptState | None) -> None:
        """Begin the record, or continue it from this state. Raises UserError."""
        self._config, self._plan = config, plan
        resume_at = None if state is None else state.iteration
        if state is not None and self._beginning is None:
            directory = Path(self.output or "")
            self.was_done = is_done(directory)
            self.ranks_before = ranks_before(directory, self.was_done)
        if self._claim is not None and self.output is not None:
            self._claim.make_room(resume_at is not None)
            directory, own_chunks = Path(self.output), plan.own_chunks.tolist()
            about = directory, config.to_yaml(), plan.assignment, plan.parts, own_chunks, 100_000
            took = self._beginning.took if self._beginning else None
            is_restored = self.ranks_before > 0 and not self.was_done
            self.record_in(Recorder(*about, resume_at, took, is_restored))
        self._began = time.monotonic() - (0.0 if state is None else state.seconds)

    @property
    def seconds(self) -> float:
        """The time that the run has taken, also before it was resumed."""
        return time.monotonic() - self._began

    def check_claim(self) -> None:
        """Raises RunFailed when another rank has taken over the run directory."""
        if self.may_lose and self._claim is not None:
            self._claim.check()

    # called by the script

    def expects(self, steps: int, done: int) -> None:
        """Show progress. steps: number of steps at the end of the script's loop; done: number of those made."""
        if self.progress is not None:
            self.progress.expect(steps, done)
        elif self.recorder is not None:
            self.progress = RunProgress(steps, done, self._columns)

    def step(self, loss: float, seconds: float) -> None:
        if self.progress is not None:
            self.progress.update(loss, seconds)

    def evaluated(self, rows: Sequence[EvaluationRow]) -> None:
        if self.recorder is not None:
            self.recorder.evaluated(rows)

    # called by the server

    def iteration(self, row: IterationRecord) -> None:
        self.check_claim()
        super().iteration(row)
        self.rows.append(row)

    def approximate(self, approximation: Approximation) -> None: ...

    def stepped(self, done: int, row: IterationRow, params: object) -> bool:
        return False

    # the end

    def finish(self, params: np.ndarray, outcome: RunOutcome, compared: Mapping[str, object]) -> None:
        """Write the summary and print it. Raises OSError, and as `check_claim`."""
        status, reason, code = outcome.status, outcome.reason, outcome.code
        self.check_claim()
        if self.progress is not None:
            self.progress.close()
        if self.recorder is not None:
            settings = settings_of(self._config, self._plan, code, too_few_workers=outcome.too_few_workers)
            if self.metrics:
                settings["metrics"] = self.metrics
            settings |= compared
            number, lost = (self._beginning.number, self._beginning.lost) if self._beginning else (0, 0.0)
            settings |= takeovers_in(self.recorder, number, lost)
            summary = summarise(self.recorder, self.seconds, settings, status, reason)
            goes_on = status == "interrupted" and launched.hands_over(Path(self.output or ""))
            summary |= {"starts_again": True} if goes_on else {}
            summary = self._written(self.recorder, None if goes_on else params, summary)
            for line in [] if goes_on else [*lines(summary), f"  run directory      {self.output}"]:
                say(line)
        elif self._summary_in is not None:
            summary = {"version": __version__, "status": status, "reason": reason, "exit_code": code}
            write_text(self._summary_in / "summary.json", json.dumps(summary, indent=2) + "\n")

    def release(self) -> None:
        """Give up the run directory. Called by the script, after the summary and its last checkpoint are written."""
        if self._claim is not None:
            self._claim.release()

    def _written(self, recorder: Recorder, params: np.ndarray | None, summary: dict[str, Any]) -> dict[str, Any]:
        """Write parameters and summary, if need be in the place of an old checkpoint. Returns the summary."""
        with suppress(OSError):
            done = recorder.finish(params, summary)
            if not recorder.lacks_room:
                return done
        self.make_room()
        return recorder.finish(params, summary)
