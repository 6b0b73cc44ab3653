"""The share of a run's time that went into messages, decoding and steps, and a setting that reduces it.

Of the workers whose copies count in an iteration, take the one that had computed longest when its last such copy was
done. The rest of the iteration is overhead. So a slow worker, and waiting for one, is not overhead, nor is the time
until a worker has finished a chunk of the iteration before.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from psgc.messages import MESSAGE
from psgc.run_rows import Outcome

MUCH = 0.3  # of the time: said in the summary


def overhead(entries: np.ndarray, seconds: float) -> float:
    """The share of one iteration that was overhead; nan when no copy counts.

    entries: its part of the timeline; seconds: what it took.
    """
    entries = entries[np.lexsort((entries["start"], entries["worker"]))]
    used = entries["outcome"] == Outcome.USED
    if not used.any():
        return math.nan
    total = np.cumsum(entries["seconds"])
    begins = np.flatnonzero(np.diff(entries["worker"], prepend=0))  # where the entries of each worker begin
    waited = (entries["start"] + entries["seconds"] - total)[
        begins
    ]  # until it began, less what workers above it computed
    computing = total + np.repeat(waited, np.diff(begins, append=len(entries)))  # until each chunk was done
    return max(0.0, 1 - float(computing[used].max()) / seconds)


def advice(summary: Mapping[str, Any]) -> str | None:
    """What to change in a run with this summary; None where the overhead is not `MUCH`."""
    share = summary.get("overhead")
    if share is None or share <= MUCH:
        return None
    each = f"a chunk takes {1e3 * summary['seconds_per_chunk']:.1f} ms"
    own = summary.get("chunks_per_worker")
    if own is None:
        return f"{each}; try fewer chunks"
    fewer = own
    while fewer > 1 and _share(summary, fewer / own) > MUCH:
        fewer //= 2
    if _share(summary, fewer / own) > 0.9 * share:  # messages are not for chunks, or there is one chunk already
        return f"{each}; try fewer workers (psgc launch -n)"
    batch = summary.get("batch")
    rows = f", batch: {batch * own // fewer}" if isinstance(batch, int) else ""  # of each chunk
    return f"{each}; try coding.chunks_per_worker: {fewer}{rows}"


def _share(summary: Mapping[str, Any], chunks: float) -> float:
    """The overhead with `chunks` times as many chunks: proportional to messages, and for vectors to their bytes."""
    copies = (summary["chunks_used"] + summary["chunks_late"]) / summary["iterations"]
    others = summary["workers"]  # with `per_chunk` as large as reports of chunks
    if summary["transfer"] == "combined":
        others = 2 * summary["workers"] + summary["bytes"] / summary["iterations"] / MESSAGE
    rest = summary["overhead"] * (others + chunks * copies) / (others + copies)
    return float(rest / (1 - summary["overhead"] + rest))
