"""The coding matrix R, shape (m, l): row j is worker j's coding vector, l = `parts`; and how it codes and decodes.

To decode a chunk the server inverts R[S], S the l workers that did it. So R[S] must be well conditioned for every
*meeting set*: l workers that share a chunk. The spread matrix ignores all other sets. It is built in two steps:

1. Colour the workers so that workers with a common chunk differ, and give each colour a vector. There are few colours,
   however many workers there are. With two parts k colours take k angles at equal distances.
2. With more parts search vectors for the colours, then for single workers: one at a time moves to the best of many
   random candidates. What is lowered is the sum over meeting sets of ||R[S]^-1||_F^32, in which only the worst count.
"""

from itertools import combinations, count, islice
from math import comb
from typing import Any, TypeAlias

import numpy as np

from psgc.coding.assignment import Assignment, check, from_matrix
from psgc.errors import UserError

Matrix: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_RECOLOURINGS = 500
_RECOLOURED_WORKERS = 200_000  # recolourings x workers: a second or two
_CANDIDATES = 200
_SWEEPS = (3, 20)  # fewest worth doing, most worth doing
_WORK = 2_000_000  # sweeps x meeting sets x l (l - 1): a few seconds
_EXPONENT = 32
_SAMPLE = 300_000  # meeting sets looked at when there are more
_BATCH = 100_000  # matrices in one batched SVD


def coding_matrix(kind: str, assignment: Assignment, parts: int, seed: int) -> Matrix:
    """R, shape (m, l), float64: the workers' coding vectors. All ones when l = 1: nothing is coded then.

    kind: "gaussian" draws every entry from N(0, 1), as arXiv:2405.19509 does; "spread" is well conditioned.
    Raises UserError: unknown kind, or a chunk has fewer than l holders.

    Two unit vectors at an angle phi <= pi/2 have condition number cot(phi/2), so k colours at the angles pi*c/k give
    cot(pi/(2k)) at worst, about 2k/pi. Below three colours do: cot(pi/6) = sqrt(3).

    >>> from psgc.coding.assignment import cyclic
    >>> A = cyclic(6, 6, 3)
    >>> R = coding_matrix("spread", A, parts=2, seed=0)
    >>> round(worst_condition(R, A) / 3**0.5, 9)
    1.0
    """
    assignment = from_matrix(assignment)
    check(assignment, parts)
    rng = np.random.default_rng(seed)
    if kind not in ("gaussian", "spread"):
        raise UserError(f"coding_matrix is {kind!r}; it must be 'gaussian' or 'spread'")
    if parts == 1:
        return np.ones((assignment.shape[1], 1))
    if kind == "gaussian":
        return rng.standard_normal((assignment.shape[1], parts))
    return _spread(assignment, parts, rng)


def worst_condition(coding_matrix: Matrix, assignment: Assignment) -> float:
    """The largest 2-norm condition number of R[S] over all sets S of l workers that share a chunk (singular: inf).

    It looks at all of them, up to N * binomial(gamma, l). Raises UserError: a chunk has fewer than l holders.

    >>> worst_condition([[1.0, 0.0], [0.0, 2.0]], [[1, 1]])
    2.0
    """
    matrix, assignment = np.asarray(coding_matrix, np.float64), from_matrix(assignment)
    parts = matrix.shape[1]
    check(assignment, parts)
    worst = 1.0
    for holders in _holder_groups(assignment):
        subsets = combinations(range(holders.shape[1]), parts)
        while batch := list(islice(subsets, max(1, _BATCH // len(holders)))):
            worst = max(worst, float(np.linalg.cond(matrix[holders[:, batch]]).max()))
    return worst


def encoding_coefficients(rows: Matrix) -> Matrix:
    """X, shape (s, l), with R[S]^T X = I_l: worker j of S adds sum_k X[j, k] g[k] to its coded gradient.

    S are the s contributors of a chunk, and `rows` is R[S]. X = (R[S]^+)^T is of minimum norm when s > l, and the
    least-squares solution when s < l. The server forms part k as sum_j R[j, k] y_j, that is R[S]^T X g: g itself when
    R[S] has rank l, otherwise the projection of g on the row space of R[S].

    Source: arXiv:2405.19509, the protocol in which workers encode once their contributors are known.

    >>> R = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> X = encoding_coefficients(R)
    >>> bool(np.allclose(R.T @ X, np.eye(2)))
    True
    """
    return np.asarray(np.linalg.pinv(rows).T, np.float64)


def decoding_coefficients(rows: Matrix) -> Matrix:
    """D = R[S]^-1, shape (l, l): a chunk's parts are D @ Y, Y the coded gradients of its l contributors.

    Raises UserError: `rows`, R[S], cannot be inverted.

    >>> R = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> G = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # two parts of three entries
    >>> bool(np.allclose(decoding_coefficients(R) @ (R @ G), G))
    True
    """
    try:
        return np.asarray(np.linalg.inv(rows), np.float64)
    except np.linalg.LinAlgError:
        raise UserError("these contributors cannot decode: their coding vectors are dependent") from None


def _spread(assignment: Assignment, parts: int, rng: np.random.Generator) -> Matrix:
    colour = _colours(assignment, rng)
    num_colours = int(colour.max()) + 1
    if parts == 2:
        angle = np.pi * colour / num_colours
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    most = _WORK // (_SWEEPS[0] * parts * (parts - 1))
    sets = _meeting_sets(assignment, parts, rng)
    if comb(num_colours, parts) <= most:
        colour_sets = np.array(list(combinations(range(num_colours), parts)))
    else:
        colour_sets = np.unique(np.sort(colour[sets], axis=1), axis=0)
        colour_sets = colour_sets[rng.permutation(len(colour_sets))[:most]]
    vectors: Matrix = _unit(rng.standard_normal((num_colours, parts)))
    _search(vectors, colour_sets, rng)
    vectors = vectors[colour]
    if len(sets) <= most:
        _search(vectors, sets, rng)
    return vectors


def _colours(assignment: Assignment, rng: np.random.Generator) -> Any:
    """A colour (0, 1, ...) for each worker, different for workers that share a chunk; few colours.

    Iterated greedy colouring: again class by class, in any order of the classes, never takes more colours and
    sometimes fewer. It stops at the size of the largest set of holders, which is a lower bound.
    """
    m, fewest = assignment.shape[1], int(np.diff(assignment.indptr).max())
    incidence = assignment.astype(np.int32)
    sharing: Any = incidence.T @ incidence  # its pattern: which workers share a chunk (each with itself, too)
    sharing = sharing.tocsr()
    neighbours = [row.tolist() for row in np.split(sharing.indices, sharing.indptr[1:-1])]
    order = np.argsort(-np.diff(sharing.indptr), kind="stable")
    for _ in range(1 + min(_RECOLOURINGS, _RECOLOURED_WORKERS // m)):
        colour = [-1] * m
        for j in order.tolist():
            taken = {colour[other] for other in neighbours[j]}
            colour[j] = next(c for c in count() if c not in taken)
        if max(colour) + 1 == fewest:
            break
        order = np.argsort(rng.permutation(max(colour) + 1)[colour], kind="stable")
    return np.array(colour)


def _search(vectors: Matrix, sets: Any, rng: np.random.Generator) -> None:
    """Move the unit vectors (k, l), in place, to lower the potential over `sets` (n, l) of their indices."""
    num_vectors, parts = vectors.shape
    member = sets.T.ravel()
    others = np.concatenate([np.delete(sets, place, axis=1) for place in range(parts)])
    others = others[np.argsort(member, kind="stable")]
    others_of = np.split(others, np.cumsum(np.bincount(member, minlength=num_vectors))[:-1])
    sweeps = int(np.clip(_WORK // (sets.size * (parts - 1)), *_SWEEPS))
    for sweep in range(sweeps):
        step = 0.5 * 0.01 ** (sweep / sweeps)  # half of the candidates are near, nearer and nearer
        for j in rng.permutation(num_vectors):
            if len(others_of[j]):
                far = rng.standard_normal((_CANDIDATES // 2, parts))
                near = vectors[j] + step * rng.standard_normal((_CANDIDATES // 2, parts))
                candidates = np.concatenate([vectors[[j]], _unit(far), _unit(near)])
                norms = _squared_inverse_norms(vectors[others_of[j]], candidates)
                vectors[j] = candidates[np.argmin((norms ** (_EXPONENT // 2)).sum(axis=0))]


def _squared_inverse_norms(others: Any, candidates: Any) -> Any:
    """||M^-1||_F^2 = trace (M M^T)^-1, shape (n, c), for each M of l - 1 unit rows and, last, a candidate.

    others: the rows O of each set, shape (n, l - 1, l); candidates: unit vectors x, shape (c, l).

    By block inversion, with G = O O^T and s = 1 - (Ox)^T G^-1 (Ox), the squared distance of x from the span of O:
    trace G^-1 + (1 + ||G^-1 O x||^2) / s.

    >>> vectors = _unit(np.random.default_rng(0).standard_normal((6, 3)))
    >>> others, candidates = vectors[None, :2], vectors[2:]
    >>> inverses = [np.linalg.inv(np.vstack([others[0], x])) for x in candidates]
    >>> squared = [np.linalg.norm(inverse) ** 2 for inverse in inverses]
    >>> bool(np.allclose(_squared_inverse_norms(others, candidates)[0], squared))
    True
    """
    inverse = np.linalg.inv(others @ others.swapaxes(1, 2))
    projected = others @ candidates.T
    solved = inverse @ projected
    distance = np.maximum(1e-15, 1 - (projected * solved).sum(axis=1))
    trace = np.trace(inverse, axis1=1, axis2=2)[:, None]
    return trace + (1 + (solved * solved).sum(axis=1)) / distance


def _meeting_sets(assignment: Assignment, parts: int, rng: np.random.Generator) -> Any:
    """All sets of `parts` workers that share a chunk, shape (n, parts), or a sample when they are too many."""
    groups = _holder_groups(assignment)
    subsets = np.array([comb(holders.shape[1], parts) for holders in groups], dtype=float)
    total = sum(subsets * [len(holders) for holders in groups])
    found = []
    for holders in groups:
        rows, size = holders.shape
        if total <= _SAMPLE:
            found.append(holders[:, list(combinations(range(size), parts))].reshape(-1, parts))
        else:
            wanted = int(_SAMPLE * rows * comb(size, parts) / total)
            row = rng.integers(rows, size=(wanted, 1))
            found.append(holders[row, rng.random((wanted, size)).argsort(axis=1)[:, :parts]])
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _holder_groups(assignment: Assignment) -> list[Any]:
    """The different sets of holders that chunks have, those of one size as the rows of one array."""
    size = np.diff(assignment.indptr)
    by_size = [assignment.indices[np.repeat(size == s, size)].reshape(-1, s) for s in np.unique(size)]
    return [np.unique(rows, axis=0) for rows in by_size]


def _unit(vectors: Matrix) -> Matrix:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float64)
