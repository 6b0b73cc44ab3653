"""How fast each worker was, in an iteration and so far: what the bound and the time without redundancy need."""

from collections.abc import Mapping

import numpy as np

from psgc.reporting.timeline import ABANDONED


class Paces:
    """What is known of the workers, (workers,), from the entries of the timeline so far.

    own_chunks: (workers,), how many chunks each would do if nothing were redundant.
    """

    def __init__(self, own_chunks: np.ndarray) -> None:
        self._own_chunks = own_chunks
        self._finished_seconds, self._finished = np.zeros(len(own_chunks)), np.zeros(len(own_chunks))
        self._abandoned = np.zeros(len(own_chunks))  # longest time after which a worker abandoned a chunk

    def count(self, entries: np.ndarray) -> None:
        """How long each worker has taken for what it finished, and for what it abandoned."""
        worker, seconds = entries["worker"] - 1, entries["seconds"]
        done, abandoned = entries["outcome"] < ABANDONED, entries["outcome"] == ABANDONED
        self._finished_seconds += np.bincount(worker[done], seconds[done], len(self._finished))
        self._finished += np.bincount(worker[done], minlength=len(self._finished))
        np.maximum.at(self._abandoned, worker[abandoned], seconds[abandoned])

    def seconds_per_chunk(self, reports: Mapping[tuple[int, int, int], tuple[float, float]]) -> np.ndarray:
        """Of each worker in an iteration; reports: (start, seconds) by (worker, chunk, which time)."""
        # A worker that finished nothing by T had more than T seconds per chunk, so infinity changes no bound below T.
        total, count = [0.0] * len(self._finished), [0] * len(self._finished)
        for (worker, _, _), (_, seconds) in reports.items():
            total[worker - 1] += seconds
            count[worker - 1] += 1
        return np.array([t / n if n else np.inf for t, n in zip(total, count, strict=True)])

    def uncoded_seconds(self, speeds: np.ndarray) -> float:
        """What an iteration would take without redundancy. speeds: its seconds per chunk."""
        # the slowest worker's own chunks at its speed: this iteration's, else its mean, else the longest it abandoned
        mean = np.divide(self._finished_seconds, self._finished, out=self._abandoned.copy(), where=self._finished > 0)
        return float((self._own_chunks * np.where(np.isfinite(speeds), speeds, mean)).max())
