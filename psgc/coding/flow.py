"""The one flow network behind orderings and bounds: workers hand out copies, chunks take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from psgc.coding.assignment import Assignment


class Network:
    """source -> workers -> chunks -> sink, one unit per edge of A.

    Only the workers' capacities change between calls, so the network is laid out once, as CSR rows: source, the m
    workers, the N chunks, sink. Its data are the m capacities, then the ones of A, then the N demands.

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


def first_true(holds: Any) -> int:
    """The smallest k >= 0 with holds(k), for a predicate that stays true: doubling steps, then bisection."""
    step, below, above = 1, -1, 0
    while not holds(above):
        below, above, step = above, above + step, 2 * step
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above
