"""In which order a worker does its chunks: the ordering O of an assignment A.

O is a `scipy.sparse.csr_array` of int32 with the sparsity of A: O[i, j] = position of chunk i in worker j's queue,
counted from 1.

Orderings are made of *rounds*: each gives every chunk one of its holders, as evenly as A allows. Round 1 is the own
share where every worker holds it. For a square regular A the rounds are perfect matchings, each chunk has each position
1 .. delta at one worker, and this is the paper's ordering. Other orderings are improved by a local search
(`psgc.coding.ordering_search`).
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching

from psgc.coding.assignment import Assignment, check, from_matrix
from psgc.coding.bounds import FlowNetwork
from psgc.coding.ordering_search import improve
from psgc.coding.worst_case_bound import least_undone_bound
from psgc.errors import UserError

FEW_HOLDERS = 8  # of a chunk, up to which one of two algorithms for matchings is the faster
_LEVELS = 8  # as many l are looked at when all matter

Ordering: TypeAlias = "csr_array[np.int32, tuple[int, int]]"


def ordering(assignment: Assignment, parts: int | None = None) -> Ordering:
    """Order any assignment, shape (N, m): own share first, then the backups round by round.

    parts: l, when only Q_max for this l matters; by default all l that A allows matter.
    Raises UserError: `assignment` is not one, or a chunk has fewer than l holders.

    The first l rounds recover everything when no worker is slow, and the backups of one slow worker start on different
    chunks. Round 1 is done in natural order. In later rounds a worker first takes what is last in the queue of its
    round-1 holder, which a slow holder is least likely to have done.

    That is all with equal row and column sums, and N = m or an own share held by all. Otherwise exchanges within the
    queues lower Q_max: within rounds if row and column sums are equal and m divides N, else all but the own share.

    Source: arXiv:2405.19509, the ordering of square regular assignments. There a chunk has each position once, so Q_max
    is N*delta - (delta-l+1)(delta-l+2)/2:

    >>> from psgc.coding.assignment import cyclic
    >>> A = cyclic(5, 5, 3)
    >>> O = ordering(A)
    >>> sorted(O[[0], :].data.tolist())
    [1, 2, 3]
    >>> worst_case(A, O, parts=2) == 5 * 3 - (3 - 2 + 1) * (3 - 2 + 2) // 2
    True
    """
    assignment = from_matrix(assignment)
    check(assignment, 1 if parts is None else parts)
    n, m = assignment.shape
    chunk, worker = assignment.nonzero()
    round_ = _rounds(chunk, worker, n, m)
    first = round_ == 1  # exactly one edge a chunk, so worker[first] is indexed by chunk
    place = _places(worker[first], np.arange(n))
    lateness = np.where(first, place[chunk], -place[chunk])
    positions = _places(worker, round_, lateness, chunk)

    gamma, load = np.diff(assignment.indptr), np.bincount(worker, minlength=m)
    regular = n % m == 0 and (gamma == gamma[0]).all() and (load == load[0]).all()
    own = _own(chunk, worker, n, m)
    if regular and (n == m or own.any()):
        return _with_positions(assignment, positions)
    # Edges with the same number may be exchanged.
    queue = worker * (int(round_.max()) + 1) + round_ if regular else worker.astype(np.int64)
    queue[own] = m + chunk[own]
    levels = [parts] if parts else np.unique(np.linspace(1, gamma.min(), _LEVELS).astype(int)).tolist()
    aims = {copies: least_undone_bound(assignment, copies) for copies in levels}
    undone = improve(chunk, queue, load[worker] - positions + 1, aims)
    return _with_positions(assignment, load[worker] - undone + 1)


def queues(ordering: Ordering) -> list[list[int]]:
    """Each worker's chunks in the order in which it does them: m lists of chunk numbers.

    >>> queues(csr_array([[1, 2], [2, 1]]))
    [[0, 1], [1, 0]]
    """
    chunk, worker = ordering.nonzero()
    in_turn = chunk[np.lexsort((ordering.data, worker))]
    ends = np.cumsum(np.bincount(worker, minlength=ordering.shape[1]))
    return [queue.tolist() for queue in np.split(in_turn, ends[:-1])]


def positions(
    queues: Sequence[Sequence[int]], num_chunks: int, whole_loads: bool = False, costs: Any = None
) -> "csr_array[Any, tuple[int, int]]":
    """The inverse of `queues`, shape (num_chunks, m).

    whole_loads: each copy gets the last position in its queue, since it counts only when the whole queue is done.
    costs: of the chunks, (N,). A copy's position is then the work that its worker has done by the time it counts.

    >>> positions([[0, 1], [1]], 2).toarray().tolist(), positions([[0, 1], [1]], 2, True).toarray().tolist()
    ([[1, 0], [2, 1]], [[2, 0], [2, 1]])
    >>> positions([[0, 1], [1]], 2, costs=[2.0, 0.5]).toarray().tolist()
    [[2.0, 0.0], [2.5, 0.5]]
    """
    costs = np.ones(num_chunks, np.int32) if costs is None else np.asarray(costs)
    done = [np.cumsum(costs[list(queue)], dtype=costs.dtype) for queue in queues]
    if whole_loads:
        done = [np.full_like(work, work[-1:].sum()) for work in done]
    worker = np.repeat(np.arange(len(queues)), [len(queue) for queue in queues])
    chunk = np.array([chunk for queue in queues for chunk in queue], int)
    return csr_array((np.concatenate(done), (chunk, worker)), shape=(num_chunks, len(queues)))


def primary_copies(assignment: Assignment, ordering: Ordering, parts: int) -> Assignment:
    """The copies to use when no machine is slow: l holders a chunk, the work shared out evenly.

    Returns a sub-assignment of A with all row sums l and the smallest largest column sum: the first ceil(N*l/m) places
    of every queue when they hold every chunk l times, else a flow of the smallest capacity. Raises UserError: a chunk
    has fewer than l holders, or the shapes differ.

    >>> from psgc.coding.assignment import cyclic
    >>> A = cyclic(4, 4, 3)
    >>> primary_copies(A, ordering(A), parts=2).sum(axis=0).tolist()
    [2, 2, 2, 2]
    """
    assignment = _checked(assignment, ordering, parts)
    n, m = assignment.shape
    early = ordering.data <= -(-n * parts // m)
    chunk, worker = ordering.nonzero()
    if (np.bincount(chunk[early], minlength=n) == parts).all():
        ones = np.ones(n * parts, np.int8)
        return csr_array((ones, (chunk[early], worker[early])), shape=(n, m))
    network = FlowNetwork(assignment, parts)
    return network.chosen(network.smallest_capacity())


def worst_case(assignment: Assignment, ordering: Ordering, parts: int) -> int:
    """Q_max: the most chunks the cluster can have finished before the whole gradient is determined.

    Raises UserError: a chunk has fewer than l holders, or the shapes differ.

    Q_max = max_i Q_i, the most that can be finished while chunk i has fewer than l copies. A holder j that stops just
    before i leaves delta_j - O[i, j] + 1 chunks undone. In the worst case all stop but the l - 1 that would leave the
    most. So Q_i is the number of ones of A minus all but the l - 1 largest of these numbers.

    Source: arXiv:2405.19509, the definition of Q_max and its optimal value.

    Two workers hold two chunks: in the same order both can do chunk 0 and leave chunk 1 undone, in opposite orders the
    second finished chunk is always the missing one.

    >>> A = np.ones((2, 2))
    >>> [worst_case(A, csr_array(O), 1) for O in ([[1, 1], [2, 2]], [[1, 2], [2, 1]])]
    [2, 1]
    """
    assignment = _checked(assignment, ordering, parts)
    chunk, worker = assignment.nonzero()
    load = np.bincount(worker, minlength=assignment.shape[1])
    undone = load[worker] - ordering.data + 1
    counted = _places(chunk, -undone) >= parts  # all but the parts - 1 largest of each chunk
    return int(assignment.nnz - np.bincount(chunk[counted], undone[counted]).min())


def _rounds(chunk: Any, worker: Any, n: int, m: int) -> Any:
    """For each edge the round (1, 2, ...) in which its worker is given its chunk."""
    round_ = np.zeros(len(chunk), np.int64)
    owner = np.zeros(n, np.int64)  # the holder of round 1, once there is one
    own = _own(chunk, worker, n, m)
    if own.any():
        round_[own] = 1
        owner = worker[own]
    while (round_ == 0).any():
        left = np.flatnonzero(round_ == 0)
        given = left[_one_holder_each(chunk[left], worker[left], owner, n, m)]
        if round_.max() == 0:
            owner[chunk[given]] = worker[given]
        round_[given] = round_.max() + 1
    return round_


def _own(chunk: Any, worker: Any, n: int, m: int) -> Any:
    """Mask of the edges between a chunk and the worker whose own share it is; empty unless all hold their share."""
    own = worker == chunk // max(1, n // m)
    return own if n % m == 0 and own.sum() == n else np.zeros(len(chunk), bool)


def _one_holder_each(chunk: Any, worker: Any, owner: Any, n: int, m: int) -> Any:
    """Mask of one edge for each chunk that has any, the most of one worker being as few as possible."""
    per_chunk, per_worker = np.bincount(chunk, minlength=n), np.bincount(worker, minlength=m)
    degree, share = per_chunk[0], n // m
    holder: Any  # of each chunk
    if (per_chunk == degree).all() and (per_worker == share * degree).all():
        # Cut every worker in `share` pieces of `degree` edges each: the graph becomes square and regular, and such
        # a graph has a perfect matching, which takes one edge of every piece. A piece holds chunks of one owner as
        # far as possible, so that one round spreads an owner's chunks over as many workers as possible.
        _, pair, size = np.unique(worker.astype(np.int64) * m + owner[chunk], return_inverse=True, return_counts=True)
        unpaired = _places(pair, chunk) > size[pair] // degree * degree
        piece = worker * share + (_places(worker, unpaired, pair, chunk) - 1) // degree
        square = csr_array((np.ones(len(chunk)), (chunk, piece)), shape=(n, n))
        # the first is faster where few workers hold a chunk, and takes minutes when 32 workers hold all of 256 chunks
        if degree <= FEW_HOLDERS:
            holder = maximum_bipartite_matching(square, perm_type="column") // share
        else:
            holder = min_weight_full_bipartite_matching(square)[1] // share
    else:
        edges: Assignment = csr_array((np.ones(len(chunk), np.int8), (chunk, worker)), shape=(n, m))
        network = FlowNetwork(edges, per_chunk > 0)
        one_each = network.chosen(network.smallest_capacity())
        holder = np.full(n, -1)
        holder[one_each.nonzero()[0]] = one_each.nonzero()[1]
    return worker == holder[chunk]


def _places(group: Any, *keys: Any) -> Any:
    """The 1-based rank of each element in its group, sorted by the first key, ties by the next ones."""
    order = np.lexsort((*reversed(keys), group))
    sizes = np.bincount(group)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(1, len(order) + 1) - starts
    return places


def _with_positions(assignment: Assignment, positions: Any) -> Ordering:
    data = positions.astype(np.int32)
    return csr_array((data, assignment.indices, assignment.indptr), shape=assignment.shape)


def _checked(assignment: Assignment, ordering: Ordering, parts: int) -> Assignment:
    assignment = from_matrix(assignment)
    check(assignment, parts)
    same = assignment.shape == ordering.shape and np.array_equal(assignment.indptr, ordering.indptr)
    if not same or not np.array_equal(assignment.indices, ordering.indices):
        raise UserError("the ordering does not belong to this assignment: they have different entries")
    return assignment
