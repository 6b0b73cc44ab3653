"""The clairvoyant bound T* of the iterations of a run, computed as the run goes."""

import math
import time

import numpy as np
import scipy.sparse

from psgc import coding
from psgc.run_rows import IterationRow

SHARE = 0.02  # of the run's time, that the bounds may take


class BoundSampler:
    """Computes the bound of every iteration, or where that takes too long, of some, spread evenly over the run.

    assignment: (chunks, workers), which chunks a worker holds; parts: copies that determine a chunk.
    """

    def __init__(self, assignment: scipy.sparse.csr_array, parts: int) -> None:
        self._assignment = assignment
        self._parts = parts
        self._spent = self._elapsed = 0.0  # seconds, for bounds and of the run

    def bound(self, row: IterationRow, done: np.ndarray, pace: np.ndarray) -> float:
        """T* in seconds, nan when it is left out or not finite.

        done: the entries of the timeline that were done in the iteration; pace: (workers,), seconds per chunk.
        """
        self._elapsed += row.seconds
        if self._spent > SHARE * self._elapsed:
            return math.nan
        began = time.thread_time()
        # a worker that finished nothing by T had more than T seconds per chunk, so infinity changes no bound below T
        speeds = np.where(np.isnan(pace), np.inf, pace)
        bound = coding.clairvoyant_bound(self._held(row, done), self._parts, speeds)
        self._spent += time.thread_time() - began
        return bound if math.isfinite(bound) else math.nan  # inf: of an approximate iteration

    def _held(self, row: IterationRow, done: np.ndarray) -> scipy.sparse.csr_array:
        """Which chunks each worker could do: those it holds, and after a loss also those that it took over."""
        if not row.lost or not len(done):
            return self._assignment
        place = (done["chunk"], done["worker"] - 1)
        extra = scipy.sparse.csr_array((np.ones(len(done)), place), shape=self._assignment.shape)
        return coding.from_matrix((self._assignment + extra > 0).astype(np.int8))
