"""Recovery times of schedules that keep their queues, and their errors at deadlines, for all trials at once.

Such a schedule is given by its *positions* (`psgc.coding.positions`): O[i, j] = k if worker j's copy of chunk i counts
after j has done k chunks. With s_j seconds per chunk this copy is finished at O[i, j] * s_j. Chunk i is recovered at
the l-th smallest of these times over its holders. The gradient is recovered with the last chunk.

positions: O, (N, m), sparse, at least l holders per chunk; if chunks differ, the work of a worker instead of k
parts: l
seconds: s of each trial, > 0, (trials, m), inf for a failed worker
deadlines: seconds, (D,)
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgc import coding
from psgc.data.times import Seconds

_BLOCK = 4_000_000  # numbers held at once
_RIDGE = 1e-12  # relative to the trace of the Gram matrix
_NO_ERROR = 1e-6  # a squared error below this, or below ridge * m, is the ridge's


def completion_times(positions: Any, parts: int, seconds: Seconds) -> Seconds:
    """The time at which every chunk has l copies, (trials,); inf if a chunk has fewer than l live holders.

    Source: arXiv:2405.19509, the completion time of its numerical experiments.

    >>> O = coding.positions([[0, 1], [1, 0]], 2)
    >>> completion_times(O, 1, np.array([[1.0, 3.0], [1.0, np.inf], [3.0, 4.0]]))
    array([2., 2., 4.])
    """
    times = np.empty(len(seconds))
    for trials, finished in _copies(positions, seconds):
        times[trials] = np.partition(finished, parts - 1, axis=2)[:, :, parts - 1].max(axis=1)
    return times


def error_measures(positions: Any, parts: int, seconds: Seconds, deadlines: ArrayLike) -> Seconds:
    """Square root of sum_i max(0, l - |S_i|), shape (trials, D). S_i are the finished copies at the deadline.

    Source: arXiv:2405.19509, the error measure of approximate gradient coding.

    >>> error_measures(coding.positions([[0, 1], [1, 0]], 2), 2, np.array([[1.0, 2.0]]), [0.5, 1, 2, 3, 4]).round(2)
    array([[2.  , 1.73, 1.  , 1.  , 0.  ]])
    """
    limits = np.asarray(deadlines, np.float64)
    errors = np.empty((len(seconds), len(limits)))
    for trials, finished in _copies(positions, seconds):
        for d, deadline in enumerate(limits):
            copies = (finished <= deadline).sum(axis=2)
            errors[trials, d] = np.sqrt(np.maximum(0, parts - copies).sum(axis=1))
    return errors


def least_squares_errors(assignment: Any, seconds: Seconds, deadlines: ArrayLike) -> Seconds:
    """min_r |A_F r - 1|, shape (trials, D): original gradient coding, approximated from the finished workers F.

    Worker j of the assignment A is finished at delta_j * s_j. It sends the sum of its gradients, and the server weighs
    the sums by r. With the workers sorted by finishing time every F is a prefix. The last row of the Cholesky factor
    of the Gram matrix of [A | 1] has the coordinates of 1 along the columns of A, orthogonalised in that order. So one
    factorisation gives the errors at all deadlines: N minus the squares of the first |F| coordinates. A ridge takes
    care of dependent columns.

    Source: arXiv:2405.19509, the comparison in its approximate experiments.

    >>> A = coding.fractional(4, 4, 2)  # worker 0 covers chunks 0 and 1, worker 2 the other two
    >>> least_squares_errors(A, np.array([[1.0, 2.0, 3.0, 4.0]]), [1, 2, 4, 6]).round(6)
    array([[2.      , 1.414214, 1.414214, 0.      ]])
    """
    assignment = coding.from_matrix(assignment)
    n, m = assignment.shape
    dense = assignment.T.toarray().astype(np.float64)
    finished = seconds * np.maximum(1, dense.sum(axis=1))  # 0 x inf is no number
    limits = np.asarray(deadlines, np.float64)
    errors = np.empty((len(seconds), len(limits)))
    gram = np.ones((m + 1, m + 1)) * n
    gram[:m, :m] = dense @ dense.T
    gram[:m, m] = gram[m, :m] = dense.sum(axis=1)
    ridge = _RIDGE * np.trace(gram)
    no_error = max(_NO_ERROR, ridge * m)  # it adds up to ridge * |r|^2 to a squared error, and weights are about 1
    gram[np.arange(m + 1), np.arange(m + 1)] += np.append(np.full(m, ridge), 1.0)
    for trials in _blocks(len(seconds), (m + 1) ** 2):
        order = np.argsort(finished[trials], axis=1)
        rows = np.concatenate([order, np.full((len(order), 1), m)], axis=1)
        along = np.linalg.cholesky(gram[rows[:, :, None], rows[:, None, :]])[:, m, :m]
        left = n - np.cumsum(np.pad(along**2, ((0, 0), (1, 0))), axis=1)
        count = (finished[trials][:, :, None] <= limits).sum(axis=1)
        squared = np.take_along_axis(left, count, axis=1)
        errors[trials] = np.sqrt(np.where(squared < no_error, 0, squared))
    return errors


def copies_computed(positions: Any, seconds: Seconds, times: Seconds) -> Seconds:
    """The number of chunks that all workers have finished at `times` (trials,), needed or not: (trials,)."""
    done = np.empty(len(seconds))
    for trials in _blocks(len(seconds), positions.nnz):
        finished = seconds[trials][:, positions.indices] * positions.data  # rounded as in the times
        done[trials] = ((finished <= times[trials, None]) & np.isfinite(finished)).sum(axis=1)
    return done


def rounded_up(times: Seconds, clock: float | None) -> Seconds:
    """Times rounded up to a multiple of `clock`, as in the paper; unchanged without a clock.

    >>> rounded_up(np.array([1.5, 2.0, np.inf]), 1.0).tolist()
    [2.0, 2.0, inf]
    """
    return times if clock is None else np.ceil(times / clock * (1 - 1e-12)) * clock


def _copies(positions: Any, seconds: Seconds) -> Iterator[tuple[slice, Any]]:
    """Blocks of trials, each with the time of every copy: shape (trials, N, most holders), inf where there is none."""
    n = positions.shape[0]
    holders = np.diff(positions.indptr)
    there = np.arange(holders.max()) < holders[:, None]
    worker = np.zeros(there.shape, np.int64)
    place = np.full(there.shape, np.inf)
    worker[there], place[there] = positions.indices, positions.data
    for trials in _blocks(len(seconds), n * there.shape[1]):
        yield trials, seconds[trials][:, worker] * place


def _blocks(trials: int, size: int) -> Iterator[slice]:
    step = max(1, _BLOCK // size)
    return (slice(first, first + step) for first in range(0, trials, step))
