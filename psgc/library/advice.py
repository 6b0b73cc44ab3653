"""The commands that find good settings, as functions that return plain data."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from psgc.disk import expanded
from psgc.library.arguments import overrides_of


def simulate(path: str | os.PathLike[str], set: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows that `psgc simulate` prints for the YAML file `path`, as its `--json` writes them. Raises UserError.

    set: settings to change, such as {"trials": 1000}

    Example: `{row["schedule"]: row["mean_time"] for row in psgc.simulate("sim.yaml")}`.
    """
    from psgc.simulation import experiment, programs
    from psgc.simulation.settings import NetworkSettings, load

    settings = load(os.fspath(path), overrides_of(set))
    if isinstance(settings, NetworkSettings):
        return [asdict(row) for row in programs.run(settings)]
    return [asdict(row) for row in experiment.run(settings)]


def replay(
    path: str | os.PathLike[str],
    *,
    replication: Iterable[int] | None = None,
    chunks_per_worker: Iterable[int] | None = None,
    chunks: Iterable[int] | None = None,
    parts: Iterable[int] | None = None,
    schedule: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Predict the times of the run in the directory `path` with other settings, as `psgc replay --json` writes them.

    replication, chunks_per_worker, parts, schedule: values to try; by default some around the run's own
    chunks: of a run with psgc.torch, in the place of chunks_per_worker

    Returns `rows` (a dict for each combination, the quickest first; one of them is `recommended`), `reason` and `yaml`
    (the advice, in words and as settings), and `run`, `workers` and `iterations` (the number of replayed iterations).
    Raises UserError.

    Example: `psgc.replay("runs/quickstart", replication=[2, 3], schedule=["dynamic"])["rows"][0]["seconds"]`.
    """
    from psgc.simulation.advice import predict, read_grid

    coding = {"replication": replication, "chunks_per_worker": chunks_per_worker, "chunks": chunks, "parts": parts}
    wanted = coding | {"schedule": schedule}
    texts = {name: None if values is None else ",".join(map(str, values)) for name, values in wanted.items()}
    return predict(expanded(os.fspath(path)), read_grid(texts)).plain()


def order(assignment: Any, parts: int | None = None) -> dict[str, Any]:
    """Order the queues of an assignment, as `psgc order` does.

    assignment: a 0/1 matrix (chunks, workers), dense or sparse
    parts: the number of parts; by default all possible numbers together

    Returns `ordering`, (chunks, workers): the position of each chunk in each worker's queue, from 1, and 0 for chunks
    that the worker does not hold. And `rows`, a dict for each number of parts: `parts`; `q_max`, the largest total
    number of chunks that are computed before the gradient is known; `bound`, a lower bound for all orderings; and
    `gap`, the difference. Raises UserError.

    Example: `psgc.order(psgc.coding.cyclic(5, 5, 3), parts=2)["rows"][0]["gap"]`.
    """
    from psgc import coding

    ordering, rows = ordered(coding.from_matrix(assignment), parts)
    return {"ordering": ordering.toarray(), "rows": rows}


def ordered(assignment: Any, parts: int | None = None) -> tuple[Any, list[dict[str, int]]]:
    """The ordering, sparse, and the rows of `order`, for a sparse assignment. Raises UserError."""
    import numpy as np

    from psgc import coding

    ordering = coding.ordering(assignment, parts)
    possible = range(1, int(np.diff(assignment.indptr).min()) + 1) if parts is None else [parts]
    rows = []
    for copies in possible:
        q_max, bound = coding.worst_case(assignment, ordering, copies), coding.worst_case_bound(assignment, copies)
        rows.append({"parts": copies, "q_max": q_max, "bound": bound, "gap": q_max - bound})
    return ordering, rows
