"""When schedules that keep their queues recover, and how far off they are before: for all trials at once.

Such a schedule is its *positions*: O[i, j] = k when worker j's copy of chunk i counts once j has done k chunks
(`psgc.coding.ordering`, `psgc.coding.positions`). With s_j seconds per chunk the copy is there at O[i, j] * s_j,
chunk i is recovered at the l-th smallest of these over its holders, and the gradient at the largest of that over the
chunks.

Arguments: `positions` is O, shape (N, m), sparse; `parts` is l; `seconds` is s of each trial, shape (trials, m), inf
for a failed worker; `deadlines` are seconds, shape (D,). UserError is raised for a chunk with fewer than l holders, a
time that is not > 0, and shapes that do not fit.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psgc import coding
from psgc.errors import UserError
from psgc.simulation.speeds import Seconds

_BLOCK = 4_000_000  # numbers held at once
_RIDGE = 1e-12  # relative to the trace of the Gram matrix
_NO_ERROR = 1e-6  # a squared error below this is the ridge's


def completion_times(positions: Any, parts: int, seconds: Seconds) -> Seconds:
    """When every chunk has l copies, shape (trials,); inf for a trial in which a chunk has fewer than l live holders.

    References:
        arXiv:2405.19509, the completion time of its numerical experiments.

    Example:
        Two workers hold two chunks, and the second is three times slower: in opposite orders the first does both.

        >>> O = coding.positions([[0, 1], [1, 0]], 2)
        >>> completion_times(O, 1, np.array([[1.0, 3.0], [1.0, np.inf], [3.0, 4.0]]))
        array([2., 2., 4.])
    """
    _check(positions, parts, seconds)
    times = np.empty(len(seconds))
    for trials, finished in _copies(positions, seconds):
        times[trials] = np.partition(finished, parts - 1, axis=2)[:, :, parts - 1].max(axis=1)
    return times


def error_measures(positions: Any, parts: int, seconds: Seconds, deadlines: ArrayLike) -> Seconds:
    """Square root of sum_i max(0, l - |S_i|), shape (trials, D); S_i are the copies that are there at the deadline.

    References:
        arXiv:2405.19509, the error measure of approximate gradient coding.

    Example:
        >>> error_measures(coding.positions([[0, 1], [1, 0]], 2), 2, np.array([[1.0, 2.0]]), [0.5, 1, 2, 3, 4]).round(2)
        array([[2.  , 1.73, 1.  , 1.  , 0.  ]])
    """
    _check(positions, parts, seconds)
    limits = np.asarray(deadlines, np.float64)
    errors = np.empty((len(seconds), len(limits)))
    for trials, finished in _copies(positions, seconds):
        for d, deadline in enumerate(limits):
            copies = (finished <= deadline).sum(axis=2)
            errors[trials, d] = np.sqrt(np.maximum(0, parts - copies).sum(axis=1))
    return errors


def least_squares_errors(assignment: Any, seconds: Seconds, deadlines: ArrayLike) -> Seconds:
    """min_r |A_F r - 1|, shape (trials, D): original gradient coding, approximated from the finished workers F.

    Worker j of the assignment A is finished at delta_j * s_j.

    Notes:
        A worker sends the plain sum of its gradients, the server weighs what it has by r. With the workers of a
        trial sorted by finishing time every F is a prefix. In the Cholesky factor of the Gram matrix of [A | 1], the
        last row holds the coordinates of 1 along the columns of A made orthogonal in that order, so one
        factorization a trial gives the errors at all deadlines: N minus the squares of the first |F| of them.
        A ridge takes care of dependent columns.

    References:
        arXiv:2405.19509, the comparison in its approximate experiments.

    Example:
        >>> A = coding.fractional(4, 4, 2)  # worker 0 covers chunks 0 and 1, worker 2 the other two
        >>> least_squares_errors(A, np.array([[1.0, 2.0, 3.0, 4.0]]), [1, 2, 4, 6]).round(6)
        array([[2.      , 1.414214, 1.414214, 0.      ]])
    """
    assignment = coding.from_matrix(assignment)
    _check(assignment, 1, seconds)
    n, m = assignment.shape
    dense = assignment.T.toarray().astype(np.float64)
    finished = seconds * np.maximum(1, dense.sum(axis=1))  # 0 x inf is no number
    limits = np.asarray(deadlines, np.float64)
    errors = np.empty((len(seconds), len(limits)))
    gram = np.ones((m + 1, m + 1)) * n
    gram[:m, :m] = dense @ dense.T
    gram[:m, m] = gram[m, :m] = dense.sum(axis=1)
    gram[np.arange(m + 1), np.arange(m + 1)] += np.append(np.full(m, _RIDGE * np.trace(gram)), 1.0)
    for trials in _blocks(len(seconds), (m + 1) ** 2):
        order = np.argsort(finished[trials], axis=1)
        rows = np.concatenate([order, np.full((len(order), 1), m)], axis=1)
        along = np.linalg.cholesky(gram[rows[:, :, None], rows[:, None, :]])[:, m, :m]
        left = n - np.cumsum(np.pad(along**2, ((0, 0), (1, 0))), axis=1)
        count = (finished[trials][:, :, None] <= limits).sum(axis=1)
        squared = np.take_along_axis(left, count, axis=1)
        errors[trials] = np.sqrt(np.where(squared < _NO_ERROR, 0, squared))
    return errors


def copies_computed(positions: Any, seconds: Seconds, times: Seconds) -> Seconds:
    """How many chunks the workers have finished at `times` (trials,), wanted or not: shape (trials,)."""
    load = np.bincount(positions.indices, minlength=positions.shape[1])
    done = np.zeros(len(seconds))
    for k in range(1, int(load.max()) + 1):  # k * s_j as in the times, so nothing is divided and rounded
        done += ((k * seconds <= times[:, None]) & (k <= load) & np.isfinite(seconds)).sum(axis=1)
    return done


def rounded_up(times: Seconds, clock: float | None) -> Seconds:
    """Times up to the next multiple of `clock`, as the paper counts them; as they are without one.

    Example:
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


def _check(positions: Any, parts: int, seconds: Seconds) -> None:
    coding.check(positions, parts)
    if seconds.ndim != 2 or seconds.shape[1] != positions.shape[1]:
        raise UserError(f"seconds has shape {seconds.shape}; it must be (trials, {positions.shape[1]} workers)")
    if not (seconds > 0).all():
        raise UserError("seconds must be > 0 (inf for a failed worker)")
