"""The run directory: what is in each file, against cases computed by hand, and what happens to an earlier one."""

import csv
import errno
import json
import math
import os
from contextlib import nullcontext

import numpy as np
import pytest

from psgc import coding
from psgc.disk import write_whole
from psgc.errors import UserError
from psgc.record import recorder as module
from psgc.record import timeline
from psgc.record.recorder import Recorder
from psgc.record.summary import lines, summarise
from psgc.record.timeline import read_timeline
from psgc.run_rows import COLUMNS, IterationRow, Outcome, WorkerEvent
from tests.unit.full_disk import ShortWrites, no_file_longer_than

BOTH_HOLD_ALL = coding.from_matrix(np.ones((3, 2)))


@pytest.fixture
def recorder_in(monkeypatch):  # before the current directory is changed back
    """Makes recorders, and closes those that the test leaves open."""
    made = []

    def make(directory, assignment=BOTH_HOLD_ALL, parts=1, own_chunks=(2, 1)):
        directory.mkdir(parents=True, exist_ok=True)
        made.append(Recorder(directory, "seed: 0\n", assignment, parts, own_chunks, iterations=10))
        return made[-1]

    yield make
    for recorder in made:
        recorder.finish(np.zeros(1), {})


def add(recorder, iteration, reports, seconds=2.0, **values):
    """An iteration whose reports, {(worker, chunk): seconds}, were all used."""
    for (worker, chunk), took in reports.items():
        recorder.chunk(worker, chunk, iteration, 0.0, took, Outcome.USED)
    recorder.iteration(IterationRow(iteration, seconds=seconds, **values))


def rows_of(directory):
    with (directory / "iterations.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def column(directory, name):
    return [float(row[name]) for row in rows_of(directory)]


# iterations.csv


def test_one_row_an_iteration(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    values = {"loss": 1 / 3, "recovered": 3, "redundant": 1, "bytes": 12345, "bytes_in": 45, "test_loss": 0.25}
    add(recorder, 0, {(1, 0): 1.0, (1, 1): 1.0, (2, 2): 0.5}, 3.0, **values)
    (row,) = rows_of(tmp_path / "out")
    assert list(row) == [
        "iteration", "loss", "seconds", "bound", "efficiency", "error_measure", "missing", "actual_error", "recovered",
        "redundant", "bytes", "bytes_in", "lost", "test_loss", "test_accuracy",
    ]  # fmt: skip
    assert tuple(row) == COLUMNS
    assert list(row.values()) == [
        "0", "0.333333333", "3", "nan", "nan", "0", "0", "0", "3", "1", "12345", "45", "0", "0.25", "",
    ]  # fmt: skip


def test_an_unfinished_run_leaves_every_row_so_far(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    assert rows_of(tmp_path / "out") == []
    for iteration in range(5):
        add(recorder, iteration, {(1, 0): 1.0, (1, 1): 1.0, (2, 2): 0.5})
        assert column(tmp_path / "out", "iteration") == list(range(iteration + 1))
    assert sorted(os.listdir(tmp_path / "out")) == ["config.yaml", "iterations.csv", "timeline.raw"]
    assert (tmp_path / "out/config.yaml").read_text() == "seed: 0\n"


# the bound and the time without redundancy

EVEN = {(1, 0): 1.0, (2, 1): 1.0, (2, 2): 1.0}


@pytest.mark.parametrize(
    ("reports", "parts", "bound"),
    [
        (EVEN, 1, 2.0),
        ({(1, 0): 1.0, (1, 1): 3.0, (2, 2): 1.0}, 1, 2.0),  # 2 s and 1 s a chunk: one and two chunks by then
        ({(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0}, 1, 3.0),  # the other one finished nothing
        ({(1, 0): 1.0, (1, 1): 1.0, (2, 2): 0.25}, 1, 0.75),  # the fast one could have done all
        ({(w, c): float(w) for w in (1, 2) for c in range(3)}, 2, 6.0),  # everybody has to do everything
    ],
)
def test_the_bound_is_the_clairvoyants_at_this_iterations_speeds(recorder_in, tmp_path, reports, parts, bound):
    recorder = recorder_in(tmp_path / "out", parts=parts)
    add(recorder, 0, reports, seconds=8.0)
    assert recorder.tally.bounds.tolist() == [bound]
    assert column(tmp_path / "out", "bound") == [bound]
    assert column(tmp_path / "out", "efficiency") == [bound / 8]


def test_a_chunk_that_only_a_slow_worker_holds_waits_for_it(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out", coding.from_matrix([[1, 0], [1, 1], [0, 1]]))
    add(recorder, 0, {(1, 0): 0.5, (1, 1): 0.5, (2, 2): 5.0})
    assert recorder.tally.bounds.tolist() == [5.0]


def test_without_redundancy_an_iteration_takes_what_the_slowest_own_share_takes(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")  # worker 1 would do two chunks, worker 2 one
    add(recorder, 0, {(1, 0): 1.0, (1, 1): 1.0, (2, 2): 1.5})
    add(recorder, 1, {(1, 0): 1.0, (1, 1): 2.0, (2, 2): 9.0})
    assert recorder.tally.uncoded.tolist() == [2.0, 9.0]


def test_a_worker_that_finished_nothing_is_as_slow_as_it_ever_was(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    alone = {(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0}
    add(recorder, 0, alone)  # nothing is known of worker 2
    recorder.chunk(2, 2, 0, 0.0, 5.0, Outcome.ABANDONED)
    recorder.chunk(2, 2, 0, 0.0, 4.0, Outcome.ABANDONED)
    add(recorder, 1, alone)  # it takes longer than it worked on what it abandoned
    recorder.chunk(2, 2, 1, 0.0, 12.0, Outcome.LATE)
    recorder.chunk(2, 1, 1, 0.0, 10.0, Outcome.USED)
    add(recorder, 2, alone)  # the mean of all that it finished
    assert recorder.tally.uncoded.tolist() == [2.0, 5.0, 11.0]
    assert recorder.tally.bounds.tolist() == [3.0, 3.0, 3.0]


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
    recorder_in(tmp_path / "out").finish(np.zeros(1), {"a": float("nan"), "b": -math.inf, "c": 0.5, "d": np.float64(2)})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "out/summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"a": "nan", "b": "-inf", "c": 0.5, "d": 2.0}


def test_a_text_of_several_lines_is_kept_and_its_first_line_told(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    path = tmp_path / "out/worker-3-error.txt"
    assert recorder.failure_text(3, "it is NaN\n") == "it is NaN"
    assert recorder.failure_text(3, "") == "it failed without a reason"
    assert not path.exists()
    text = "ValueError: the model is broken\nTraceback (most recent call last):\n  File ...\nValueError: ...\n"
    assert recorder.failure_text(3, text) == f"ValueError: the model is broken (traceback in {path})"
    assert path.read_text() == text


# lost workers


def test_a_loss_is_told_and_written_down_at_once(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    assert not (tmp_path / "out/lost.csv").exists()
    lost, back = WorkerEvent(12, 2, "n1", "lost", "killed"), WorkerEvent(15, 2, "", "returned", "")
    assert lost.line == "worker 2 on n1 lost in iteration 12: killed"
    recorder.event(lost)
    header = "iteration,worker,host,event,reason"
    assert (tmp_path / "out/lost.csv").read_text().splitlines() == [header, "12,2,n1,lost,killed"]
    assert back.line == "worker 2 is back in iteration 15"
    recorder.event(back)
    assert (tmp_path / "out/lost.csv").read_text().splitlines()[2:] == ["15,2,,returned,"]
    recorder.finish(np.zeros(1), {})
    recorder.event(WorkerEvent(16, 2, "n1", "lost", "silent, again"))  # while the run is brought to its end
    assert (tmp_path / "out/lost.csv").read_text().splitlines()[3:] == ['16,2,n1,lost,"silent, again"']
    assert [event.event for event in recorder.events] == ["lost", "returned", "lost"]


def test_who_is_in_the_wrong_is_told_and_written_down(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    reason = "chunk 3: its copy does not agree with those of workers 1, 4"
    event = WorkerEvent(12, 2, "n1", "wrong", reason)
    assert event.line == f"worker 2 on n1 sent a wrong copy in iteration 12: {reason}"
    recorder.event(event)
    assert (tmp_path / "out/lost.csv").read_text().splitlines()[1:] == [f'12,2,n1,wrong,"{reason}"']


def test_the_bound_is_that_of_the_workers_that_are_there(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out", coding.from_matrix([[1, 0], [1, 1], [0, 1]]))
    add(recorder, 0, {(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0}, lost=1)  # worker 1 has taken over chunk 2
    assert recorder.tally.bounds.tolist() == [3.0]
    assert column(tmp_path / "out", "lost") == [1]


def test_no_loss_and_a_loss_that_is_not_finite_look_different(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    for iteration, (loss, written) in enumerate([(None, ""), (math.nan, "nan"), (math.inf, "inf")]):
        add(recorder, iteration, EVEN, loss=loss)
        assert rows_of(tmp_path / "out")[-1]["loss"] == written
        assert repr(recorder.tally.final_loss) == repr(loss)


# going on with an earlier record


@pytest.mark.parametrize("loss", [None, math.inf])
def test_the_loss_of_an_earlier_part_is_none_or_not_finite_as_it_was(recorder_in, tmp_path, loss):
    recorder = recorder_in(tmp_path / "out")
    for iteration in range(3):
        add(recorder, iteration, EVEN, loss=loss)
    assert going_on(tmp_path / "out", 2).tally.final_loss == loss
    assert len(rows_of(tmp_path / "out")) == 2


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
    stopped_run(recorder_in, tmp_path / "out", finish)
    recorder = going_on(tmp_path / "out", 3)
    assert os.listdir(tmp_path) == ["out"]
    assert not (tmp_path / "out/summary.json").exists()  # it runs
    assert (tmp_path / "out/config.yaml").read_text() == "seed: 1\n"
    assert column(tmp_path / "out", "iteration") == [0, 1, 2]
    nothing_more = summarise(recorder, 1.0, {}, "done", "")
    assert (nothing_more["iterations"], nothing_more["final_loss"]) == (3, pytest.approx(0.5 / 3))
    add(recorder, 3, EVEN, loss=0.01, bytes=7)
    recorder.event(WorkerEvent(3, 2, "", "returned", ""))
    recorder.finish(np.ones(1), {})
    assert column(tmp_path / "out", "iteration") == [0, 1, 2, 3]
    assert column(tmp_path / "out", "loss") == pytest.approx([0.5, 0.25, 0.5 / 3, 0.01])
    assert (tmp_path / "out/lost.csv").read_text().splitlines()[1:] == ["3,2,n1,lost,killed", "3,2,,returned,"]
    summary = summarise(recorder, 1.0, {}, "done", "")
    assert (summary["iterations"], summary["bytes"], summary["seconds_per_iteration"]) == (4, 37, 2.0)
    assert (summary["bound_seconds_per_iteration"], summary["efficiency"]) == (2.0, 1.0)
    assert [event["event"] for event in summary["lost"]] == ["lost", "returned"]
    timeline = np.load(tmp_path / "out/timeline.npz")
    assert timeline["iteration"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert summary["chunks_used"] == len(timeline["outcome"]) == 12


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
    assert [row["actual_error"] for row in before] == ["0", "nan", "nan"]
    assert [row["error_measure"] for row in before] == ["0", "0.333333333", "0.333333333"]
    recorder.complete({2: 0.25})
    recorder.finish(np.zeros(1), {})
    after = rows_of(tmp_path / "out")
    assert [row["actual_error"] for row in after] == ["0", "nan", "0.25"]
    assert [{**row, "actual_error": ""} for row in after] == [{**row, "actual_error": ""} for row in before]
    summary = summarise(recorder, 1.0, {}, "done", "")
    assert summary["approximate_iterations"] == 2
    assert summary["error_measure"] == pytest.approx(2 / 9)
    assert summary["actual_error"] == 0.25


def test_no_bound_where_somebody_reported_nothing(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out", coding.from_matrix(np.array([[1, 0], [1, 0], [0, 1]])))
    add(recorder, 0, {(1, 0): 1.0, (1, 1): 1.0}, missing=1, error_measure=1 / 3)
    assert math.isnan(column(tmp_path / "out", "bound")[0])
    assert math.isnan(column(tmp_path / "out", "efficiency")[0])


# links that others have put there


@pytest.mark.parametrize("planted", ["config.yaml", "iterations.csv", "timeline.raw"])
def test_a_run_does_not_begin_on_somebodys_link(recorder_in, tmp_path, planted):
    stopped_run(recorder_in, tmp_path / "out", finish=True)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / planted).unlink(missing_ok=True)
    (tmp_path / "out" / planted).symlink_to("../precious")
    with pytest.raises(UserError, match=f"output: {tmp_path}/out/{planted}: Is a link, not a file"):
        going_on(tmp_path / "out", 2)
    assert (tmp_path / "precious").read_text() == "precious"


def test_what_grows_is_not_written_to_a_link_that_takes_its_place(recorder_in, tmp_path):
    (tmp_path / "precious").write_text("precious")
    recorder = recorder_in(tmp_path / "out")
    for name in ("iterations.csv", "timeline.raw"):
        (tmp_path / "out" / name).unlink()
        (tmp_path / "out" / name).symlink_to("../precious")
    add(recorder, 0, EVEN)
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_run_directory_may_be_a_link(recorder_in, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to("scratch")
    recorder = recorder_in(tmp_path / "out")
    add(recorder, 0, EVEN)
    recorder.finish(np.zeros(1), {})
    assert column(tmp_path / "scratch", "iteration") == [0]
    assert (tmp_path / "scratch/summary.json").exists()


# a full disk


def test_a_full_disk_costs_the_record_and_not_the_run(recorder_in, tmp_path, monkeypatch, capfd):
    """The rows and entries that did not fit follow when there is room; one line says that they lacked."""
    recorder = recorder_in(tmp_path / "out")
    add(recorder, 0, EVEN)
    with monkeypatch.context() as patch:
        ShortWrites(patch, most=50, room=100)
        for iteration in (1, 2, 3):
            add(recorder, iteration, EVEN)
            recorder.event(WorkerEvent(iteration, 2, "n1", "lost", "killed"))
    out = tmp_path / "out"
    full = {"iterations.csv", "lost.csv", "timeline.raw"}
    assert recorder.not_whole == dict.fromkeys(full, "No space left on device")
    assert sorted(capfd.readouterr().err.splitlines()) == [
        f"psgc: {out / name}: No space left on device; the record is incomplete, the run goes on"
        for name in sorted(full)
    ]
    assert len(read_timeline(out)[0]["worker"]) == 6
    add(recorder, 4, EVEN)
    recorder.event(WorkerEvent(4, 2, "n1", "lost", "killed"))
    assert recorder.not_whole == {}
    assert column(out, "iteration") == [0, 1, 2, 3, 4]
    assert read_timeline(out)[0]["iteration"].tolist() == [i for i in range(5) for _ in range(3)]
    assert len((out / "lost.csv").read_text().splitlines()) == 5
    summary = recorder.finish(np.zeros(1), summarise(recorder, 1.0, {}, "done", ""))
    assert "not_whole" not in summary
    assert not any("whole" in line for line in lines(summary))


def test_what_lacks_at_the_end_is_in_the_summary(recorder_in, tmp_path, monkeypatch):
    recorder = recorder_in(tmp_path / "out")
    with monkeypatch.context() as patch:
        ShortWrites(patch, most=50, room=0)
        add(recorder, 0, EVEN)
        text = recorder.failure_text(1, "ValueError: x\nTraceback\n")
        summary = recorder.finish(np.zeros(1), summarise(recorder, 1.0, {}, "done", ""))
    assert text == f"ValueError: x (traceback in {tmp_path}/out/worker-1-error.txt)"  # written through no os.write
    assert summary["not_whole"] == dict.fromkeys(("timeline.raw", "iterations.csv"), "No space left on device")
    assert json.loads((tmp_path / "out/summary.json").read_text())["not_whole"] == summary["not_whole"]
    full = "(No space left on device)"
    assert f"  not whole          timeline.raw {full}, iterations.csv {full}" in lines(summary)
    recorder.finish(np.zeros(1), summary)
    assert column(tmp_path / "out", "iteration") == [0]


def test_a_run_whose_parameters_are_not_saved_has_failed(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    with no_file_longer_than(3000):
        summary = recorder.finish(np.zeros(1000), {"status": "done", "reason": "", "iterations": 0})
        assert (summary["status"], summary["exit_code"]) == ("failed", 1)
        assert summary["reason"] == "params.npy: File too large"
        stopped = recorder.finish(np.zeros(1000), {"status": "interrupted", "reason": "asked to stop"})
        assert (stopped["status"], stopped["not_whole"]) == ("interrupted", {"params.npy": "File too large"})
    summary = recorder.finish(np.zeros(1000), {"status": "done"})
    assert summary == {"status": "done"}
    assert len(np.load(tmp_path / "out/params.npy")) == 1000


def full_for(monkeypatch, *names):
    """The disk is full for these files as long as the timeline lies there."""

    def write(path, fill):
        timeline = [name for name in ("timeline.raw", "timeline.npz") if (path.parent / name).exists()]
        if path.name in names and timeline:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_whole(path, fill)

    monkeypatch.setattr(module, "write_whole", write)
    monkeypatch.setattr(
        module, "write_text", lambda path, text: write(path, lambda stream: stream.write(text.encode()))
    )


@pytest.mark.parametrize("name", ["params.npy", "summary.json"])
def test_the_timeline_makes_room_for_the_result(recorder_in, tmp_path, monkeypatch, name):
    recorder = recorder_in(tmp_path / "out")
    add(recorder, 0, EVEN)
    with monkeypatch.context() as patch:
        full_for(patch, name)
        if name == "params.npy":  # there is no room for the rest of the timeline either
            patch.setattr(timeline, "write_whole", full_disk)
        params = np.zeros(3)
        summary = recorder.finish(params, {"status": "done"})
        assert summary == {"status": "done", "not_whole": {"timeline.raw": "No space left on device"}}
        assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
        assert (tmp_path / "out/params.npy").exists()
        assert not list((tmp_path / "out").glob("timeline.*"))
    assert recorder.finish(params, {"status": "done"}) == summary


def test_the_timeline_makes_room_for_a_checkpoint_while_the_run_goes(recorder_in, tmp_path, capfd):
    recorder = recorder_in(tmp_path / "out")
    for iteration in range(3):
        add(recorder, iteration, EVEN)
        recorder.drop_timeline()
    assert not (tmp_path / "out/timeline.raw").exists()
    assert capfd.readouterr().err == (
        f"psgc: {tmp_path}/out/timeline.raw makes room for a checkpoint; the record is incomplete, the run goes on\n"
    )
    assert recorder.finish(np.zeros(1), {}) == {"not_whole": {"timeline.raw": "No space left on device"}}
    assert not list((tmp_path / "out").glob("timeline.*"))


@pytest.mark.parametrize("name", ["params.npy", "summary.json"])
def test_the_recorder_says_when_checkpoints_should_make_room(recorder_in, tmp_path, monkeypatch, name):
    recorder = recorder_in(tmp_path / "out")
    with monkeypatch.context() as patch:
        writer = "write_whole" if name == "params.npy" else "write_text"
        patch.setattr(module, writer, full_disk)
        with pytest.raises(OSError, match="No space") if name == "summary.json" else nullcontext():
            recorder.finish(np.zeros(3), {"status": "done"})
        assert recorder.lacks_room
    recorder.finish(np.zeros(3), {"status": "done"})
    assert not recorder.lacks_room


def test_the_same_parameters_are_written_once(recorder_in, tmp_path, monkeypatch):
    """A checkpoint may have taken the room that a second file would need."""
    recorder, params = recorder_in(tmp_path / "out"), np.zeros(3)
    recorder.finish(params, {"status": "done", "evaluating": True})
    full_for(monkeypatch, "params.npy")
    assert recorder.finish(params, {"status": "done"}) == {"status": "done"}


def full_disk(path, fill):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_without_room_for_a_text_or_better_rows_the_run_goes_on(recorder_in, tmp_path, capfd):
    recorder = recorder_in(tmp_path / "out")
    add(recorder, 0, {(1, 0): 1.0, (1, 1): 1.0}, missing=1, error_measure=1 / 3, recovered=2)
    with no_file_longer_than(100):
        told = recorder.failure_text(3, "ValueError: x\n" + 200 * "y")
        assert told == f"ValueError: x (no traceback in {tmp_path}/out/worker-3-error.txt: File too large)"
        recorder.complete({0: 0.25})
    assert recorder.not_whole == {"iterations.csv": "File too large"}
    assert column(tmp_path / "out", "iteration") == [0]
