"""What became of a run: for its summary, and for people."""

from dataclasses import dataclass
from typing import Any, Literal

from psgc.record.progress import epoch_of
from psgc.record.recorder import Recorder
from psgc.record.summary import summarise
from psgc.server.loop import Server
from psgc.training.best import Best
from psgc.training.ending import launched
from psgc.training.prepare import Run


@dataclass(frozen=True)
class RunOutcome:
    """reason: of what was not done; code: the exit code; enough: why the run has ended before its last iteration."""

    status: Literal["done", "failed", "interrupted"] = "done"
    reason: str = ""
    code: int = 0
    too_few_workers: bool = False  # another attempt may succeed
    enough: str = ""


def summary_of(
    server: Server, recorder: Recorder, seconds: float, run: Run, outcome: RunOutcome, best: Best
) -> dict[str, Any]:
    """What summary.json says, but for what is found out after the run. seconds: of the run."""
    coding = run.config.coding
    settings = {
        "workers": run.plan.num_workers,
        "chunks": run.plan.num_chunks,
        "schedule": run.config.schedule,
        "transfer": run.config.transfer,
        "chunks_per_worker": coding.chunks_per_worker if isinstance(coding.assignment, str) else None,
        "batch": run.config.model_dump()["batch"],
        "too_few_workers": outcome.too_few_workers,
        "exit_code": outcome.code,
    }
    settings |= best.summary()
    if outcome.enough:
        settings["ended_early"] = outcome.enough
    if run.epochs is not None:
        settings["epoch"] = epoch_of(len(recorder.tally.seconds), run.iterations, run.epochs)
    if server.replicas is not None:
        settings["replicas"] = server.replicas
    return summarise(recorder, seconds, settings, outcome.status, outcome.reason)


def how_it_ended(run: Run, outcome: RunOutcome, done: int) -> str:
    """How the run ended, and how to resume it if there is a checkpoint and another attempt may succeed.

    Empty when `psgc launch` says it.
    """
    line, kept = f"{outcome.status}: {outcome.reason}", ""
    if done and outcome.status == "failed" and not outcome.too_few_workers:
        kept = f"; {run.config.output} has the state after {done} iteration{'s' if done > 1 else ''}"
    elif launched():
        if outcome.status == "interrupted":
            return ""
    elif done:
        kept = f"; resume with: {run.go_on}"
    return line + kept
