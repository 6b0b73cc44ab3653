"""How much of a run's time went into messages, decoding and steps, and which setting makes it less.

The overhead of an iteration is what it took longer than the worker whose work decided it was computing: the one that
had computed longest when its last copy that counts was done. That a straggler is slow, or everybody waits for one, is
not overhead. Waiting until a chunk of the iteration before is done is none either.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from psgc.messages import MESSAGE

MUCH = 0.3  # of the time: said in the summary


def overhead(
    timeline: Mapping[str, np.ndarray], iterations: np.ndarray, seconds: np.ndarray, exact: np.ndarray
) -> float | None:
    """The share of an iteration that was overhead, in the median; None when there is no iteration to tell it from.

    timeline: as in the run directory, outcome 0 is USED; iterations, seconds, exact: of each iteration the number, the
    time, and whether all was recovered. The first one is left out, in which ranks are still being set up.
    """
    order = np.lexsort((timeline["start"], timeline["worker"], timeline["iteration"]))
    iteration, worker, start, took, outcome = (
        timeline[name][order] for name in ("iteration", "worker", "start", "seconds", "outcome")
    )
    begins = np.flatnonzero(np.diff(iteration, prepend=-1) | np.diff(worker, prepend=-1))  # the first of each worker
    before = np.cumsum(took) - took
    lengths = np.diff(begins, append=len(order))
    computing = before + took + np.repeat(start[begins] - before[begins], lengths)  # when each chunk was done
    counted = np.isin(iterations, iteration[outcome == 0]) & exact
    counted[0 : len(counted) > 1] = False
    used = (outcome == 0) & np.isin(iteration, iterations[counted])
    if not used.any():
        return None
    longest = np.zeros(len(iterations))
    np.maximum.at(longest, np.searchsorted(iterations, iteration[used]), computing[used])
    return float(np.median(1 - longest[counted] / seconds[counted]).clip(0.0))


def advice(summary: Mapping[str, Any]) -> str | None:
    """What to change in a run with this summary; None where the overhead is not `MUCH`."""
    share = summary.get("overhead")
    if share is None or share <= MUCH:
        return None
    each = f"a chunk takes {1e3 * summary['seconds_per_chunk']:.1f} ms"
    own = summary.get("chunks_per_worker")
    if own is None:
        return f"{each}; try an assignment with fewer chunks"
    fewer = own
    while fewer > 1 and _share(summary, fewer / own) > MUCH:
        fewer //= 2
    if _share(summary, fewer / own) > 0.9 * share:  # messages are not for chunks, or there is one chunk already
        return f"{each}; try fewer workers (psgc launch -n)"
    rows = "" if summary.get("batch") is None else f", batch: {summary['batch'] * own // fewer}"
    return f"{each}; try coding.chunks_per_worker: {fewer}{rows}"


def _share(summary: Mapping[str, Any], chunks: float) -> float:
    """The overhead with so many times as many chunks: it goes by messages, and those of vectors by their bytes."""
    copies = (summary["chunks_used"] + summary["chunks_late"]) / summary["iterations"]
    others = summary["workers"]  # with `per_chunk` as large as reports of chunks
    if summary["transfer"] == "combined":
        others = 2 * summary["workers"] + summary["bytes"] / summary["iterations"] / MESSAGE
    rest = summary["overhead"] * (others + chunks * copies) / (others + copies)
    return float(rest / (1 - summary["overhead"] + rest))
