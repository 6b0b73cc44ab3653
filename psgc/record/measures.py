"""What loggers and Prometheus are told of each iteration: one table of names."""

import math
from bisect import bisect
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from psgc.run_rows import HELD_OUT, IterationRow

SLOW = 1.5  # times what a chunk takes in the median of the workers; more than in a report, for one iteration has noise


class Measure(NamedTuple):
    """is_total: it is counted from the beginning of the run, so it only grows."""

    text: str
    is_total: bool = False


MEASURES: Mapping[str, Measure] = {
    "loss": Measure("loss at the parameters before the newest step"),
    "test_loss": Measure("loss of the held-out rows"),
    "test_accuracy": Measure("accuracy on the held-out rows"),
    "seconds": Measure("seconds of the newest iteration"),
    "efficiency": Measure("T*/T: what the iteration had taken at best, over what it took"),
    "error_measure": Measure("share of the copies that is missing, of approximate recovery"),
    "lost_workers": Measure("workers that are not there"),
    "slow_workers": Measure(f"workers whose chunks took more than {SLOW:g} times the median"),
    "iterations": Measure("iterations that are done", is_total=True),
    "chunks": Measure("chunks whose copy counted", is_total=True),
    "redundant_chunks": Measure("chunks that were done and did not count", is_total=True),
    "bytes": Measure("bytes in and out of rank 0", is_total=True),
    "restores": Measure("times that psgc launch started the run again with everybody", is_total=True),
    "takeovers": Measure("times that a worker took over from rank 0", is_total=True),
}


def of_row(row: IterationRow) -> dict[str, float]:
    """What a row has of them, and is known."""
    values = {name: getattr(row, name) for name in ("loss", "seconds", "efficiency", "error_measure", *HELD_OUT)}
    return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


def slow_workers(pace: np.ndarray) -> int:
    """How many are slow. pace: (workers,), seconds of a chunk, nan for who has done none.

    >>> slow_workers(np.array([1.0, 1.2, np.nan, 5.0]))
    1
    """
    known = sorted(seconds for seconds in pace.tolist() if not math.isnan(seconds))  # np.median is slower
    return len(known) - bisect(known, SLOW * known[len(known) // 2]) if known else 0
