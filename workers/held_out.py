"""Held-out rows: a worker evaluates a part of them with each of its chunks."""

from collections.abc import Callable
from math import nan

from psgc.backend import Array
from psgc.data import ChunkSource
from psgc.errors import ModelError
from psgc.iteration import is_evaluated
from psgc.problems import Problem, change_of, measures_of, part_of, prepare_evaluation


class HeldOut:
    """Evaluates part c of the held-out rows on the worker that does chunk c.

    rows: the held-out rows, cut into as many parts as there are chunks, or fewer
    chunks: the training data
    every: iterations from one evaluation to the next
    """

    def __init__(self, problem: Problem, rows: ChunkSource, chunks: ChunkSource, every: int) -> None:
        self._problem, self._rows, self._chunks, self._every = problem, rows, chunks, every
        self._measures = measures_of(problem)
        self._is_checked = False
        # A problem with a `prepare` is prepared once for all parts, since a gradient in between may change its state.
        self._prepares = hasattr(problem, "prepare_evaluation")
        self._prepared: tuple[int, list[tuple[float, float]]] = (-1, [])  # iteration, and the figures of all parts

    def is_due(self, iteration: int) -> bool:
        """Whether chunks of this iteration come with a part of the held-out rows."""
        return is_evaluated(iteration, self._every)

    def evaluate(
        self, iteration: int, chunk: int, params: Array, gradient: Callable[[], object]
    ) -> tuple[float, float]:
        """The figures of the part that belongs to `chunk`, at `params`; (0, 0) if there is no such part.

        gradient: has the problem compute a gradient

        Raises ModelError if the gradient changes the figures, since the other workers do not have that state.
        """
        if chunk >= self._rows.num_chunks:
            return 0.0, 0.0
        if not self._is_checked:
            self._check(chunk, params, gradient)
            self._is_checked = True
        if not self._prepares:
            return self._figures(chunk, params)
        if self._prepared[0] != iteration:
            prepare_evaluation(self._problem, params, self._chunks.each())
            parts = [self._figures(part, params) for part in range(self._rows.num_chunks)]
            self._prepared = iteration, parts
        return self._prepared[1][chunk]

    def _figures(self, part: int, params: Array) -> tuple[float, float]:
        rows = self._rows.chunk(part)
        loss, accuracy = (
            part_of(what, self._measures[what], params, rows) if what in self._measures else nan
            for what in ("loss", "accuracy")
        )
        return loss, accuracy

    def _check(self, part: int, params: Array, gradient: Callable[[], object]) -> None:
        def disturb() -> None:
            gradient()
            prepare_evaluation(self._problem, params, self._chunks.each())

        prepare_evaluation(self._problem, params, self._chunks.each())
        if change := change_of(self._problem, params, self._rows.chunk(part), disturb):
            raise ModelError(f"no held-out figures (evaluate): {change}")
