"""The summary: its numbers against a run computed by hand, and its lines for a person."""

import json

import numpy as np
import pytest

from psgc import __version__, coding
from psgc.record.recorder import Recorder
from psgc.record.summary import advice, duration, lines, summarise
from psgc.record.tally import overhead
from psgc.record.timeline import ENTRY
from psgc.run_rows import IterationRow, Outcome, WorkerEvent
from psgc.tools.report import sentences
from psgc.tools.run_directory import read_run
from tests.unit.recorded_runs import record

SETTINGS = {"workers": 2, "chunks": 2, "schedule": "skipping", "transfer": "combined"}


def row(iteration, seconds, loss, size):
    return IterationRow(iteration, seconds=seconds, loss=loss, recovered=2, bytes=size)


@pytest.fixture
def empty(tmp_path):
    """The recorder of a run that has just begun."""
    (tmp_path / "out").mkdir()
    recorder = Recorder(tmp_path / "out", "", coding.from_matrix(np.ones((2, 2))), 1, [1, 1], 3)
    yield recorder
    recorder.finish(np.zeros(1), {})


@pytest.fixture
def recorder(empty):
    """Three iterations of 2, 4 and 6 s; worker 2 takes 1, 3 and 3 s a chunk, worker 1 always 1 s."""
    recorder = empty
    for iteration, (seconds, slow) in enumerate([(2.0, 1.0), (4.0, 3.0), (6.0, 3.0)]):
        recorder.chunk(1, 0, iteration, 0.0, 1.0, Outcome.USED)
        recorder.chunk(2, 1, iteration, 0.0, slow, Outcome.USED)
        if iteration == 2:  # the first of the two is of the iteration before, and its message came late
            recorder.chunk(1, 1, 1, 1.0, 1.0, Outcome.LATE)
            recorder.chunk(1, 1, 2, 1.0, 2.0, Outcome.ABANDONED)
        recorder.iteration(row(iteration, seconds, 0.5 / (iteration + 1), 1500))
    return recorder


def test_the_numbers(recorder):
    summary = summarise(recorder, 12.5, SETTINGS, "done", "")
    assert summary == {
        "version": __version__,
        "status": "done",
        "reason": "",
        **SETTINGS,
        "iterations": 3,
        "final_loss": 0.5 / 3,
        "seconds": 12.5,
        "seconds_per_iteration": 4.0,
        "uncoded_seconds_per_iteration": 3.0,
        "bound_seconds_per_iteration": 2.0,  # 1, 2 and 2: the fast worker does both
        "overhead": (1 / 4 + 3 / 6) / 2,  # the slow worker's chunk decides; the first iteration is left out
        "seconds_per_chunk": 2.0,  # the medians are 1, 2 and 2
        "chunks_per_pass": 1.0,
        "efficiency": 0.5,  # the median of 1 / 2, 2 / 4 and 2 / 6
        "efficiency_iterations": 3,
        "chunks_used": 6,
        "chunks_late": 1,
        "chunks_abandoned": 1,
        "chunks_lost": 0,
        "work_thrown_away": pytest.approx(3 / 13),
        "timeline_every": 1,
        "approximate_iterations": 0,
        "chunks_never_used": 0,
        "error_measure": 0.0,
        "actual_error": None,
        "bytes": 4500,
        "lost": [],
        "restores": [],
        "wrong": {},
    }


def test_the_lines(recorder):
    summary = summarise(recorder, 12.5, SETTINGS, "done", "")
    summary_line = lines(summary)[2]
    assert lines(summary | {"test_loss": 0.25, "test_accuracy": 0.975}) == [
        "done after 3 iterations in 12.5 s",
        "  final loss         0.166667",
        "  held-out loss      0.2500",
        "  held-out accuracy  0.9750",
        "  per iteration      4000.0 ms",
        "  clairvoyant bound  2000.0 ms; efficiency T*/T 0.50",
        "  overhead           38 % of an iteration in the median: a chunk takes 2000.0 ms; try fewer chunks",
        "  work thrown away   23.1 % of the computing time (1 chunks too late, 1 abandoned, 6 used)",
        "  bytes moved        4.5 kB in and out of the server",
    ]
    assert "  training accuracy  0.5000" in lines(summary | {"training_accuracy": 0.5})
    assert lines(summary | {"metrics": {"epoch": 2, "top5": 0.75}})[2:4] == [
        "  top5               0.7500",
        summary_line,
    ]
    best = {"iteration": 2, "test_loss": 0.25, "test_accuracy": 0.5, "file": "best.npy"}
    expected = "  best               held-out loss 0.2500, held-out accuracy 0.5000 after 2 iterations (best.npy)"
    assert expected in lines(summary | {"best": best})
    few = lines(summary | {"efficiency_iterations": 2, "timeline_every": 3})
    assert "  clairvoyant bound  2000.0 ms; efficiency T*/T 0.50, of 2 of the iterations" in few
    assert "  timeline           one of 3 iterations, so that the file stays small" in few
    slowed = lines(summary | {"uncoded_seconds_per_iteration": 5.0})
    waiting = "  per iteration      4000.0 ms; waiting for everybody, without redundancy: at least 5000.0 ms (1.2 x)"
    assert waiting in slowed
    assert "  per iteration      4000.0 ms" in lines(summary | {"uncoded_seconds_per_iteration": 4.1})
    alone = lines(summary | {"uncoded_seconds_per_iteration": 5.0, "workers": 1})
    assert "  per iteration      4000.0 ms" in alone
    assert not [line for line in alone if "T*/T" in line]


def test_a_run_that_went_on_is_compared_with_its_iterations_since_then(tmp_path):
    """With half of the workers, an iteration takes twice as long, and would also take that without redundancy."""
    directory = record(tmp_path / "run", workers=8, iterations=30)
    whole = json.loads((directory / "summary.json").read_text())
    summary = json.loads((record(directory, 4, 16, 40, resume_at=30) / "summary.json").read_text())
    now = summary["since"]["seconds_per_iteration"]
    assert "since" not in whole
    assert summary["since"]["iterations"] == 10
    assert now > 1.6 * summary["seconds_per_iteration"]
    assert "waiting for everybody" not in "".join([*lines(summary), *sentences(read_run(directory))])
    assert whole["chunks_per_pass"] < summary["chunks_per_pass"] < 16  # chunks of each worker
    slowed = summary | {"uncoded_seconds_per_iteration": 2 * now}
    told = f"{duration(now)} in the last 10; waiting for everybody, without redundancy: at least {duration(2 * now)}"
    assert f"; {told} (2.0 x)" in "".join(lines(slowed))


def test_who_was_in_the_wrong_is_counted(recorder):
    for worker in (2, 1, 2):
        recorder.event(WorkerEvent(1, worker, "n1", "wrong", "chunk 3: ..."))
    summary = summarise(recorder, 12.5, SETTINGS, "done", "")
    assert (summary["lost"], summary["wrong"]) == ([], {"1": 1, "2": 2})
    assert lines(summary)[-1] == "  wrong copies       1 of worker 1, 2 of worker 2 (lost.csv says which)"


def test_who_was_lost_is_said(recorder):
    recorder.event(WorkerEvent(1, 2, "n1", "lost", "killed"))
    recorder.event(WorkerEvent(3, 2, "", "returned", ""))
    recorder.event(WorkerEvent(4, 1, "n0", "lost", "ValueError: " + 99 * "x"))
    summary = summarise(recorder, 12.5, SETTINGS, "done", "")
    assert summary["lost"][:2] == [
        {"iteration": 1, "worker": 2, "host": "n1", "event": "lost", "reason": "killed"},
        {"iteration": 3, "worker": 2, "host": "", "event": "returned", "reason": ""},
    ]
    assert lines(summary)[-1] == (
        "  workers lost       2 on n1 in iteration 1 (killed), 2 back in iteration 3, "
        f"1 on n0 in iteration 4 (ValueError: {45 * 'x'}...)"
    )
    for iteration in range(5, 8):
        recorder.event(WorkerEvent(iteration, 1, "", "returned", ""))
    assert lines(summarise(recorder, 12.5, SETTINGS, "done", ""))[-1].endswith(
        "), 1 back in iteration 5, and 2 more in lost.csv"
    )


def test_what_lost_workers_had_done_was_not_abandoned(recorder):
    recorder.chunk(2, 0, 3, 0.0, 3.0, Outcome.LOST)
    recorder.iteration(row(3, 4.0, 0.25, 1500))
    summary = summarise(recorder, 12.5, SETTINGS, "done", "")
    assert [summary[f"chunks_{name}"] for name in ("used", "late", "abandoned", "lost")] == [6, 1, 1, 1]
    (line,) = (line for line in lines(summary) if "thrown away" in line)
    assert line.endswith("(1 chunks too late, 1 abandoned, 1 of lost workers, 6 used)")


def test_redundant_chunks_are_those_of_the_rows_so_far(empty, tmp_path):
    """So dashboards and the event files of `psgc report` say the same. What was abandoned was not done."""
    for iteration, total in enumerate([2, 4, 6]):
        for outcome in (Outcome.LATE, Outcome.LOST, Outcome.ABANDONED):
            empty.chunk(2, 1, iteration, 1.0, 1.0, outcome)
        values = empty.iteration(IterationRow(iteration, seconds=3.0, redundant=2))
        assert (values["redundant_chunks"], values["chunks"]) == (total, 0)
    empty.finish(np.zeros(1), {})
    resumed = Recorder(tmp_path / "out", "", coding.from_matrix(np.ones((2, 2))), 1, [1, 1], 3, resume_at=2)
    assert resumed.iteration(IterationRow(2, seconds=3.0, redundant=1))["redundant_chunks"] == 5
    resumed.finish(np.zeros(1), {})


def test_where_little_is_known_little_is_said(empty, monkeypatch):
    """Before the first iteration, and of a problem without a loss and a run without bounds."""
    summary = summarise(empty, 0.25, SETTINGS, "interrupted", "asked to stop (SIGINT)")
    assert (summary["iterations"], summary["work_thrown_away"], summary["bytes"]) == (0, 0.0, 0)
    for name in ("final_loss", "seconds_per_iteration", "uncoded_seconds_per_iteration", "efficiency",
                 "bound_seconds_per_iteration"):  # fmt: skip
        assert summary[name] is None
    assert lines(summary) == ["interrupted after 0 iterations in 0.2 s"]
    monkeypatch.setattr("psgc.record.tally.SHARE", -1.0)
    for chunk in range(2):
        empty.chunk(1, chunk, 0, 0.0, 1.0, Outcome.USED)
    empty.iteration(row(0, 2.0, None, 10))
    summary = summarise(empty, 2.0, SETTINGS, "failed", "it broke")
    assert (summary["reason"], summary["final_loss"], summary["efficiency"]) == ("it broke", None, None)
    text = "\n".join(lines(summary))
    assert "per iteration" in text
    assert not [word for word in ("nan", "None", "loss", "bound") if word in text]


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_a_loss_that_is_not_finite_is_told_as_what_it_is(recorder, loss):
    recorder.iteration(row(3, 2.0, float(loss), 10))
    summary = summarise(recorder, 12.5, SETTINGS, "failed", "") | {"test_loss": float(loss)}
    assert lines(summary)[1:3] == [f"  final loss         {loss}", f"  held-out loss      {loss}"]


def test_times_are_readable():
    assert [duration(seconds) for seconds in (0.00123, 9.99, 12.34)] == ["1.2 ms", "9990.0 ms", "12.3 s"]


def test_approximate_iterations_are_told(recorder):
    told = {"approximate_iterations": 2, "error_measure": 0.0123, "actual_error": 0.0456}
    summary = summarise(recorder, 12.5, SETTINGS, "done", "") | told
    line = "  approximate        2 of 3 iterations, 1.2 % of the copies missing on average"
    assert line + "; their gradients were off by 4.6 % in the median" in lines(summary)
    assert line in lines(summary | {"actual_error": None})


def test_chunks_that_no_iteration_had_in_time_are_told(empty):
    for iteration, outcome in enumerate([Outcome.LATE, Outcome.ABANDONED, Outcome.USED]):
        empty.chunk(1, 0, iteration, 0.0, 1.0, Outcome.USED)
        empty.chunk(2, 1, iteration, 0.0, 1.0, outcome)
        empty.iteration(IterationRow(iteration, seconds=1.0, recovered=1, missing=1, error_measure=0.5))
        summary = summarise(empty, 12.5, SETTINGS, "done", "")
        told = [line.endswith("; 1 of the 2 chunks never arrived in time") for line in lines(summary)]
        assert (summary["chunks_never_used"], any(told)) == ((0, False) if outcome == Outcome.USED else (1, True))


# overhead, and what is said to make it less

USED, LATE, ABANDONED, _ = Outcome


@pytest.mark.parametrize(
    ("entries", "seconds", "expected"),
    [
        # of the worker that computed longest, also the time between its chunks; not what it did for nothing later
        ([(1, 0.0, 1.0, USED), (1, 2.0, 1.0, USED), (1, 3.0, 5.0, ABANDONED), (2, 0.0, 1.0, USED)], 4.0, 0.5),
        ([(1, 0.0, 1.0, USED), (2, 0.0, 10.0, USED)], 10.0, 0.0),  # who waits for a straggler has none
        ([(1, 3.0, 1.0, USED), (1, 5.0, 1.0, USED)], 6.0, 1 / 6),  # a chunk of the iteration before is none
        ([], 1.0, np.nan),
        ([(1, 0.0, 1.0, LATE)], 1.0, np.nan),
    ],
)
def test_what_the_worker_that_computed_longest_was_not_computing_is_overhead(entries, seconds, expected):
    """entries: (worker, start, seconds, outcome), in any order."""
    for each in (entries, entries[::-1]):
        found = overhead(np.array([(worker, 0, 0, *others) for worker, *others in each], ENTRY), seconds)
        assert found == pytest.approx(expected, nan_ok=True)


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
    "chunks_per_pass": 1.0,
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
        (0.5, {"chunks_per_worker": 1, "chunks_used": 80, "workers": 1}, "a chunk takes 1.6 ms"),
        (0.5, {"chunks_per_pass": 5.0, "workers": 1}, "a pass over 5 chunks takes 8.2 ms"),
        (0.5, {"chunks_per_worker": None}, "a chunk takes 1.6 ms; try fewer chunks"),
        (0.5, {"transfer": "combined"}, "a chunk takes 1.6 ms; try coding.chunks_per_worker: 2"),
        (0.5, {"transfer": "combined", "bytes": 10 << 30}, "a chunk takes 1.6 ms; try fewer workers (psgc launch -n)"),
        (0.5, {"chunks_per_pass": 5.0}, "a pass over 5 chunks takes 8.2 ms; try fewer workers (psgc launch -n)"),
        *(
            (
                *(0.5, {"chunks_per_pass": 5.0} | changed),
                "a pass over 5 chunks takes 8.2 ms; try larger batches, or fewer workers (psgc launch -n)",
            )
            for changed in ({"chunks_per_worker": None}, {"batch": {"size": 10, "epochs": 3}})
        ),
    ],
)
def test_what_to_change_goes_by_the_messages(overhead, changed, said):
    assert advice(SUMMARY | {"overhead": overhead} | changed) == said
