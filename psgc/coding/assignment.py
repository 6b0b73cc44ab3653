"""Which worker holds which chunk: the assignment matrix A.

A[i, j] = 1 when worker j holds chunk i. The row sums are the replication gamma, the column sums the load delta. A is
always a `scipy.sparse.csr_array` of int8 with sorted indices and no stored zeros.

With N = b*m the chunks j*b .. j*b + b - 1 are worker j's *own share*; `cyclic` (when load >= b), `fractional` and
`blocks` give every worker its own share, `graph` does not.

The functions in ASSIGNMENTS take N, m, gamma and a seed. They return A, shape (N, m), with row sums gamma, and raise
UserError when the numbers do not fit together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array

from psgc.errors import UserError

Assignment: TypeAlias = "csr_array[np.int8, tuple[int, int]]"

_GRAPH_TRIES = 20
_NEAR_RAMANUJAN = 1.01  # accept a graph whose second eigenvalue is within 1 % of 2 sqrt(d - 1)
_LARGEST = 10_000_000  # copies of chunks, or workers
_DENSE_LIMIT = 600  # up to this many vertices a dense eigensolver is the faster one


def cyclic(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """Worker j holds gamma*N/m consecutive chunks, from floor(j*N/m) on, wrapping around; m divides gamma*N.

    Chunk i is held by the workers j with i - load < floor(j*N/m) <= i, gamma of them. Source: arXiv:2405.19509.

    >>> cyclic(4, 4, 2).toarray().tolist()
    [[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    n, m = _checked("cyclic", num_chunks, num_workers, replication)
    load, rest = divmod(n * replication, m)
    if rest:
        raise UserError(
            f"cyclic: {n} chunks x replication {replication} copies cannot be shared equally by {m} workers"
        )
    worker = np.repeat(np.arange(m), load)
    chunk = (worker * n // m + np.tile(np.arange(load), m)) % n
    return _from_pairs(chunk, worker, n, m)


def fractional(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """Fractional repetition: m / gamma groups of consecutive workers, each with the same chunks; m / gamma divides N.

    >>> fractional(4, 4, 2).toarray().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    n, m = _checked("fractional", num_chunks, num_workers, replication)
    if m % replication:
        raise UserError(f"fractional: {m} workers cannot be split into groups of replication {replication}")
    groups = m // replication
    if n % groups:
        raise UserError(f"fractional: {n} chunks cannot be shared equally by {groups} groups of workers")
    chunk = np.repeat(np.arange(n), replication)
    worker = chunk // (n // groups) * replication + np.tile(np.arange(replication), n)
    return _from_pairs(chunk, worker, n, m)


def graph(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """The neighbourhoods of a random gamma-regular expander graph on the workers; gamma < m, gamma*m even, m divides N.

    Chunk i belongs to vertex i // b and is held by that vertex's neighbours. Column sums are b*gamma; for b = 1, A is
    symmetric. Up to 20 graphs are drawn, until the second largest |eigenvalue| is within 1 % of 2 sqrt(gamma - 1),
    about the smallest that large graphs can have (Alon-Boppana). Source: arXiv:2405.19509.

    >>> A = graph(6, 6, 5, seed=0)  # the only 5-regular graph on 6 vertices is the complete one
    >>> bool((A.toarray() == 1 - np.eye(6)).all())
    True
    """
    n, m = _checked("graph", num_chunks, num_workers, replication)
    if n % m:
        raise UserError(f"graph: {n} chunks cannot be shared equally by {m} workers")
    if replication * m % 2:
        raise UserError(f"graph: replication {replication} x {m} workers is odd; no such regular graph exists")
    import networkx as nx  # takes long, and every rank of a run imports this file

    best, best_eigenvalue = None, np.inf
    for draw in np.random.default_rng(seed).integers(2**31, size=_GRAPH_TRIES):
        drawn = nx.random_regular_graph(replication, m, seed=int(draw))
        adjacency = nx.to_scipy_sparse_array(drawn, nodelist=range(m), dtype=np.int8, format="csr")
        eigenvalue = _second_eigenvalue(adjacency)
        if eigenvalue < best_eigenvalue:
            best, best_eigenvalue = adjacency, eigenvalue
        if best_eigenvalue <= _NEAR_RAMANUJAN * 2 * np.sqrt(replication - 1):
            break
    assert best is not None
    vertex, worker = best.nonzero()
    b = n // m
    chunk = (vertex[:, None] * b + np.arange(b)).ravel()
    return _from_pairs(chunk, np.repeat(worker, b), n, m)


def blocks(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """Every worker's own share of the chunks, with the backups of a share scattered over many workers; any N.

    Worker j owns the chunks floor(j*N/m) .. floor((j+1)*N/m) - 1. If N = b*m these are b, and the column sums b*gamma.
    With p a random permutation of the distances 1 .. m-1, backup r = 0 .. gamma-2 of worker j's chunk c is worker
    j + p[(c + floor(r(m-1)/(gamma-1))) mod (m-1)] mod m. So a chunk's holders are distinct, and a worker's b(gamma-1)
    backups belong to as many other workers as possible.

    >>> A = blocks(12, 6, 3, seed=0)
    >>> owners = {int(i) // 2 for i in A[:, [0]].nonzero()[0]}
    >>> len(owners)  # own share, and four backups from four different workers
    5
    """
    n, m = _checked("blocks", num_chunks, num_workers, replication)
    backups = replication - 1
    chunk, first = np.arange(n), np.arange(m) * n // m
    owner = np.searchsorted(first, chunk, side="right") - 1
    c = chunk - first[owner]
    distance = 1 + np.random.default_rng(seed).permutation(m - 1)
    distances = [distance[(c + r * (m - 1) // backups) % (m - 1)] for r in range(backups)]
    holders = [owner, *((owner + d) % m for d in distances)]
    return _from_pairs(np.tile(chunk, replication), np.concatenate(holders), n, m)


@dataclass(frozen=True)
class AssignmentKind:
    """An assignment that can be chosen by name."""

    make: Callable[[int, int, int, int], Assignment]
    others: int = 0  # workers that cannot hold a chunk, whatever the replication


ASSIGNMENTS = {
    "blocks": AssignmentKind(blocks),
    "cyclic": AssignmentKind(cyclic),
    "fractional": AssignmentKind(fractional),
    "graph": AssignmentKind(graph, others=1),  # a vertex is not its own neighbour
}


def from_matrix(matrix: Any) -> Assignment:
    """Any dense or sparse 0/1 matrix, shape (N, m), as an assignment; `matrix` itself when it is one already.

    Raises UserError: wrong shape, an entry other than 0 and 1, or a chunk that no worker holds.

    >>> from_matrix([[1, 0], [1, 1]]).nonzero()[1].tolist()
    [0, 0, 1]
    """
    if not scipy.sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UserError(f"the assignment matrix has shape {matrix.shape}; it must be (chunks, workers)")
    if matrix.dtype.kind not in "biuf":
        raise UserError(f"the assignment matrix holds {matrix.dtype} entries; they must be 0 or 1")
    if not matrix.dtype.isnative or matrix.dtype == np.float16:  # scipy.sparse takes neither
        matrix = matrix.astype(np.float64)
    sparse = matrix if isinstance(matrix, csr_array) else csr_array(matrix)
    if not sparse.has_canonical_format or (sparse.data == 0).any():
        sparse = sparse.copy()
        sparse.sum_duplicates()
        sparse.eliminate_zeros()
    wrong = np.flatnonzero(sparse.data != 1)
    if wrong.size:
        entry = int(wrong[0])
        row = int(np.searchsorted(sparse.indptr, entry, side="right")) - 1
        raise UserError(
            f"the assignment matrix has the entry {sparse.data[entry]} at chunk {row}, worker"
            f" {sparse.indices[entry]}; entries must be 0 or 1"
        )
    assignment: Assignment = sparse if sparse.dtype == np.int8 else sparse.astype(np.int8)
    check(assignment, 1)
    return assignment


def check(assignment: Assignment, parts: int) -> None:
    """Raises UserError when a chunk has fewer than l = `parts` holders: exact recovery is impossible then.

    >>> check(cyclic(4, 4, 2), parts=3)
    Traceback (most recent call last):
    psgc.errors.UserError: parts is 3, but chunk 0 is held by only 2 workers
    """
    _check_whole("parts", parts)
    holders = np.diff(assignment.indptr)
    fewest = int(holders.argmin())
    if holders[fewest] == 0:
        raise UserError(f"chunk {fewest} is held by no worker")
    if holders[fewest] < parts:
        count = int(holders[fewest])
        raise UserError(f"parts is {parts}, but chunk {fewest} is held by only {count} worker{'s' * (count > 1)}")


def _checked(name: str, n: int, m: int, replication: int) -> tuple[int, int]:
    """N and m. Raises UserError for what is no number of chunks, workers or holders, or too large for the memory."""
    for what, number in (("chunks", n), ("workers", m), ("replication", replication)):
        _check_whole(f"{name}: {what}", number)
    if (most := m - ASSIGNMENTS[name].others) < replication:
        raise UserError(f"{name}: replication {replication} is too large for {m} workers, expected at most {most}")
    if max(m, n * replication) > _LARGEST:  # a typing error, which would take all the memory there is
        sizes = f"{n} chunks in {n * replication} copies on {m} workers"
        raise UserError(f"{name}: {sizes} are too many, expected at most {_LARGEST} copies and workers")
    return n, m


def _check_whole(name: str, number: Any) -> None:
    if not isinstance(number, Integral) or number < 1:
        raise UserError(f"{name} is {number!r:.40}, expected a whole number, at least 1")


def _from_pairs(chunk: Any, worker: Any, num_chunks: int, num_workers: int) -> Assignment:
    """A with ones at the given distinct (chunk, worker) pairs, in canonical form."""
    ones = np.ones(len(chunk), np.int8)
    assignment = csr_array((ones, (chunk, worker)), shape=(num_chunks, num_workers))
    assignment.sum_duplicates()
    return assignment


def _second_eigenvalue(adjacency: Any) -> float:
    """The second largest |eigenvalue| of a regular graph's adjacency matrix."""
    m = adjacency.shape[0]
    if m <= _DENSE_LIMIT:
        return float(np.sort(np.abs(np.linalg.eigvalsh(adjacency.toarray().astype(float))))[-2])
    from scipy.sparse.linalg import eigsh  # takes long, as above

    start = np.random.default_rng(0).standard_normal(m)
    values = eigsh(adjacency.astype(float), k=2, which="LM", v0=start, tol=1e-3, return_eigenvectors=False)
    return float(np.abs(values).min())
