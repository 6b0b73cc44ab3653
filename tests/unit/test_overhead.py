"""What of an iteration is overhead, and what is said to make it less."""

import numpy as np
import pytest

from psgc.reporting.summary import advice
from psgc.reporting.tally import overhead
from psgc.reporting.timeline import ENTRY
from psgc.run_rows import Outcome

USED, LATE, ABANDONED, _ = Outcome


def share(entries, seconds):
    """Entries: (worker, start, seconds, outcome)."""
    return overhead(np.array([(w, 0, 0, *others) for w, *others in entries], ENTRY), seconds)


def test_what_the_worker_that_computed_longest_was_not_computing_is_overhead():
    """Also the time between its chunks. What others did, or it did for nothing later, does not count."""
    entries = [(1, 0.0, 1.0, USED), (1, 2.0, 1.0, USED), (1, 3.0, 5.0, ABANDONED), (2, 0.0, 1.0, USED)]
    assert share(entries, 4.0) == 1 - 2.0 / 4.0
    assert share(entries[::-1], 4.0) == 1 - 2.0 / 4.0


def test_who_waits_for_a_straggler_has_no_overhead():
    assert share([(1, 0.0, 1.0, USED), (2, 0.0, 10.0, USED)], 10.0) == 0.0


def test_a_chunk_of_the_iteration_before_is_no_overhead():
    assert share([(1, 3.0, 1.0, USED), (1, 5.0, 1.0, USED)], 6.0) == pytest.approx(1 - 5 / 6)


def test_without_a_copy_that_counts_there_is_none():
    assert np.isnan(share([], 1.0))
    assert np.isnan(share([(1, 0.0, 1.0, LATE)], 1.0))


SUMMARY = {
    "workers": 8,
    "iterations": 10,
    "transfer": "per_chunk",
    "chunks_per_worker": 8,
    "batch": None,
    "chunks_used": 640,
    "chunks_late": 0,
    "bytes": 10_000,
    "seconds_per_chunk": 0.00164,
}


@pytest.mark.parametrize(
    ("overhead", "changed", "said"),
    [
        (0.3, {}, None),
        (None, {}, None),
        (0.31, {}, "a chunk takes 1.6 ms; try coding.chunks_per_worker: 4"),
        (0.5, {}, "a chunk takes 1.6 ms; try coding.chunks_per_worker: 2"),  # 24 messages where there were 72
        (0.9, {}, "a chunk takes 1.6 ms; try coding.chunks_per_worker: 1"),
        (0.5, {"batch": {"size": 10, "epochs": 3}}, "a chunk takes 1.6 ms; try coding.chunks_per_worker: 2"),
        (0.5, {"batch": 10}, "a chunk takes 1.6 ms; try coding.chunks_per_worker: 2, batch: 40"),
        (0.5, {"chunks_per_worker": 1, "chunks_used": 80}, "a chunk takes 1.6 ms; try fewer workers (psgc launch -n)"),
        (0.5, {"chunks_per_worker": None}, "a chunk takes 1.6 ms; try fewer chunks"),
        (0.5, {"transfer": "combined"}, "a chunk takes 1.6 ms; try coding.chunks_per_worker: 2"),
        (0.5, {"transfer": "combined", "bytes": 10 << 30}, "a chunk takes 1.6 ms; try fewer workers (psgc launch -n)"),
    ],
)
def test_what_to_change_goes_by_the_messages(overhead, changed, said):
    assert advice(SUMMARY | {"overhead": overhead} | changed) == said
