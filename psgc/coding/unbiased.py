"""Weights that make an approximate gradient unbiased over which workers are late."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgc.coding.coding_matrix import Matrix

_SUCCESSES = 64  # draws in which a chunk is recovered, after which its weight is known well enough
_AT_ONCE = 64  # draws
_DRAWS = 8192  # at most
_NUMBERS = 4_000_000  # looked at together


def unbiased_weights(ordering: Any, done: ArrayLike, parts: int, rng: np.random.Generator) -> Matrix:
    """w, shape (N,): the factor of each recovered chunk that makes the sum unbiased; nan for the other chunks.

    Unbiased where all workers that have chunks have equally many, else only roughly.

    ordering: O, the order in which each worker does its chunks.
    done: chunks of its queue that each worker finished by the deadline, shape (m,); they do not recover everything.
    rng: source of the draws; it must not depend on which workers are late.

    The model: how much the workers finish by the deadline is a set of numbers, and every way to deal it out to them is
    equally likely. Workers without chunks are left out. It is unknown how much more a worker that has finished a
    short queue would have done, and a longer queue that is dealt its number looks late: with queues of 4, 4, 4, 3 and 3
    chunks the last chunks of the longer ones may count 1.5 times on average. Dealing numbers out only among queues of
    equal length would leave more chunks out of the mean.

    Let D be a random permutation of `done`, R(D) the chunks that it recovers (those with at least l holders j
    with D_j >= O[i, j]), and p_i = P(i in R(D) | R(D) is not everything). Dividing by p_i (Horvitz and Thompson) gives
    E[sum of g_i / p_i over i in R(D)] = sum of g_i over all i with p_i > 0. Where everything is recovered the gradient
    is the sum itself, so the mean over all D is right, too. Chunks with p_i = 0 (a deadline before anybody is at the
    end of its queue, say) are missing in the mean: nothing tells anything about them.

    p_i has no closed form. But draw permutations, of those that do not recover everything, until i was recovered in k
    of them: the number n_i of draws has mean k / p_i. So w_i = n_i / k is 1 / p_i on average, independent of the
    permutation that happened, and the mean of the sum of w_i g_i is exactly the gradient. A larger k only makes it vary
    less. The draws are the same for all chunks. They end after 8192, which cuts weights of chunks recovered so rarely.

    Sources: D. G. Horvitz, D. J. Thompson, "A generalization of sampling without replacement from a finite universe",
    JASA 47 (1952). J. B. S. Haldane, "On a method of estimating frequencies", Biometrika 33 (1945), for the draws.

    Two workers have two chunks each, none in common. One has done both, the other none: whoever is late, the chunks
    that are there count twice.

    >>> from scipy.sparse import csr_array
    >>> O = csr_array([[1, 0], [2, 0], [0, 1], [0, 2]])
    >>> w = unbiased_weights(O, [2, 0], 1, np.random.default_rng(0))
    >>> bool(np.isnan(w[2:]).all()), bool(abs(w[:2] - 2).max() < 0.5)
    (True, True)
    """
    n = ordering.shape[0]
    holders, worker = np.unique(ordering.indices, return_inverse=True)
    counts = np.asarray(done)[holders]  # the 0 of a worker without chunks is no delay

    def recovered(permuted: Any) -> Any:
        """Which chunks each of these deals (draws, holders) recovers: (draws, N)."""
        there = permuted[:, worker] >= ordering.data
        copies = np.add.reduceat(there, ordering.indptr[:-1], axis=1, dtype=np.int32)
        return copies >= parts

    happened = recovered(counts[None, :])[0]
    wanted = np.flatnonzero(happened)
    successes, draws, needed = np.zeros(n, np.int64), 0, np.zeros(n, np.int64)
    at_once = max(1, min(_AT_ONCE, _NUMBERS // max(1, len(worker))))
    for _ in range(_DRAWS // at_once):
        if (successes[wanted] >= _SUCCESSES).all():
            break
        deals = recovered(rng.permuted(np.broadcast_to(counts, (at_once, len(counts))), axis=1))
        for deal in deals[~deals.all(axis=1)]:
            draws += 1
            successes += deal
            needed[deal & (successes == _SUCCESSES)] = draws
    weights = np.full(n, np.nan)
    early = successes[wanted] < _SUCCESSES
    number = np.where(early, draws, needed[wanted])
    weights[wanted] = np.maximum(number, 1) / np.clip(successes[wanted], 1, _SUCCESSES)
    return weights
