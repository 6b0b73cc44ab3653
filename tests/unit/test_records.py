"""The run directory: what is in each file, against cases computed by hand, and what happens to an earlier one."""

import csv
import itertools
import json
import math
import os

import numpy as np
import pytest

from psgc.errors import UserError
from psgc.record import recorder, timeline
from psgc.record.recorder import Recorder
from psgc.record.summary import summarise
from psgc.record.timeline import read_timeline
from psgc.run_rows import EvaluationRow, Outcome, WorkerEvent
from tests.unit.full_disk import no_file_longer_than
from tests.unit.recording import BOTH_HOLD_ALL, EVEN, add


def rows_of(directory):
    with (directory / "iterations.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def column(directory, name):
    return [float(row[name]) for row in rows_of(directory)]


# iterations.csv


def test_every_row_so_far_is_there_at_any_moment(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    values = {"loss": 1 / 3, "recovered": 3, "redundant": 1, "bytes": 12345, "bytes_in": 45, "test_loss": 0.25}
    assert rows_of(tmp_path / "out") == []
    for iteration in range(3):
        add(recorder, iteration, {(1, 0): 1.0, (1, 1): 1.0, (2, 2): 0.5}, 3.0, **values)
        assert column(tmp_path / "out", "iteration") == list(range(iteration + 1))
    assert (tmp_path / "out/iterations.csv").read_text().splitlines()[:2] == [
        "iteration,loss,seconds,bound,efficiency,error_measure,missing,actual_error,recovered,redundant,bytes,"
        "bytes_in,lost,test_loss,test_accuracy",
        "0,0.333333333,3,nan,nan,0,0,0,3,1,12345,45,0,0.25,",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["config.yaml", "iterations.csv", "timeline.raw"]
    assert (tmp_path / "out/config.yaml").read_text() == "seed: 0\n"


def test_a_run_that_goes_on_has_no_parameters_of_its_end_before(recorder_in, tmp_path):
    """They would be taken for those of the checkpoints since."""
    recorder_in(tmp_path / "out").finish(np.zeros(1), {"status": "done"})
    assert (tmp_path / "out/params.npy").exists()
    recorder_in(tmp_path / "out")
    assert not (tmp_path / "out/params.npy").exists()


def test_a_run_that_cannot_go_on_leaves_the_end_of_the_one_before(recorder_in, tmp_path):
    recorder_in(tmp_path / "out").finish(np.zeros(1), {"status": "done"})
    with no_file_longer_than(20), pytest.raises(UserError, match="File too large"):
        going_on(tmp_path / "out", 0)
    assert {"summary.json", "params.npy"} < {*os.listdir(tmp_path / "out")}


# the bound and the time without redundancy

ONE_EACH_AND_ONE_OF_BOTH = [[1, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("reports", "bound", "run", "row"),
    [
        (EVEN, 2.0, {}, {}),
        ({(1, 0): 1.0, (1, 1): 3.0, (2, 2): 1.0}, 2.0, {}, {}),  # 2 s and 1 s a chunk: one and two chunks by then
        ({(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0}, 3.0, {}, {}),  # the other one finished nothing
        ({(1, 0): 1.0, (1, 1): 1.0, (2, 2): 0.25}, 0.75, {}, {}),  # the fast one could have done all
        ({(w, c): float(w) for w in (1, 2) for c in range(3)}, 6.0, {"parts": 2}, {}),  # everybody has to do everything
        ({(1, 0): 0.5, (1, 1): 0.5, (2, 2): 5.0}, 5.0, {"held": ONE_EACH_AND_ONE_OF_BOTH}, {}),  # who else holds it?
        ({(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0}, 3.0, {"held": ONE_EACH_AND_ONE_OF_BOTH}, {"lost": 1}),  # now 1 does
        ({(1, 0): 1.0, (1, 1): 1.0}, math.nan, {"held": [[1, 0], [1, 0], [0, 1]]}, {"missing": 1}),  # nobody knows
        (EVEN, math.nan, {}, {"test_loss": 1.0}),  # an evaluation takes its time
    ],
)
def test_the_bound_is_the_clairvoyants_at_this_iterations_speeds(recorder_in, tmp_path, reports, bound, run, row):
    recorder = recorder_in(tmp_path / "out", **run)
    add(recorder, 0, reports, seconds=8.0, **row)
    assert recorder.tally.bounds.tolist() == pytest.approx([bound], nan_ok=True)
    assert column(tmp_path / "out", "bound") == pytest.approx([bound], nan_ok=True)
    assert column(tmp_path / "out", "efficiency") == pytest.approx([bound / 8], nan_ok=True)


def test_without_redundancy_an_iteration_takes_what_the_slowest_own_share_takes(recorder_in, tmp_path):
    """Worker 1 would do two chunks, worker 2 one. Who finished nothing is as slow as it ever was."""
    recorder = recorder_in(tmp_path / "out")
    alone = {(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0}
    add(recorder, 0, alone)  # nothing is known of worker 2
    recorder.chunk(2, 2, 0, 0.0, 5.0, Outcome.ABANDONED)
    recorder.chunk(2, 2, 0, 0.0, 4.0, Outcome.ABANDONED)
    add(recorder, 1, alone)  # it takes longer than it worked on what it abandoned
    recorder.chunk(2, 2, 1, 0.0, 12.0, Outcome.LATE)
    recorder.chunk(2, 1, 1, 0.0, 10.0, Outcome.USED)
    add(recorder, 2, alone)  # the mean of all that it finished
    add(recorder, 3, {(1, 0): 1.0, (1, 1): 2.0, (2, 2): 2.5})
    assert recorder.tally.uncoded.tolist() == [2.0, 5.0, 11.0, 3.0]
    assert recorder.tally.bounds.tolist()[:3] == [3.0, 3.0, 3.0]


def test_bounds_that_take_long_are_computed_for_some_iterations(recorder_in, tmp_path, monkeypatch):
    """Each takes 0.1 s here: at 2 % of the time there is one in 5 s."""
    clock = iter(np.arange(0.0, 100.0, 0.1).tolist())
    monkeypatch.setattr("psgc.record.tally.time.thread_time", lambda: next(clock))
    recorder = recorder_in(tmp_path / "out")
    for iteration in range(20):
        add(recorder, iteration, EVEN, seconds=1.1)
    known = [iteration for iteration, bound in enumerate(column(tmp_path / "out", "bound")) if bound == 2.0]
    assert known == [0, 4, 9, 13, 18]
    summary = summarise(recorder, 20.0, {}, "done", "")
    assert (summary["efficiency"], summary["efficiency_iterations"]) == (pytest.approx(2 / 1.1), 5)


# the other files


def test_a_finished_run_has_all_its_files_and_no_other(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    params = np.arange(4, dtype=np.float32)
    recorder.finish(params, {"status": "failed", "iterations": 0})
    recorder.finish(params + 1, {"status": "done", "iterations": 7})
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.yaml", "iterations.csv", "params.npy", "summary.json", "timeline.npz",
    ]  # fmt: skip
    saved = np.load(tmp_path / "out/params.npy", allow_pickle=False)
    assert (saved.dtype, saved.tolist()) == (np.float32, [1, 2, 3, 4])
    assert json.loads((tmp_path / "out/summary.json").read_text()) == {"status": "done", "iterations": 7}


def test_the_summary_is_json_whatever_the_numbers(recorder_in, tmp_path):
    summary = {"a": float("nan"), "b": -math.inf, "c": 0.5, "d": np.float64(2), "metrics": {"auc": [math.nan, 1]}}
    recorder_in(tmp_path / "out").finish(np.zeros(1), summary)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "out/summary.json").read_text()
    written = {"a": "nan", "b": "-inf", "c": 0.5, "d": 2.0, "metrics": {"auc": ["nan", 1]}}
    assert json.loads(text, parse_constant=refuse) == written


def test_a_text_of_several_lines_is_kept_and_its_first_line_told(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    path = tmp_path / "out/worker-3-error.txt"
    assert recorder.failure_text(3, "it is NaN\n") == "it is NaN"
    assert recorder.failure_text(3, "") == "it failed without a reason"
    assert not path.exists()
    text = "ValueError: the model is broken\nTraceback (most recent call last):\n  File ...\nValueError: ...\n"
    assert recorder.failure_text(3, text) == f"ValueError: the model is broken (traceback in {path})"
    assert path.read_text() == text


# lost workers, and losses


def test_what_befalls_a_worker_is_told_and_written_down_at_once(recorder_in, tmp_path):
    recorder, path = recorder_in(tmp_path / "out"), tmp_path / "out/lost.csv"
    assert not path.exists()
    reason = "chunk 3: its copy does not agree with those of workers 1, 4"
    events = [
        (WorkerEvent(12, 2, "n1", "lost", "killed"), "lost in iteration 12: killed", "12,2,n1,lost,killed"),
        (WorkerEvent(15, 2, "", "returned", ""), "is back in iteration 15", "15,2,,returned,"),
        (WorkerEvent(16, 2, "n1", "wrong", reason), f"sent a wrong copy in iteration 16: {reason}",
         f'16,2,n1,wrong,"{reason}"'),
        (WorkerEvent(17, 2, "n1", "lost", "silent, again"), "lost in iteration 17: silent, again",
         '17,2,n1,lost,"silent, again"'),
    ]  # fmt: skip
    for number, (event, told, line) in enumerate(events, start=1):
        if number == 4:
            recorder.finish(np.zeros(1), {})  # events come while the run is brought to its end
        recorder.event(event)
        assert event.line == f"worker 2{' on n1' * bool(event.host)} {told}"
        assert path.read_text().splitlines()[number:] == [line]
    assert path.read_text().startswith("iteration,worker,host,event,reason\n")
    assert recorder.events == [event for event, *_ in events]


def test_evaluations_are_written_once_and_those_after_the_checkpoint_are_cut(recorder_in, tmp_path):
    recorder, path = recorder_in(tmp_path / "out"), tmp_path / "out/evaluations.csv"
    for iteration in range(6):
        add(recorder, iteration, EVEN)
    recorder.evaluated([])
    assert not path.exists()
    first = [EvaluationRow(1, 0, "auc", 0.1 + 0.2), EvaluationRow(1, 0, 'a, "b"', math.nan)]
    recorder.evaluated(first)
    recorder.evaluated([*first, EvaluationRow(4, 1, "auc", 0.75)])
    lines = ["iteration,epoch,name,value", "1,0,auc,0.30000000000000004", '1,0,"a, ""b""",nan', "4,1,auc,0.75"]
    assert path.read_text().splitlines() == lines
    recorder.finish(np.zeros(1), {})
    recorder.evaluated([EvaluationRow(5, 1, "auc", 0.8)])  # while the run is brought to its end
    assert path.read_text().splitlines() == [*lines, "5,1,auc,0.8"]
    resumed = going_on(tmp_path / "out", 4)
    assert path.read_text().splitlines() == lines[:3]
    resumed.evaluated([*first, EvaluationRow(4, 1, "auc", 0.5)])
    assert path.read_text().splitlines() == [*lines[:3], "4,1,auc,0.5"]


@pytest.mark.parametrize(("loss", "written"), [(None, ""), (math.nan, "nan"), (math.inf, "inf")])
def test_no_loss_and_a_loss_that_is_not_finite_look_different(recorder_in, tmp_path, loss, written):
    """Also to a run that goes on."""
    recorder = recorder_in(tmp_path / "out")
    for iteration in range(3):
        add(recorder, iteration, EVEN, loss=loss)
    assert [row["loss"] for row in rows_of(tmp_path / "out")] == 3 * [written]
    assert repr(recorder.tally.final_loss) == repr(loss)
    add(recorder, 3, EVEN, loss=None)  # an evaluation of a script
    assert repr(recorder.tally.final_loss) == repr(loss)
    assert repr(going_on(tmp_path / "out", 2).tally.final_loss) == repr(loss)
    assert len(rows_of(tmp_path / "out")) == 2


# going on with an earlier record


def stopped_run(recorder_in, directory, finish):
    recorder = recorder_in(directory)
    for iteration in range(5):
        add(recorder, iteration, EVEN, loss=0.5 / (iteration + 1), bytes=10)
    recorder.event(WorkerEvent(3, 2, "n1", "lost", "killed"))
    if finish:
        recorder.finish(np.zeros(1), {"status": "interrupted"})


def going_on(directory, resume_at):
    return Recorder(directory, "seed: 1\n", BOTH_HOLD_ALL, 1, (2, 1), 10, resume_at)


@pytest.mark.parametrize("finish", [True, False])
def test_a_record_goes_on_where_the_checkpoint_is(recorder_in, tmp_path, finish):
    out = tmp_path / "out"
    stopped_run(recorder_in, out, finish)
    recorder = going_on(out, 3)
    assert not (out / "summary.json").exists()  # it runs
    assert (out / "config.yaml").read_text() == "seed: 1\n"
    assert column(out, "iteration") == [0, 1, 2]
    nothing_more = summarise(recorder, 1.0, {}, "done", "")
    assert (nothing_more["iterations"], nothing_more["final_loss"]) == (3, pytest.approx(0.5 / 3))
    add(recorder, 3, EVEN, loss=0.01, bytes=7)
    recorder.finish(np.ones(1), {})
    assert column(out, "loss") == pytest.approx([0.5, 0.25, 0.5 / 3, 0.01])
    assert (out / "lost.csv").read_text().splitlines()[1:] == ["3,2,n1,lost,killed", "3,2,,returned,"]
    summary = summarise(recorder, 1.0, {}, "done", "")
    expected = {"iterations": 4, "bytes": 37, "seconds_per_iteration": 2.0, "bound_seconds_per_iteration": 2.0,
                "efficiency": 1.0, "chunks_used": 12}  # fmt: skip
    assert expected.items() <= summary.items()
    assert [event["event"] for event in summary["lost"]] == ["lost", "returned"]
    assert np.load(out / "timeline.npz")["iteration"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("finish", [True, False])
def test_a_run_that_is_killed_while_it_begins_to_go_on_has_the_timeline_of_before(
    recorder_in, tmp_path, monkeypatch, finish
):
    """It is killed at each piece of the timeline that it takes, until it begins."""
    stopped_run(recorder_in, tmp_path / "out", finish)
    monkeypatch.setattr(timeline, "PIECE", 4)
    recorded = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    pieces, left = timeline.pieces, 0

    def until_killed(columns):
        nonlocal left
        for piece in pieces(columns):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(recorder, "pieces", until_killed)
    for many in itertools.count():
        left = many
        try:
            going_on(tmp_path / "out", 3)
            break
        except KeyboardInterrupt:
            assert read_timeline(tmp_path / "out")[0]["iteration"].tolist() == recorded
    assert many >= 4
    assert read_timeline(tmp_path / "out")[0]["iteration"].tolist() == recorded[:9]


def test_iterations_of_which_a_dead_rank_0_has_left_no_row_get_one_of_what_is_known(recorder_in, tmp_path):
    out = tmp_path / "out"
    stopped_run(recorder_in, out, finish=False)
    recorder = Recorder(out, "", BOTH_HOLD_ALL, 1, (2, 1), 10, 7, took={2: 9.0, 5: 0.5, 6: 0.25, 7: 3.0})
    assert column(out, "iteration") == [0, 1, 2, 3, 4, 5, 6]
    assert column(out, "seconds")[4:] == [2.0, 0.5, 0.25]
    assert [row["loss"] for row in rows_of(out)][4:] == ["0.1", "", ""]
    assert [event.event for event in recorder.events] == ["lost"]  # that one is not back
    add(recorder, 7, EVEN, loss=0.01)
    assert summarise(recorder, 1.0, {}, "done", "")["iterations"] == 8


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda text: b"".join(text.splitlines(keepends=True)[:3]) + b"2,0.1", [0, 1]),
        (lambda text: text.replace(b"\n1,", b"\nx,"), [0, 2, 3, 4]),
        (lambda text: text + text.partition(b"\n")[2], [0, 1, 2, 3, 4]),
        (lambda text: b"\xff\0" + text, []),
        (lambda text: text.replace(b"loss", b"lots"), []),
        (lambda text: b"", []),
        (None, []),
    ],
    ids=["half a row", "a row that is none", "rows again", "not csv", "other columns", "nothing", "no file"],
)
def test_the_whole_rows_of_a_damaged_record_are_kept(recorder_in, tmp_path, damage, kept):
    stopped_run(recorder_in, tmp_path / "out", finish=True)
    path = tmp_path / "out/iterations.csv"
    (tmp_path / "out/timeline.npz").write_bytes(b"damaged")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    recorder = going_on(tmp_path / "out", 5)
    add(recorder, 5, EVEN)
    recorder.finish(np.ones(1), summarise(recorder, 1.0, {}, "done", ""))
    assert column(tmp_path / "out", "iteration") == [*kept, 5]


# approximate iterations


def test_actual_errors_are_filled_in_when_the_run_is_over(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    add(recorder, 0, EVEN)
    for iteration in (1, 2):
        add(recorder, iteration, {(1, 0): 1.0, (1, 1): 1.0}, missing=1, error_measure=1 / 3, recovered=2)
    before = rows_of(tmp_path / "out")
    assert [(row["actual_error"], row["error_measure"]) for row in before] == [
        ("0", "0"), ("nan", "0.333333333"), ("nan", "0.333333333"),
    ]  # fmt: skip
    recorder.complete({2: 0.25})
    recorder.finish(np.zeros(1), {})
    after = rows_of(tmp_path / "out")
    assert [row["actual_error"] for row in after] == ["0", "nan", "0.25"]
    assert [{**row, "actual_error": ""} for row in after] == [{**row, "actual_error": ""} for row in before]
    summary = summarise(recorder, 1.0, {}, "done", "")
    told = [summary[name] for name in ("approximate_iterations", "error_measure", "actual_error")]
    assert told == [2, pytest.approx(2 / 9), 0.25]
    goes_on = summarise(going_on(tmp_path / "out", 3), 1.0, {}, "done", "")
    assert goes_on["chunks_never_used"] is None  # the timeline may lack iterations
    assert [goes_on[name] for name in ("approximate_iterations", "error_measure", "actual_error")] == pytest.approx(
        told
    )


def test_the_run_directory_may_be_a_link(recorder_in, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to("scratch")
    recorder = recorder_in(tmp_path / "out")
    add(recorder, 0, EVEN)
    recorder.finish(np.zeros(1), {})
    assert column(tmp_path / "scratch", "iteration") == [0]
    assert (tmp_path / "scratch/summary.json").exists()
