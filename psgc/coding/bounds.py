"""Flows from workers, which hand out copies, to chunks, which take them: behind orderings, and the bound T*."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from psgc.coding.assignment import Assignment, check, from_matrix
from psgc.errors import UserError


def clairvoyant_bound(
    assignment: Assignment, parts: int, seconds_per_chunk: ArrayLike, pass_cost: float = 0.0
) -> float:
    """T*: the earliest time at which any schedule whatever, even one that knew all speeds, can recover.

    seconds_per_chunk: s_j > 0 of every worker, shape (m,); inf for a worker that failed. pass_cost: a, what a pass over
    one or several chunks costs besides these, in chunks: no schedule takes less than one pass for each worker.

    Returns seconds, always (a + k)*s_j for some worker j and whole number k; inf when the live workers cannot recover.
    Raises UserError: shapes do not match, a time is NaN, zero or negative, a chunk has fewer than l holders.

    By T worker j has finished at most min(floor(T/s_j - a), delta_j) chunks, which it has done in one pass. T* is the
    smallest T at which a flow of N*l units exists from the workers (these capacities) through A (one unit an edge) to
    the chunks (capacity l). The search runs over the sorted finishing times (a + k)*s_j, k <= delta_j, so nothing is
    divided and rounded. It starts where the capacities reach N*l and l holders of each chunk have finished something,
    which is usually the answer.

    With A complete and l = 1, T* is where the workers together finish N chunks:

    >>> clairvoyant_bound(np.ones((6, 2)), 1, [1.0, 2.0])
    4.0
    >>> clairvoyant_bound(np.ones((6, 2)), 1, [1.0, 2.0], pass_cost=0.5)
    5.0
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
    finished = (pass_cost + k) * seconds[worker]
    order = np.argsort(finished, kind="stable")
    finished, worker = finished[order], worker[order]
    alive = int(np.searchsorted(finished, np.inf))  # events after these never happen
    network = FlowNetwork(assignment, parts)

    def recovered(event: int) -> bool:
        return network.feasible(np.bincount(worker[: event + 1], minlength=m))

    if alive < n * parts or (alive < len(finished) and not recovered(alive - 1)):
        return np.inf
    chunk, pace = np.repeat(np.arange(n), np.diff(assignment.indptr)), seconds[assignment.indices]
    pace = pace[np.lexsort((pace, chunk))]  # of each chunk's holders, the fastest first
    slowest_needed = (pass_cost + 1) * pace[assignment.indptr[:-1] + parts - 1].max()
    start = max(n * parts - 1, int(np.searchsorted(finished, slowest_needed)))
    event = start + first_true(lambda later: recovered(min(start + later, alive - 1)))
    return float(finished[event])


class FlowNetwork:
    """source -> workers -> chunks -> sink, one unit per edge of A.

    Only the workers' capacities change between calls, so it is laid out once, as CSR rows: source, m workers, N chunks,
    sink. Its data are the m capacities, the ones of A, the N demands.

    demand: copies that each chunk takes, a number or shape (N,).
    """

    def __init__(self, assignment: Assignment, demand: Any) -> None:
        n, m = assignment.shape
        held = assignment.T.tocsr()  # row j: the chunks of worker j
        columns = (np.arange(1, m + 1), held.indices + (m + 1), np.full(n, n + m + 1))
        row_lengths = (m, *np.diff(held.indptr), *np.ones(n, int), 0)
        data = np.ones(m + held.nnz + n, np.int32)
        data[m + held.nnz :] = demand
        indptr = np.concatenate(([0], np.cumsum(row_lengths)))
        size = n + m + 2
        self._graph = csr_array(
            (data, np.concatenate(columns).astype(np.int32), indptr.astype(np.int32)), shape=(size, size)
        )
        self._num_chunks, self._num_workers = n, m
        self._demand = int(data[m + held.nnz :].sum())

    def _flow(self, capacity: Any) -> Any:
        self._graph.data[: self._num_workers] = capacity
        return maximum_flow(self._graph, 0, self._num_chunks + self._num_workers + 1)

    def feasible(self, capacity: Any) -> bool:
        """Whether workers doing at most `capacity` chunks each (a number or shape (m,)) meet the demand."""
        return bool(self._flow(capacity).flow_value == self._demand)

    def smallest_capacity(self) -> int:
        """The smallest capacity, the same for all workers, that meets the demand (which must be possible)."""
        least = -(-self._demand // self._num_workers)
        return least + first_true(lambda extra: self.feasible(least + extra))

    def chosen(self, capacity: Any) -> Assignment:
        """The copies that a maximum flow under `capacity` uses, as a sub-assignment of A."""
        m, n = self._num_workers, self._num_chunks
        used = self._flow(capacity).flow[1 : m + 1, m + 1 : m + n + 1]
        return csr_array((used > 0).T.astype(np.int8))


def first_true(holds: Callable[[int], bool]) -> int:
    """The smallest k >= 0 with holds(k), for a predicate that stays true: doubling, then bisection."""
    above = 0
    while not holds(above):
        above = 2 * above + 1
    return bisect_left(range(above), True, lo=(above + 1) // 2, key=holds)
