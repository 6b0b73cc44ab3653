"""How good parameters are: loss and accuracy over a whole dataset."""

from typing import Any

from psgc.backend import Backend
from psgc.data import ChunkSource, Dataset
from psgc.errors import one_line
from psgc.problems.base import Problem
from psgc.terminal import say

EVALUATION_ROWS = 10_000  # rows that are looked at together


def quality(
    problem: Problem, params: Any, dataset: Dataset | None, test: Dataset | None, dtype: str, backend: Backend
) -> dict[str, float]:
    """Loss and accuracy of `params`, on the held-out data where there is some."""
    data, name = (test, "test") if test is not None else (dataset, "training")
    if data is None:
        return {}
    pieces = -(-data.num_rows // EVALUATION_ROWS)
    source = ChunkSource(data, pieces, dtype, backend)
    found = {}
    for what in ("loss", "accuracy"):
        measure = getattr(problem, what, None)
        if measure is not None and not (what == "loss" and name == "training"):
            try:
                weights = [source.chunk(i).weight if what == "accuracy" else 1.0 for i in range(pieces)]
                value = float(sum(w * float(measure(params, source.chunk(i))) for i, w in enumerate(weights)))
            except Exception as error:  # the user's code or damaged data; the run itself is done and well
                say(f"psgc: no {name} {what}: {one_line(error)}", error=True)
            else:
                found[f"{name}_{what}"] = value
    return found
