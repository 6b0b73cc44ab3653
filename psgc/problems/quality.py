"""How good parameters are: loss and accuracy over a whole dataset, on one process with a problem of its own."""

import math
from collections.abc import Callable
from typing import Any

from psgc.backend import Backend
from psgc.data import Chunk, ChunkSource, Dataset
from psgc.errors import one_line
from psgc.problems.base import Problem
from psgc.terminal import say

EVALUATION_ROWS = 10_000  # rows that are looked at together
PROBED_ROWS = 1000  # rows by which state is found
# Relative difference below which two figures are the same: a library that adds up in another order each time differs by
# 1e-7, and running statistics that move a figure by less than this are right as they are.
SAME = 1e-5

Measure = Callable[[Any, Chunk], float]
Measures = dict[str, Measure]


def quality(
    problem: Problem,
    params: Any,
    dataset: Dataset | None,
    test: Dataset | None,
    dtype: str,
    backend: Backend,
    gradient: Callable[[], object],
) -> dict[str, float]:
    """Loss and accuracy of `params`, on the held-out data where there is some.

    gradient: makes `problem` compute a gradient. If that changes the figures of the same rows and parameters, the
    problem keeps state of its own. Workers have their own copies of such state, so figures from this process would be
    wrong: none are returned, and a line says why.
    """
    data, name, key = (test, "held-out", "test") if test is not None else (dataset, "training", "training")
    measures: Measures = {what: getattr(problem, what) for what in ("loss", "accuracy") if hasattr(problem, what)}
    wanted = [what for what in measures if what == "accuracy" or test is not None]  # the record has the training loss
    if data is None or not wanted:
        return {}
    try:
        probed = ChunkSource(data, max(1, data.num_rows // PROBED_ROWS), dtype, backend).chunk(0)
        change = _change(measures, params, probed, gradient)
    except Exception as error:  # the user's code or damaged data; the run itself is done and well
        say(f"psgc: no {name} figures: {one_line(error)}", error=True)
        return {}
    if change:
        say(
            f"psgc: no {name} figures: with the same rows and parameters {change} when a gradient was computed. The "
            "problem keeps state beside its parameters (running statistics of batch normalisation?), of which rank 0 "
            "has seen none, or it is random; normalise without state (by layer or group), or evaluate params.npy "
            "yourself",
            error=True,
        )
        return {}
    source = ChunkSource(data, -(-data.num_rows // EVALUATION_ROWS), dtype, backend)
    found = {}
    for what in wanted:
        try:
            found[f"{key}_{what}"] = _over_all(what, measures[what], params, source)
        except Exception as error:
            say(f"psgc: no {name} {what}: {one_line(error)}", error=True)
    return found


def _over_all(what: str, measure: Measure, params: Any, source: ChunkSource) -> float:
    """A loss adds up over the chunks, an accuracy is a mean over the rows."""
    chunks = map(source.chunk, range(source.num_chunks))
    return float(sum(float(measure(params, c)) * (c.weight if what == "accuracy" else 1.0) for c in chunks))


def _change(measures: Measures, params: Any, probed: Chunk, gradient: Callable[[], object]) -> str:
    """Which figure of the same rows and parameters is another one after a gradient; empty when none is."""
    before = {what: float(measure(params, probed)) for what, measure in measures.items()}
    gradient()
    for what, measure in measures.items():
        then, now = before[what], float(measure(params, probed))
        same = then == now or (math.isnan(then) and math.isnan(now))
        if not (same or abs(then - now) <= SAME * max(abs(then), abs(now))):
            return f"the {what} went from {then:g} to {now:g}"
    return ""
