"""Which workers were slow in a run, and what that cost, in sentences."""

import warnings

import numpy as np

from psgc.record.summary import duration
from psgc.run_rows import Outcome
from psgc.tools.run_directory import RecordedRun
from psgc.validation import either

SLOW = 1.2  # times as long as the median worker takes for a chunk
NAMED = 4  # slow workers that are named


def paces(run: RecordedRun) -> np.ndarray:
    """Seconds that each worker took for a chunk, (workers,): the mean over the iterations in which it did any.

    For a worker that did none, the longest time after which it abandoned one, else nan.
    """
    if run.timeline is None or not run.in_timeline.any():
        return np.full(run.workers, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan
        pace = np.nanmean(run.seconds_per_chunk(), axis=0)
    longest = np.full(run.workers, -np.inf)
    given_up = run.timeline["outcome"] == Outcome.ABANDONED
    np.maximum.at(longest, run.timeline["worker"][given_up] - 1, run.timeline["seconds"][given_up])
    return np.where(np.isnan(pace) & (longest > 0), longest, pace)


def sentences(run: RecordedRun) -> list[str]:
    """Which workers were slow, what it cost, and what waiting for all would have cost; empty when it is unknown."""
    pace = paces(run)
    if not np.isfinite(pace).any():
        return []
    return [_who(pace), *_cost(run, pace)]


def _who(pace: np.ndarray) -> str:
    median = float(np.nanmedian(pace))
    by_pace = np.argsort(-np.nan_to_num(pace), kind="stable")
    slow = [worker for worker in by_pace.tolist() if pace[worker] > SLOW * median]
    if not slow:
        worker = int(by_pace[0])
        return (
            f"No worker was slow: the slowest, worker {worker + 1}, took {duration(pace[worker])} for a chunk, "
            f"{pace[worker] / median:.2f} times as long as the median worker."
        )
    named = slow[:NAMED]
    who = "Worker {} was" if len(named) == 1 else "Workers {} were"
    names = either((str(worker + 1) for worker in named), "and")
    times = either((duration(pace[worker]) for worker in named), "and")
    ratios = either((f"{pace[worker] / median:.1f}" for worker in named), "and")
    text = (
        f"{who.format(names)} slow: {times} for a chunk, {ratios} times as long as the median worker, "
        f"which takes {duration(median)}"
    )
    more = len(slow) - len(named)
    return text + (f"; {more} more took over {SLOW:g} times as long." if more else ".")


def _cost(run: RecordedRun, pace: np.ndarray) -> list[str]:
    took = float(np.median(run.iterations["seconds"]))
    if not run.chunks or took <= 0:
        return []
    share = run.chunks * run.config.coding.parts / run.workers  # chunks that each would do without redundancy
    even = share * float(np.nanmedian(pace))
    uncoded = run.summary.get("uncoded_seconds_per_iteration") if run.summary else None
    if not isinstance(uncoded, float):  # it is written when a run ends
        paces_then = np.where(np.isnan(every := run.seconds_per_chunk()), pace, every)
        uncoded = float(np.median(np.nan_to_num(share * paces_then).max(axis=1)))
    return [
        f"An iteration took {duration(took)} in the median. If all workers were as fast as the median one, its "
        f"computing would take {duration(even)}. Slow and lost workers, messages, decoding and steps cost "
        f"{duration(max(0.0, took - even))} ({100 * max(0.0, 1 - even / took):.0f} %).",
        f"Waiting for all workers without redundancy (schedule uncoded) would have taken at least {duration(uncoded)} "
        f"at the same speeds, {uncoded / took:.1f} times as long.",
    ]
