"""What rank 0 computes with its own copy of the problem once a run is done."""

import numpy as np

from psgc.backend import Array
from psgc.data import ChunkSource
from psgc.errors import one_line
from psgc.problems import evaluate, quality
from psgc.terminal import say
from psgc.training.batches import rows_taken
from psgc.training.gradient_error import GradientErrorEstimator
from psgc.training.prepare import Run
from psgc.workers.compute import gradient_of


class Evaluator:
    """The figures that only a finished run has."""

    def __init__(self, run: Run) -> None:
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
