"""The figures of a run that its record and its summary need, counted iteration by iteration."""

import math
import time
from array import array

import numpy as np
import scipy.sparse

from psgc import coding
from psgc.record.timeline import passes
from psgc.run_rows import IterationRow, Outcome

SHARE = 0.02  # of the run's time, that the bounds may take


def seconds_per_chunk(entries: np.ndarray, workers: int) -> np.ndarray:
    """The mean time of the chunks in `entries` of each worker, (workers,); nan for a worker that has none there."""
    count = np.bincount(entries["worker"], minlength=workers + 1)[1:]
    total = np.bincount(entries["worker"], entries["seconds"], workers + 1)[1:]
    mean: np.ndarray = np.divide(total, count, out=np.full(workers, np.nan), where=count > 0)
    return mean


def overhead(entries: np.ndarray, seconds: float) -> float:
    """The share of one iteration that went into messages, decoding and the step; nan when no copy counts.

    Of the workers whose copies count, take the one that had computed longest when its last such copy was done. The
    rest of the iteration is overhead. So a slow worker, and waiting for one, is not overhead, nor is the time until a
    worker has finished a chunk of the iteration before.

    entries: its part of the timeline; seconds: what it took.
    """
    entries = entries[np.lexsort((entries["start"], entries["worker"]))]
    used = entries["outcome"] == Outcome.USED
    if not used.any():
        return math.nan
    total = np.cumsum(entries["seconds"])
    begins = np.flatnonzero(np.diff(entries["worker"], prepend=0))  # where the entries of each worker begin
    # until it began, less what workers above it computed
    waited = (entries["start"] + entries["seconds"] - total)[begins]
    computing = total + np.repeat(waited, np.diff(begins, append=len(entries)))  # until each chunk was done
    return max(0.0, 1 - float(computing[used].max()) / seconds)


class Tally:
    """Totals, and a few numbers of 8 bytes for each iteration.

    own_chunks: (workers,), how many chunks each worker would do if nothing were redundant.
    """

    def __init__(self, own_chunks: np.ndarray) -> None:
        self._own_chunks = own_chunks
        # for each iteration, nan when it is not known
        self.seconds, self.bounds, self.error_measures = array("d"), array("d"), array("d")
        self.actual_errors = array("d")  # of those that lacked something
        # for each iteration since this part of the run began, when it was resumed
        self.uncoded = array("d")  # seconds that it would have taken without redundancy
        self.overheads = array("d")
        self.chunk_seconds = array("d")  # median
        self.passes = 0  # in which the chunks were computed that workers have finished
        self.bytes = 0
        self.final_loss: float | None = None
        self.chunks = np.zeros(len(Outcome), int)  # how many had each outcome
        self.spent = np.zeros(len(Outcome))  # seconds that workers worked on them
        self._finished_seconds, self._finished = np.zeros(len(own_chunks)), np.zeros(len(own_chunks))
        self._abandoned = np.zeros(len(own_chunks))  # longest time after which a worker abandoned a chunk

    def count(self, entries: np.ndarray) -> None:
        worker, seconds, outcome = entries["worker"] - 1, entries["seconds"], entries["outcome"]
        self.chunks += np.bincount(outcome, minlength=len(self.chunks))
        self.spent += np.bincount(outcome, seconds, len(self.spent))
        delivered = outcome <= Outcome.LATE
        abandoned = outcome == Outcome.ABANDONED
        self._finished_seconds += np.bincount(worker[delivered], seconds[delivered], len(self._finished))
        self._finished += np.bincount(worker[delivered], minlength=len(self._finished))
        np.maximum.at(self._abandoned, worker[abandoned], seconds[abandoned])

    def row(self, row: IterationRow) -> None:
        self.seconds.append(row.seconds)
        self.bounds.append(row.bound)
        self.error_measures.append(row.error_measure)
        if row.missing and math.isfinite(row.actual_error):
            self.actual_errors.append(row.actual_error)
        self.bytes += row.bytes
        if row.loss is not None:  # an evaluation has none
            self.final_loss = row.loss

    def iteration(self, row: IterationRow, entries: np.ndarray, pace: np.ndarray) -> None:
        """An iteration whose chunks have been counted. entries: of these; pace: (workers,), mean time of those done."""
        mean = np.divide(self._finished_seconds, self._finished, out=self._abandoned.copy(), where=self._finished > 0)
        # the slowest worker's own chunks at its pace: that of this iteration, else its mean, else what it abandoned
        self.uncoded.append(float((self._own_chunks * np.where(np.isnan(pace), mean, pace)).max()))
        self.overheads.append(math.nan if row.error_measure or row.is_evaluated else overhead(entries, row.seconds))
        delivered = entries[entries["outcome"] <= Outcome.LATE]
        self.passes += len(passes(delivered)["worker"])
        self.chunk_seconds.append(float(np.median(delivered["seconds"])) if len(delivered) else math.nan)


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
