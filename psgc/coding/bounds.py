"""How early an iteration could have ended at best, given the speeds its workers turned out to have."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from psgc.coding.assignment import Assignment, check, from_matrix
from psgc.coding.flow import Network, first_true
from psgc.errors import UserError


def clairvoyant_bound(assignment: Assignment, parts: int, seconds_per_chunk: ArrayLike) -> float:
    """T*: the earliest time at which any schedule whatever, even one that knew all speeds, can recover.

    seconds_per_chunk: s_j > 0 of every worker, shape (m,); inf for a worker that failed.

    Returns seconds, always k*s_j for some worker j and whole number k; inf when the live workers cannot recover.
    Raises UserError: shapes do not match, a time is NaN, zero or negative, a chunk has fewer than l holders.

    By T worker j can have finished at most min(floor(T/s_j), delta_j) chunks. T* is the smallest T at which a flow of
    N*l units exists from the workers (these capacities) through A (one unit an edge) to the chunks (capacity l). The
    search runs over the sorted finishing times k*s_j, k <= delta_j, and counts those up to T, so nothing is ever
    divided and rounded. It starts where the total capacity reaches N*l and every chunk has l holders that have finished
    something, which is usually the answer.

    With A complete and l = 1, T* is where the workers together finish N chunks:

    >>> clairvoyant_bound(np.ones((6, 2)), 1, [1.0, 2.0])
    4.0
    """
    assignment = from_matrix(assignment)
    check(assignment, parts)
    n, m = assignment.shape
    seconds = np.asarray(seconds_per_chunk, np.float64)
    if seconds.shape != (m,) or not (seconds > 0).all():
        raise UserError(f"seconds_per_chunk must hold a time > 0 for each of {m} workers (inf for a failed one)")
    load = np.bincount(assignment.indices, minlength=m)
    worker = np.repeat(np.arange(m), load)
    k = np.arange(1, len(worker) + 1) - np.repeat(np.cumsum(load) - load, load)
    finished = k * seconds[worker]
    order = np.argsort(finished, kind="stable")
    finished, worker = finished[order], worker[order]
    alive = int(np.searchsorted(finished, np.inf))  # events after these never happen
    network = Network(assignment, parts)

    def recovered(event: int) -> bool:
        return network.feasible(np.bincount(worker[: event + 1], minlength=m))

    if alive < n * parts or (alive < len(finished) and not recovered(alive - 1)):
        return np.inf
    chunk, pace = np.repeat(np.arange(n), np.diff(assignment.indptr)), seconds[assignment.indices]
    pace = pace[np.lexsort((pace, chunk))]  # of each chunk's holders, the fastest first
    slowest_needed = pace[assignment.indptr[:-1] + parts - 1].max()
    start = max(n * parts - 1, int(np.searchsorted(finished, slowest_needed)))
    event = start + first_true(lambda later: recovered(min(start + later, alive - 1)))
    return float(finished[event])
