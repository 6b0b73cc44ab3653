"""Which worker holds which chunk: the assignment matrix A.

An assignment is a sparse N x m matrix (N chunks, m workers), A[i, j] = 1 when worker j holds chunk i. Its
row sums are the replication gamma, its column sums the load delta. It is always a `scipy.sparse.csr_array`
of int8 with sorted indices and no stored zeros. Workers are counted from 0 here.

With N = b*m the chunks j*b .. j*b + b - 1 are worker j's *own share*; `cyclic` (when load >= b),
`fractional` and `blocks` give every worker its own share, `graph` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh

from psgc.coding.arguments import whole
from psgc.errors import UserError

Assignment: TypeAlias = "csr_array[np.int8, tuple[int, int]]"

_GRAPH_TRIES = 20
_NEAR_RAMANUJAN = 1.01  # accept a graph whose second eigenvalue is within 1 % of 2 sqrt(d - 1)
_LARGEST = 10_000_000  # copies of chunks, or workers
_DENSE_LIMIT = 600  # up to this many vertices a dense eigensolver is the faster one


def cyclic(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """Worker j holds consecutive chunks, from floor(j*N/m) on, wrapping around.

    Args:
        num_chunks: N.
        num_workers: m.
        replication: gamma, the holders of every chunk; at most m, and gamma*N a multiple of m.
        seed: not used.

    Returns:
        A, shape (N, m), with all row sums gamma and all column sums gamma*N/m.

    Raises:
        UserError: the numbers do not fit together.

    Notes:
        Chunk i is held by the workers with i - load < floor(j*N/m) <= i, that is by the whole numbers j in a
        half-open interval of length load*m/N: exactly gamma of them.

    References:
        arXiv:2405.19509, the cyclic assignment of its experiments.

    Example:
        >>> cyclic(4, 4, 2).toarray().tolist()
        [[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    n, m, replication = _checked("cyclic", num_chunks, num_workers, replication)
    load, rest = divmod(n * replication, m)
    if rest:
        raise UserError(
            f"cyclic: {n} chunks x replication {replication} copies cannot be shared equally by {m} workers"
        )
    worker = np.repeat(np.arange(m), load)
    chunk = (worker * n // m + np.tile(np.arange(load), m)) % n
    return _from_pairs(chunk, worker, n, m)


def fractional(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """Fractional repetition: groups of `replication` workers hold the same chunks.

    Args:
        num_chunks: N, a multiple of the number of groups m / replication.
        num_workers: m, a multiple of `replication`.
        replication: gamma, the holders of every chunk.
        seed: not used.

    Returns:
        A, shape (N, m). Groups are consecutive workers and hold consecutive chunks.

    Raises:
        UserError: the numbers do not divide.

    Example:
        >>> fractional(4, 4, 2).toarray().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    n, m, replication = _checked("fractional", num_chunks, num_workers, replication)
    if m % replication:
        raise UserError(f"fractional: {m} workers cannot be split into groups of replication {replication}")
    groups = m // replication
    if n % groups:
        raise UserError(f"fractional: {n} chunks cannot be shared equally by {groups} groups of workers")
    chunk = np.repeat(np.arange(n), replication)
    worker = chunk // (n // groups) * replication + np.tile(np.arange(replication), n)
    return _from_pairs(chunk, worker, n, m)


def graph(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """The neighbourhoods of a random regular expander graph on the workers.

    Args:
        num_chunks: N = b*m. Chunk i belongs to vertex i // b and is held by that vertex's neighbours.
        num_workers: m, the vertices.
        replication: gamma, the degree of the graph; less than m, and replication*m even.
        seed: makes the graph reproducible.

    Returns:
        A, shape (N, m), with row sums gamma and column sums b*gamma. For b = 1 it is symmetric.

    Raises:
        UserError: no such graph exists, or m does not divide N.

    Notes:
        Graphs are drawn until the second largest |eigenvalue| is within 1 % of 2 sqrt(gamma - 1), about the
        smallest that large graphs can have (Alon-Boppana); failing that, the best of 20 draws is taken.

    References:
        arXiv:2405.19509, the random regular graph assignment of its experiments.

    Example:
        >>> A = graph(6, 6, 5, seed=0)  # the only 5-regular graph on 6 vertices is the complete one
        >>> bool((A.toarray() == 1 - np.eye(6)).all())
        True
    """
    n, m, degree = _checked("graph", num_chunks, num_workers, replication)
    if n % m:
        raise UserError(f"graph: {n} chunks cannot be shared equally by {m} workers")
    if degree * m % 2:
        raise UserError(f"graph: replication {degree} x {m} workers is odd; no such regular graph exists")
    import networkx as nx  # takes long, and every rank of a run imports this file

    best, best_eigenvalue = None, np.inf
    for draw in np.random.default_rng(whole("seed", seed, 0)).integers(2**31, size=_GRAPH_TRIES):
        drawn = nx.random_regular_graph(degree, m, seed=int(draw))
        adjacency = nx.to_scipy_sparse_array(drawn, nodelist=range(m), dtype=np.int8, format="csr")
        eigenvalue = _second_eigenvalue(adjacency)
        if eigenvalue < best_eigenvalue:
            best, best_eigenvalue = adjacency, eigenvalue
        if best_eigenvalue <= _NEAR_RAMANUJAN * 2 * np.sqrt(degree - 1):
            break
    assert best is not None
    vertex, worker = best.nonzero()
    b = n // m
    chunk = (vertex[:, None] * b + np.arange(b)).ravel()
    return _from_pairs(chunk, np.repeat(worker, b), n, m)


def blocks(num_chunks: int, num_workers: int, replication: int, seed: int = 0) -> Assignment:
    """Every worker's own share of the chunks, with the backups of a share scattered over many workers.

    Args:
        num_chunks: N; worker j owns the chunks floor(j*N/m) .. floor((j+1)*N/m) - 1, which are b when N = b*m.
        num_workers: m.
        replication: gamma, the holders of every chunk, its owner among them; at most m.
        seed: permutes the workers' distances.

    Returns:
        A, shape (N, m), with row sums gamma and, when N = b*m, column sums b*gamma. Otherwise own shares differ by
        at most one chunk.

    Raises:
        UserError: replication > m.

    Notes:
        With p a random permutation of the distances 1 .. m-1, backup r = 0 .. gamma-2 of worker j's chunk c is
        worker j + p[(c + floor(r(m-1)/(gamma-1))) mod (m-1)] mod m. The gamma-1 starting points are distinct,
        so a chunk's holders are; and they are spread evenly, so a worker's b(gamma-1) backups belong to
        min(b(gamma-1), m-1) different workers, as many as possible.

    Example:
        >>> A = blocks(12, 6, 3, seed=0)
        >>> owners = {int(i) // 2 for i in A[:, [0]].nonzero()[0]}
        >>> len(owners)  # own share, and four backups from four different workers
        5
    """
    n, m, replication = _checked("blocks", num_chunks, num_workers, replication)
    backups = replication - 1
    chunk, first = np.arange(n), np.arange(m) * n // m
    owner = np.searchsorted(first, chunk, side="right") - 1
    c = chunk - first[owner]
    distance = 1 + np.random.default_rng(whole("seed", seed, 0)).permutation(m - 1)
    distances = [distance[(c + r * (m - 1) // backups) % (m - 1)] for r in range(backups)]
    holders = [owner, *((owner + d) % m for d in distances)]
    return _from_pairs(np.tile(chunk, replication), np.concatenate(holders), n, m)


@dataclass(frozen=True)
class AssignmentKind:
    """An assignment that can be chosen by name.

    Args:
        make: a function of num_chunks N, num_workers m, replication and seed. It raises UserError when they do not fit.
        others: workers that cannot hold a chunk, whatever the replication.
    """

    make: Callable[[int, int, int, int], Assignment]
    others: int = 0

    def most_replication(self, num_workers: int) -> int:
        """The largest replication that `num_workers` workers allow."""
        return num_workers - self.others


ASSIGNMENTS = {
    "blocks": AssignmentKind(blocks),
    "cyclic": AssignmentKind(cyclic),
    "fractional": AssignmentKind(fractional),
    "graph": AssignmentKind(graph, others=1),  # a vertex is not its own neighbour
}


def from_matrix(matrix: Any) -> Assignment:
    """Any dense or sparse 0/1 matrix as an assignment.

    Args:
        matrix: shape (N, m), numbers or booleans, every entry 0 or 1, no row without a 1.

    Returns:
        A, shape (N, m); `matrix` itself when it is one already.

    Raises:
        UserError: wrong shape, an entry other than 0 and 1, or a chunk that nobody holds.

    Example:
        >>> from_matrix([[1, 0], [1, 1]]).nonzero()[1].tolist()
        [0, 0, 1]
    """
    if not scipy.sparse.issparse(matrix):
        try:
            matrix = np.asarray(matrix)
        except ValueError:
            raise UserError("the assignment matrix has rows of different lengths") from None
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UserError(f"the assignment matrix has shape {matrix.shape}; it must be (chunks, workers)")
    if matrix.dtype.kind not in "biuf":
        raise UserError(f"the assignment matrix holds {matrix.dtype} entries; they must be 0 or 1")
    if not matrix.dtype.isnative or matrix.dtype == np.float16:  # scipy.sparse takes neither
        matrix = matrix.astype(np.float64)
    sparse = matrix if isinstance(matrix, csr_array) else csr_array(matrix)
    if not sparse.has_canonical_format:
        sparse = sparse.copy()
        sparse.sum_duplicates()
    if (sparse.data == 0).any():
        sparse = sparse.copy()
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
    """Refuse an assignment with which exact recovery is impossible.

    Args:
        assignment: A, shape (N, m).
        parts: l, the copies that recover a chunk.

    Raises:
        UserError: a chunk has fewer than `parts` holders.

    Example:
        >>> check(cyclic(4, 4, 2), parts=2)
        >>> check(cyclic(4, 4, 2), parts=3)
        Traceback (most recent call last):
        psgc.errors.UserError: parts is 3, but chunk 0 is held by only 2 workers
    """
    parts = whole("parts", parts)
    holders = np.diff(assignment.indptr)
    fewest = int(holders.argmin())
    if holders[fewest] == 0:
        raise UserError(f"chunk {fewest} is held by no worker")
    if holders[fewest] < parts:
        count = int(holders[fewest])
        raise UserError(f"parts is {parts}, but chunk {fewest} is held by only {count} worker{'s' * (count > 1)}")


def _checked(name: str, num_chunks: int, num_workers: int, replication: int) -> tuple[int, int, int]:
    """The three numbers. Raises UserError when one is not a number, or too large."""
    n, m = whole("num_chunks", num_chunks), whole("num_workers", num_workers)
    replication = whole("replication", replication)
    if (most := ASSIGNMENTS[name].most_replication(m)) < replication:
        raise UserError(f"{name}: replication {replication} is too large for {m} workers, expected at most {most}")
    if max(m, n * replication) > _LARGEST:  # a typing error, which would take all the memory there is
        sizes = f"{n} chunks in {n * replication} copies on {m} workers"
        raise UserError(f"{name}: {sizes} are too many, expected at most {_LARGEST} copies and workers")
    return n, m, replication


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
    start = np.random.default_rng(0).standard_normal(m)
    values = eigsh(adjacency.astype(float), k=2, which="LM", v0=start, tol=1e-3, return_eigenvectors=False)
    return float(np.abs(values).min())
