"""How early an iteration could have ended at best, given the speeds its workers turned out to have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgc.coding.arguments import real_array, whole
from psgc.coding.assignment import Assignment, check, from_matrix
from psgc.coding.flow import Network, first_true
from psgc.errors import UserError


def fluid_limit(num_chunks: int, parts: int, seconds_per_chunk: ArrayLike) -> float:
    """N*l / sum_j (1/s_j): the time of a cluster whose work can be shared out without a remainder.

    Args:
        num_chunks: N.
        parts: l, the copies each chunk needs.
        seconds_per_chunk: s_j > 0 of every worker, shape (m,); inf for a worker that failed.

    Returns:
        Seconds; inf when every worker failed.

    Raises:
        UserError: a time is NaN, zero or negative, or a count below 1.

    Example:
        >>> fluid_limit(6, 1, [1.0, 2.0, np.inf])
        4.0
    """
    work = whole("num_chunks", num_chunks) * whole("parts", parts)
    speed = float((1.0 / _seconds(seconds_per_chunk)).sum())
    return work / speed if speed > 0 else np.inf


def clairvoyant_bound(assignment: Assignment, parts: int, seconds_per_chunk: ArrayLike) -> float:
    """T*: the earliest time at which any schedule whatever, even one that knew all speeds, can recover.

    Args:
        assignment: A, shape (N, m).
        parts: l, the copies each chunk needs, from different workers.
        seconds_per_chunk: s_j > 0 of every worker, shape (m,); inf for a worker that failed.

    Returns:
        Seconds, always k*s_j for some worker j and whole number k; inf when the live workers cannot recover.

    Raises:
        UserError: shapes do not match, a time is NaN, zero or negative, a chunk has fewer than l holders.

    Notes:
        By T worker j can have finished at most min(floor(T/s_j), delta_j) chunks. T* is the smallest T at which
        a flow of N*l units exists from the workers (these capacities) through A (one unit an edge) to the
        chunks (capacity l). The search runs over the sorted finishing times k*s_j, k <= delta_j, and counts
        those up to T, so nothing is ever divided and rounded. It starts where the total capacity reaches N*l
        and every chunk has l holders that have finished something, which is usually the answer.

    Example:
        With A complete and l = 1, T* is where the workers together finish N chunks, never before the fluid limit.

        >>> A = np.ones((6, 2))
        >>> clairvoyant_bound(A, 1, [1.0, 2.0]), fluid_limit(6, 1, [1.0, 2.0])
        (4.0, 4.0)
        >>> clairvoyant_bound(A, 1, [1.0, 1.9]) >= fluid_limit(6, 1, [1.0, 1.9])
        True
    """
    assignment = from_matrix(assignment)
    check(assignment, parts)
    seconds = _seconds(seconds_per_chunk)
    if len(seconds) != assignment.shape[1]:
        raise UserError(f"seconds_per_chunk has {len(seconds)} entries, but there are {assignment.shape[1]} workers")
    return _clairvoyant_bound(assignment, int(parts), seconds)


def _clairvoyant_bound(assignment: Assignment, parts: int, seconds: Any) -> float:
    n, m = assignment.shape
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
    start = max(n * parts - 1, _every_chunk_has(parts, assignment, seconds, finished))
    event = start + first_true(lambda later: recovered(min(start + later, alive - 1)))
    return float(finished[event])


def _every_chunk_has(parts: int, assignment: Assignment, seconds: Any, finished: Any) -> int:
    """The event by which every chunk has `parts` holders that have finished at least one chunk."""
    chunk = np.repeat(np.arange(assignment.shape[0]), np.diff(assignment.indptr))
    first = seconds[assignment.indices]
    if parts == 1:  # the same, without sorting
        latest = np.minimum.reduceat(first, assignment.indptr[:-1]).max()
    else:
        first = first[np.lexsort((first, chunk))]  # each chunk's holders, fastest first
        latest = first[assignment.indptr[:-1] + parts - 1].max()
    return int(np.searchsorted(finished, latest))


def _seconds(seconds_per_chunk: ArrayLike) -> Any:
    seconds = real_array("seconds_per_chunk", seconds_per_chunk, 1)
    if not len(seconds) or (seconds <= 0).any():
        raise UserError("seconds_per_chunk must hold a time > 0 for each worker (inf for a failed one)")
    return seconds
