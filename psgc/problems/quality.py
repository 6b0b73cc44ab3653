"""Loss and accuracy of parameters over a whole dataset, in one process with its own problem."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from psgc.backend import Backend
from psgc.data import Chunk, ChunkSource, Dataset
from psgc.errors import one_line
from psgc.problems.base import Problem, prepare_evaluation
from psgc.problems.halves import Measure, wrong_measure
from psgc.terminal import say

EVALUATION_ROWS = 10_000  # rows of one evaluation
PROBED_ROWS = 1000  # rows of the check whether the problem keeps state
# Relative difference below which two figures count as equal. A library that sums in another order each time differs by
# 1e-7. Running statistics that change a figure by less than this do no harm.
SAME = 1e-5

Measures = dict[str, Measure]


def measures_of(problem: Problem) -> Measures:
    """The methods of the problem that measure rows: loss, accuracy, both or none."""
    return {what: getattr(problem, what) for what in ("loss", "accuracy") if hasattr(problem, what)}


def part_of(what: str, measure: Measure, params: Any, chunk: Chunk) -> float:
    """The contribution of a chunk to the figure of all chunks: losses add up, an accuracy is a mean over rows."""
    return float(measure(params, chunk)) * (chunk.weight if what == "accuracy" else 1.0)


def quality(
    problem: Problem,
    params: Any,
    dataset: Dataset | None,
    test: Dataset | None,
    dtype: str,
    backend: Backend,
    gradient: Callable[[], object],
    chunks: Callable[[], Iterator[Chunk]],
) -> dict[str, float]:
    """Loss and accuracy of `params`, on the held-out data if there is some.

    If computing a gradient changes the figures of the same rows and parameters, the problem keeps state, which differs
    between workers. Then no figures are returned, and a line says why.

    gradient: makes `problem` compute a gradient
    chunks: the chunks of the training data, for a problem that recomputes its state before an evaluation
    """
    data, name, key = (test, "held-out", "test") if test is not None else (dataset, "training", "training")
    measures = measures_of(problem)
    wanted = [what for what in measures if what == "accuracy" or test is not None]  # the record has the training loss
    if data is None or not wanted:
        return {}

    def disturb() -> None:
        gradient()
        prepare_evaluation(problem, params, chunks())

    try:
        prepare_evaluation(problem, params, chunks())
        probed = ChunkSource(data, max(1, data.num_rows // PROBED_ROWS), dtype, backend).chunk(0)
        change = change_of(problem, params, probed, disturb)
    except Exception as error:  # the user's code or damaged data; the run itself is complete
        say(f"psgc: no {name} figures: {one_line(error)}", error=True)
        return {}
    if change:
        say(f"psgc: no {name} figures: {change}", error=True)
        return {}
    source = ChunkSource(data, -(-data.num_rows // EVALUATION_ROWS), dtype, backend)
    found = {}
    for what in wanted:
        try:
            chunks_of = (source.chunk(i) for i in range(source.num_chunks))
            found[f"{key}_{what}"] = sum(part_of(what, measures[what], params, chunk) for chunk in chunks_of)
        except Exception as error:
            say(f"psgc: no {name} {what}: {one_line(error)}", error=True)
    return found


def _why(problem: Problem) -> str:
    if hasattr(problem, "prepare_evaluation"):
        return (
            " when a gradient and prepare_evaluation were computed in between. The result of prepare_evaluation must "
            "depend on its arguments alone: let it begin from nothing, and draw no random numbers"
        )
    return (
        " when a gradient was computed. The problem keeps state beside its parameters (running statistics of batch "
        "normalisation?), which rank 0 does not have, or it is random; give it a method prepare_evaluation, "
        "normalise without state (by layer or group), or evaluate params.npy yourself"
    )


def change_of(problem: Problem, params: Any, probed: Chunk, disturb: Callable[[], None]) -> str:
    """The figure that `disturb` changes, for the same rows and parameters, and why; empty when it changes none.

    Also a figure that does not agree with the halves of a chunk (`wrong_measure`).
    """
    measures = measures_of(problem)
    before = {what: float(measure(params, probed)) for what, measure in measures.items()}
    disturb()
    for what, measure in measures.items():
        then, now = before[what], float(measure(params, probed))
        same = then == now or (math.isnan(then) and math.isnan(now))
        if not (same or abs(then - now) <= SAME * max(abs(then), abs(now))):
            return f"with the same rows and parameters the {what} went from {then:g} to {now:g}{_why(problem)}"
    return next(filter(None, (wrong_measure(what, of, params, probed) for what, of in measures.items())), "")
