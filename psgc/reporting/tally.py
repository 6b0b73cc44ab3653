"""The figures of a run that its summary needs, counted iteration by iteration."""

import math
from array import array

import numpy as np

from psgc.reporting.overhead import overhead
from psgc.run_rows import IterationRow, Outcome


def seconds_per_chunk(entries: np.ndarray, workers: int) -> np.ndarray:
    """The mean time of the chunks in `entries` of each worker, (workers,); nan for a worker that has none there."""
    count = np.bincount(entries["worker"], minlength=workers + 1)[1:]
    total = np.bincount(entries["worker"], entries["seconds"], workers + 1)[1:]
    mean: np.ndarray = np.divide(total, count, out=np.full(workers, np.nan), where=count > 0)
    return mean


class Tally:
    """Totals, and a few numbers of 8 bytes for each iteration.

    own_chunks: (workers,), how many chunks each worker would do if nothing were redundant.
    """

    def __init__(self, own_chunks: np.ndarray) -> None:
        self._own_chunks = own_chunks
        # for each iteration, nan when it is not known
        self.seconds, self.bounds, self.error_measures = array("d"), array("d"), array("d")
        self.actual_errors = array("d")  # of those that lacked something
        # for each iteration of this part of the run, when it goes on with an earlier one
        self.uncoded = array("d")  # seconds that it would have taken without redundancy
        self.overheads = array("d")
        self.chunk_seconds = array("d")  # median
        self.bytes = 0
        self.final_loss: float | None = None
        self.chunks = np.zeros(len(Outcome), int)  # how many had each outcome
        self.spent = np.zeros(len(Outcome))  # seconds that workers worked on them
        self._finished_seconds, self._finished = np.zeros(len(own_chunks)), np.zeros(len(own_chunks))
        self._abandoned = np.zeros(len(own_chunks))  # longest time after which a worker abandoned a chunk

    def count(self, entries: np.ndarray) -> None:
        """Chunks of the timeline, of any iteration."""
        worker, seconds, outcome = entries["worker"] - 1, entries["seconds"], entries["outcome"]
        self.chunks += np.bincount(outcome, minlength=len(self.chunks))
        self.spent += np.bincount(outcome, seconds, len(self.spent))
        delivered = outcome <= Outcome.LATE
        abandoned = outcome == Outcome.ABANDONED
        self._finished_seconds += np.bincount(worker[delivered], seconds[delivered], len(self._finished))
        self._finished += np.bincount(worker[delivered], minlength=len(self._finished))
        np.maximum.at(self._abandoned, worker[abandoned], seconds[abandoned])

    def row(self, row: IterationRow) -> None:
        """A row of iterations.csv."""
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
        delivered = entries["seconds"][entries["outcome"] <= Outcome.LATE]
        self.chunk_seconds.append(float(np.median(delivered)) if len(delivered) else math.nan)
