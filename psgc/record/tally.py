"""Totals and figures of each iteration, for the record and the summary of a run."""

import math
import time
from array import array

import numpy as np
import scipy.sparse

from psgc import coding
from psgc.record.timeline import passes
from psgc.run_rows import IterationRow, Outcome

SHARE = 0.02  # share of the run's time that computing the bounds may take


def seconds_per_chunk(entries: np.ndarray, workers: int) -> np.ndarray:
    """The mean time of a chunk of each worker, (workers,); nan for a worker without a chunk in `entries`."""
    count = np.bincount(entries["worker"], minlength=workers + 1)[1:]
    total = np.bincount(entries["worker"], entries["seconds"], workers + 1)[1:]
    mean: np.ndarray = np.divide(total, count, out=np.full(workers, np.nan), where=count > 0)
    return mean


def overhead(entries: np.ndarray, seconds: float) -> float:
    """The share of an iteration that went into messages, decoding and the step; nan when no copy counts.

    For each worker, take the time it had computed when its last copy that counts was done. The iteration less the
    longest of these times is overhead. So waiting for a slow worker is not overhead, nor is the time in which a worker
    finishes a chunk of the iteration before.

    entries: the timeline of the iteration
    seconds: the time of the iteration
    """
    entries = entries[np.lexsort((entries["start"], entries["worker"]))]
    used = entries["outcome"] == Outcome.USED
    if not used.any():
        return math.nan
    total = np.cumsum(entries["seconds"])
    begins = np.flatnonzero(np.diff(entries["worker"], prepend=0))  # where the entries of each worker begin
    # `total` runs over all workers; with the offset of its worker it begins at the start of the worker's first chunk
    offset = (entries["start"] + entries["seconds"] - total)[begins]
    computing = total + np.repeat(offset, np.diff(begins, append=len(entries)))  # time until each chunk was done
    return max(0.0, 1 - float(computing[used].max()) / seconds)


class Tally:
    """Totals of a run, and a few numbers of each iteration.

    own_chunks: (workers,), number of chunks of each worker without redundancy
    num_chunks: of the run
    """

    def __init__(self, own_chunks: np.ndarray, num_chunks: int) -> None:
        self._own_chunks = own_chunks
        # of each iteration, nan when unknown
        self.seconds, self.bounds, self.error_measures = array("d"), array("d"), array("d")
        self.actual_errors = array("d")  # of approximate iterations
        # of each iteration since the run was started or resumed
        self.uncoded = array("d")  # computing time without redundancy, in seconds
        self.overheads = array("d")
        self.chunk_seconds = array("d")  # median
        self.passes = self.delivered = 0  # number of passes, and of the chunks that they finished
        self.bytes = self.redundant = 0  # totals of the rows
        self.final_loss: float | None = None
        self.chunks = np.zeros(len(Outcome), int)  # number of chunks with each outcome
        self.spent = np.zeros(len(Outcome))  # seconds spent on chunks with each outcome
        self._was_used = np.zeros(num_chunks, bool)  # since the run was started or resumed
        # of each worker: total seconds and number of its finished chunks
        self._finished_seconds, self._finished = np.zeros(len(own_chunks)), np.zeros(len(own_chunks))
        self._abandoned = np.zeros(len(own_chunks))  # longest time after which a worker abandoned a chunk

    @property
    def never_used(self) -> int | None:
        """The number of chunks that were in no gradient. None in a resumed run: its timeline may lack iterations."""
        is_resumed = len(self.uncoded) < len(self.seconds)
        return None if is_resumed else int(np.count_nonzero(~self._was_used))

    def count(self, entries: np.ndarray) -> None:
        worker, seconds, outcome = entries["worker"] - 1, entries["seconds"], entries["outcome"]
        self.chunks += np.bincount(outcome, minlength=len(self.chunks))
        self.spent += np.bincount(outcome, seconds, len(self.spent))
        delivered = outcome <= Outcome.LATE
        abandoned = outcome == Outcome.ABANDONED
        self._finished_seconds += np.bincount(worker[delivered], seconds[delivered], len(self._finished))
        self._finished += np.bincount(worker[delivered], minlength=len(self._finished))
        np.maximum.at(self._abandoned, worker[abandoned], seconds[abandoned])

    def scale(self, factor: float) -> None:
        """What is counted so far stands for `factor` times as many iterations: the others are not in the timeline."""
        self.chunks = np.rint(self.chunks * factor).astype(int)
        self.spent *= factor

    def row(self, row: IterationRow) -> None:
        self.seconds.append(row.seconds)
        self.bounds.append(row.bound)
        self.error_measures.append(row.error_measure)
        if row.missing and math.isfinite(row.actual_error):
            self.actual_errors.append(row.actual_error)
        self.bytes += row.bytes
        self.redundant += row.redundant
        if row.loss is not None:  # an evaluation has none
            self.final_loss = row.loss

    def iteration(self, row: IterationRow, entries: np.ndarray, pace: np.ndarray) -> None:
        """Count an iteration, after its chunks.

        entries: the timeline of the iteration
        pace: (workers,), mean seconds of a finished chunk
        """
        mean = np.divide(self._finished_seconds, self._finished, out=self._abandoned.copy(), where=self._finished > 0)
        # a worker's pace is that of this iteration, else its mean pace, else the time after which it abandoned a chunk
        self.uncoded.append(float((self._own_chunks * np.where(np.isnan(pace), mean, pace)).max()))
        self.overheads.append(math.nan if row.error_measure or row.is_evaluated else overhead(entries, row.seconds))
        delivered = entries[entries["outcome"] <= Outcome.LATE]
        self.passes += len(passes(delivered)["worker"])
        self.delivered += len(delivered)
        self._was_used[entries["chunk"][entries["outcome"] == Outcome.USED]] = True
        self.chunk_seconds.append(float(np.median(delivered["seconds"])) if len(delivered) else math.nan)


class BoundSampler:
    """Computes the bound T* of every iteration; if that takes too long, of some, spread evenly over the run.

    assignment: (chunks, workers), 0/1 matrix: the chunks that each worker holds
    parts: number of copies that determine a chunk
    """

    def __init__(self, assignment: scipy.sparse.csr_array, parts: int) -> None:
        self._assignment = assignment
        self._parts = parts
        self._spent = self._elapsed = 0.0  # seconds for bounds, seconds of the run

    def bound(self, row: IterationRow, done: np.ndarray, pace: np.ndarray) -> float:
        """T* in seconds, nan when it is left out or not finite.

        done: the timeline entries of the chunks that were done in the iteration
        pace: (workers,), seconds per chunk
        """
        self._elapsed += row.seconds
        if self._spent > SHARE * self._elapsed:
            return math.nan
        began = time.thread_time()
        # a worker without a finished chunk at time T takes more than T per chunk; infinity gives the same bound
        speeds = np.where(np.isnan(pace), np.inf, pace)
        bound = coding.clairvoyant_bound(self._held(row, done), self._parts, speeds)
        self._spent += time.thread_time() - began
        return bound if math.isfinite(bound) else math.nan  # it is inf in an approximate iteration

    def _held(self, row: IterationRow, done: np.ndarray) -> scipy.sparse.csr_array:
        """The chunks that each worker could do: the chunks it holds, and after a loss those it took over."""
        if not row.lost or not len(done):
            return self._assignment
        place = (done["chunk"], done["worker"] - 1)
        extra = scipy.sparse.csr_array((np.ones(len(done)), place), shape=self._assignment.shape)
        return coding.from_matrix((self._assignment + extra > 0).astype(np.int8))
