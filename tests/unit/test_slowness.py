"""Who was slow and what it cost, against runs whose paces are known."""

from pathlib import Path

import numpy as np
import pytest

from psgc.config import from_yaml_text
from psgc.run_rows import Outcome
from psgc.tools.report import paces, sentences
from psgc.tools.run_directory import RecordedRun
from tests.unit.recorded_runs import CONFIG, timeline_of


def run_of(seconds, took=0.025, abandoned=(), uncoded=None, timeline=True, coding="", chunks=None):
    """A run of equal iterations, in which each worker does one chunk, or none where its seconds are nan.

    abandoned: (worker, seconds) of chunks that were given up.
    """
    each_worker = [(worker, each) for worker, each in enumerate(seconds, start=1) if not np.isnan(each)]
    entries = [(worker, worker - 1, t, 0.0, each, Outcome.USED) for t in range(3) for worker, each in each_worker]
    entries += [(worker, 0, 0, 0.0, each, Outcome.ABANDONED) for worker, each in abandoned]
    config = from_yaml_text(f"{CONFIG}iterations: 3\noutput: out\n{coding}")
    iterations = {"iteration": np.arange(3), "seconds": np.full(3, took)}
    columns = timeline_of(entries) if timeline else None
    summary = {"uncoded_seconds_per_iteration": uncoded}
    known = len(seconds) if chunks is None else chunks
    return RecordedRun(Path(), config, iterations, columns, summary, [], len(seconds), known)


def test_one_slow_worker():
    assert sentences(run_of([0.01, 0.01, 0.04, 0.01], uncoded=0.04)) == [
        "Worker 3 was slow: 40.0 ms for a chunk, 4.0 times as long as the median worker, which takes 10.0 ms.",
        "An iteration took 25.0 ms in the median. If all workers were as fast as the median one, its computing would "
        "take 10.0 ms. Slow and lost workers, messages, decoding and steps cost 15.0 ms (60 %).",
        "Waiting for all workers without redundancy (schedule uncoded) would have taken at least 40.0 ms at the same "
        "speeds, 1.6 times as long.",
    ]


def test_the_slowest_are_named_first_and_the_others_counted():
    fast = 20 * [0.01]
    two = sentences(run_of([0.02, *fast, 0.05]))[0]
    assert two == (
        "Workers 22 and 1 were slow: 50.0 ms and 20.0 ms for a chunk, 5.0 and 2.0 times as long as the median worker, "
        "which takes 10.0 ms."
    )
    many = sentences(run_of([0.02, 0.03, 0.04, 0.05, 0.06, 0.07, *fast]))[0]
    assert many.startswith("Workers 6, 5, 4 and 3 were slow: 70.0 ms, 60.0 ms, 50.0 ms and 40.0 ms for a chunk, ")
    assert many.endswith("; 2 more took over 1.2 times as long.")


def test_nobody_was_slow():
    assert sentences(run_of([0.01, 0.0105, 0.01], took=0.01))[:2] == [
        "No worker was slow: the slowest, worker 2, took 10.5 ms for a chunk, 1.05 times as long as the median worker.",
        "An iteration took 10.0 ms in the median. If all workers were as fast as the median one, its computing would "
        "take 10.0 ms. Slow and lost workers, messages, decoding and steps cost 0.0 ms (0 %).",
    ]


def test_copies_that_are_needed_are_counted():
    coding = "coding: {parts: 2}\n"
    assert "its computing would take 20.0 ms" in sentences(run_of(4 * [0.01], coding=coding))[1]


def test_who_finished_nothing_is_as_slow_as_what_it_gave_up_after():
    run = run_of([0.01, 0.01, np.nan, 0.01, np.nan], abandoned=[(3, 0.2), (3, 0.3), (1, 9.0)])
    assert paces(run) == pytest.approx([0.01, 0.01, 0.3, 0.01, np.nan], nan_ok=True)
    assert sentences(run)[0].startswith("Worker 3 was slow: 300.0 ms for a chunk, 30.0 times")


def test_where_nothing_is_known_nothing_is_said():
    assert sentences(run_of([0.01, 0.01], timeline=False)) == []
    assert sentences(run_of([np.nan, np.nan])) == []
    assert len(sentences(run_of([0.01, 0.01], chunks=0))) == 1


def test_what_waiting_would_have_taken_is_known_before_the_end_too():
    """Each worker's own share, here two chunks, at its pace; of who did nothing in an iteration, its usual one."""
    run = run_of([0.01, 0.01, 0.05, 0.01], chunks=8)
    assert sentences(run)[2].startswith(
        "Waiting for all workers without redundancy (schedule uncoded) would have taken"
    )
    assert "at least 100.0 ms at the same speeds, 4.0 times as long." in sentences(run)[2]
    none = run_of([0.01, 0.01, np.nan, 0.01], abandoned=[(3, 0.2)], chunks=8)
    assert "at least 400.0 ms" in sentences(none)[2]
