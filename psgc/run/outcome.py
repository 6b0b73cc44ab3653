"""What became of a run: for its summary, and for people."""

from typing import Any

import numpy as np

from psgc.backend import Array
from psgc.data import ChunkSource
from psgc.errors import one_line
from psgc.problems import evaluate, quality
from psgc.record.progress import epoch_of
from psgc.record.recorder import Recorder
from psgc.record.summary import settings_of, summarise, takeovers_in
from psgc.run.best import Best
from psgc.run.ending import RunOutcome
from psgc.run.gradient_error import GradientErrorEstimator
from psgc.run.inputs import rows_taken
from psgc.run.launched import is_launched
from psgc.run.prepare import PreparedRun
from psgc.server.loop import Server
from psgc.terminal import say
from psgc.workers.compute import gradient_of


def summary_of(
    server: Server, recorder: Recorder, seconds: float, run: PreparedRun, outcome: RunOutcome, best: Best
) -> dict[str, Any]:
    """What summary.json says, but for what is found out after the run. seconds: of the run."""
    coding = run.config.coding
    settings = settings_of(
        run.config,
        run.plan,
        outcome.code,
        chunks_per_worker=coding.chunks_per_worker if isinstance(coding.assignment, str) else None,
        batch=run.config.model_dump()["batch"],
        too_few_workers=outcome.too_few_workers,
    )
    settings |= best.summary()
    if outcome.enough:
        settings["ended_early"] = outcome.enough
    if run.epochs is not None:
        settings["epoch"] = epoch_of(len(recorder.tally.seconds), run.iterations, run.epochs)
    number, lost = (run.beginning.number, run.beginning.lost) if run.beginning else (0, 0.0)
    settings |= takeovers_in(recorder, number, lost)
    settings |= server.compared
    return summarise(recorder, seconds, settings, outcome.status, outcome.reason)


def how_it_ended(run: PreparedRun, outcome: RunOutcome, done: int) -> str:
    """How the run ended, and how to resume it if there is a checkpoint and another attempt may succeed."""
    line, kept = f"{outcome.status}: {outcome.reason}", ""
    if done and outcome.status == "failed" and not outcome.too_few_workers:
        kept = f"; {run.config.output} has the state after {done} iteration{'s' if done > 1 else ''}"
    elif done and not is_launched():
        kept = f"; resume with: {run.go_on}"
    return line + kept


class FinalFigures:
    """What rank 0 computes with its own copy of the problem once a run is done: the figures that only it has."""

    def __init__(self, run: PreparedRun) -> None:
        self._run = run
        self._chunks = ChunkSource(run.dataset, run.plan.num_chunks, run.config.dtype, run.backend)
        self._evaluate = evaluate(run.problem)
        self._rows = rows_taken(run.config, self._chunks.num_rows)

    def _gradient(self, params: Array, iteration: int, chunk: int) -> Array:
        seed = self._run.config.seed
        return gradient_of(self._evaluate, self._chunks, chunk, params, iteration, seed, self._rows)[1]

    def actual_errors(self, gradient_error: GradientErrorEstimator, seconds: float) -> dict[int, float]:
        """The relative error of approximate gradients, by iteration. seconds: what the run took."""
        backend, dtype = self._run.backend, self._run.config.dtype

        def gradient(params: np.ndarray, iteration: int, chunk: int) -> np.ndarray:
            found = self._gradient(backend.asarray(params), iteration, chunk)
            return backend.to_host(backend.asarray(found)).astype(dtype)

        try:
            return gradient_error.actual_errors(gradient, self._run.plan.coding_matrix, seconds)
        except Exception as error:  # the user's code or damaged data; the run itself is done and well
            say(f"psgc: no actual errors: {one_line(error)}", error=True)
            return {}

    def quality(self, params: Array) -> dict[str, float]:
        """Loss and accuracy of `params` (`psgc.problems.quality`)."""
        run, config = self._run, self._run.config
        return quality(
            run.problem,
            params,
            run.dataset,
            run.test,
            config.dtype,
            run.backend,
            lambda: self._gradient(params, run.iterations, 0),
            self._chunks.each,
        )
