"""The values that loggers and Prometheus get for each iteration: one table of names."""

import math
from bisect import bisect
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

import numpy as np

from psgc.run_rows import HELD_OUT, IterationRow

SLOW = 1.5  # times the median time of a chunk; higher than the limit of `psgc report`, since one iteration is noisy


class Measure(NamedTuple):
    text: str
    is_total: bool = False  # a total since the beginning of the run, which never falls


MEASURES: Mapping[str, Measure] = {
    "loss": Measure("loss at the parameters before the newest step"),
    "test_loss": Measure("loss of the held-out rows"),
    "test_accuracy": Measure("accuracy on the held-out rows"),
    "seconds": Measure("seconds of the newest iteration"),
    "efficiency": Measure("T*/T: the shortest possible time of the iteration over its time"),
    "error_measure": Measure("share of the copies that is missing (approximate recovery)"),
    "lost_workers": Measure("workers that are lost"),
    "slow_workers": Measure(f"workers whose chunks took more than {SLOW:g} times the median"),
    "iterations": Measure("finished iterations", is_total=True),
    "chunks": Measure("copies of chunks that counted", is_total=True),
    "redundant_chunks": Measure("copies of chunks that were computed and did not count", is_total=True),
    "bytes": Measure("bytes that rank 0 sent and received", is_total=True),
    "restores": Measure("times that psgc launch started the run again with all workers", is_total=True),
    "takeovers": Measure("times that a worker took over from rank 0", is_total=True),
}


def of_row(row: IterationRow) -> dict[str, float]:
    """The measures that a row has, without unknown ones."""
    values = {name: getattr(row, name) for name in ("loss", "seconds", "efficiency", "error_measure", *HELD_OUT)}
    return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


def slow_workers(pace: np.ndarray) -> int:
    """The number of slow workers. pace: (workers,), seconds per chunk, nan for a worker that has done no chunk.

    >>> slow_workers(np.array([1.0, 1.2, np.nan, 5.0])), slow_workers(np.array([0.02, 0.2]))
    (1, 1)
    """
    known = sorted(seconds for seconds in pace.tolist() if not math.isnan(seconds))  # np.median is slower
    return len(known) - bisect(known, SLOW * median(known)) if known else 0
