"""A record for which there is no room: the run goes on, and what matters most is written first."""

import errno
import json
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
import pytest

from psgc import disk
from psgc.errors import UserError
from psgc.record import recorder, timeline
from psgc.record.csv_files import Restored, earlier, earlier_rows
from psgc.record.summary import lines, summarise
from psgc.record.timeline import read_timeline
from psgc.run.claim import Claim
from psgc.run_rows import EvaluationRow, Outcome, WorkerEvent
from tests.unit.full_disk import ShortWrites, no_file_longer_than
from tests.unit.recording import BOTH_HOLD_ALL, EVEN, add
from tests.unit.small_disk import small_disk

FULL = "No space left on device"


def iterations(directory):
    return [row.iteration for row in earlier_rows(directory / "iterations.csv")]


def test_a_full_disk_costs_the_record_and_not_the_run(recorder_in, tmp_path, monkeypatch, capfd):
    """The rows and entries that did not fit follow when there is room; one line says that they lacked."""
    recorder = recorder_in(tmp_path / "out")
    add(recorder, 0, EVEN)
    with monkeypatch.context() as patch:
        ShortWrites(patch, most=50, room=100)
        for iteration in (1, 2, 3):
            add(recorder, iteration, EVEN)
            recorder.event(WorkerEvent(iteration, 2, "n1", "lost", "killed"))
            recorder.evaluated([EvaluationRow(iteration, 0, "auc", 0.5)])
    out = tmp_path / "out"
    full = {"evaluations.csv", "iterations.csv", "lost.csv", "timeline.raw"}
    assert recorder.not_whole == dict.fromkeys(full, FULL)
    assert sorted(capfd.readouterr().err.splitlines()) == [
        f"psgc: {out / name}: {FULL}; the record is incomplete, the run goes on" for name in sorted(full)
    ]
    assert len(read_timeline(out)[0]["worker"]) == 6
    add(recorder, 4, EVEN)
    recorder.event(WorkerEvent(4, 2, "n1", "lost", "killed"))
    recorder.evaluated([EvaluationRow(4, 0, "auc", 0.5)])
    assert recorder.not_whole == {}
    assert iterations(out) == [0, 1, 2, 3, 4]
    assert read_timeline(out)[0]["iteration"].tolist() == [i for i in range(5) for _ in range(3)]
    for name in ("lost.csv", "evaluations.csv"):
        assert len((out / name).read_text().splitlines()) == 5
    summary = recorder.finish(np.zeros(1), summarise(recorder, 1.0, {}, "done", ""))
    assert "not_whole" not in summary
    assert not any("whole" in line for line in lines(summary))


@pytest.mark.parametrize("more", [True, False], ids=["at the next step", "at the end"])
def test_the_row_of_a_restart_that_did_not_fit_follows(recorder_in, tmp_path, more):
    out = tmp_path / "out"
    add(recorder_in(out), 0, EVEN)
    again = recorder.Recorder(out, "seed: 1\n", BOTH_HOLD_ALL, 1, (2, 1), 10, resume_at=1, is_restored=True)
    with no_file_longer_than(20):
        for iteration in (1, 2):
            add(again, iteration, EVEN)
            assert "restores.csv" in again.not_whole
    if more:
        add(again, 3, EVEN)
        assert again.not_whole == {}
    assert "not_whole" not in again.finish(np.zeros(1), {})
    assert [row.iteration for row in earlier(out / "restores.csv", Restored)] == [1]


def test_a_run_without_room_to_begin_leaves_its_directory_to_the_next_one(recorder_in, tmp_path):
    with no_file_longer_than(20), pytest.raises(UserError, match=r"out/iterations\.csv: File too large"):
        recorder_in(tmp_path / "out")
    claim = Claim(tmp_path / "out")
    claim.make_room(resuming=False)
    claim.release()


def with_a_long_timeline(recorder):
    for iteration in range(5):
        for _ in range(200):
            recorder.chunk(1, 0, iteration, 0.0, 0.5, Outcome.USED)
        add(recorder, iteration, EVEN)
    recorder.evaluated([EvaluationRow(4, 0, "auc", 0.5)])


def takes_over(directory):
    return recorder.Recorder(directory, "seed: 1\n", BOTH_HOLD_ALL, 1, (2, 1), 10, resume_at=5, took={})


def test_without_room_for_a_copy_of_the_timeline_a_takeover_goes_on(recorder_in, tmp_path, capfd):
    out = tmp_path / "out"
    with_a_long_timeline(recorder_in(out))
    with no_file_longer_than(10_000):
        successor = takes_over(out)
        add(successor, 5, EVEN)
    assert successor.tally.chunks.tolist() == [5 * 203 + 3, 0, 0, 0]
    summary = successor.finish(np.zeros(1), summarise(successor, 1.0, {}, "done", ""))
    assert list(summary["not_whole"]) == ["timeline.raw"]
    assert iterations(out) == [0, 1, 2, 3, 4, 5]
    assert not list(out.glob("timeline.*"))
    said = f"psgc: {out}/timeline.raw: File too large; the record is incomplete, the run goes on\n"
    assert capfd.readouterr().err == said


@pytest.mark.parametrize("room", [0, 4096, 8192, 12288, 16384])
def test_the_timeline_makes_room_for_the_record_of_a_run_that_goes_on(tmp_path, room):
    with small_disk(tmp_path / "disk", "128k") as disk:
        (out := disk / "out").mkdir()
        before = recorder.Recorder(out, "seed: 1\n", BOTH_HOLD_ALL, 1, (2, 1), 10)
        with_a_long_timeline(before)
        before.finish(None, {})
        (out / "summary.json").unlink()
        (disk / "room").write_bytes(bytes(room))
        with suppress(OSError):
            (disk / "others").write_bytes(bytes(200_000))
        (disk / "room").unlink()
        successor = takes_over(out)
        add(successor, 5, EVEN)
        assert successor.not_whole == {"timeline.raw": FULL}
        assert iterations(out) == [0, 1, 2, 3, 4, 5]
        assert len((out / "evaluations.csv").read_text().splitlines()) == 2
        assert (out / "config.yaml").read_text() == "seed: 1\n"
        assert not list(out.glob("timeline.*"))
        successor.finish(np.zeros(1), {})


def test_the_parameters_of_the_end_make_room_for_a_run_that_goes_on(tmp_path):
    with small_disk(tmp_path / "disk", "192k") as disk:
        (out := disk / "out").mkdir()
        before = recorder.Recorder(out, "seed: 1\n", BOTH_HOLD_ALL, 1, (2, 1), 10)
        with_a_long_timeline(before)
        before.finish(np.zeros(8192), {})
        with suppress(OSError):
            (disk / "others").write_bytes(bytes(200_000))
        successor = takes_over(out)
        add(successor, 5, EVEN)
        assert successor.not_whole == {}
        assert iterations(out) == [0, 1, 2, 3, 4, 5]
        assert not (out / "params.npy").exists()


def test_what_lacks_at_the_end_is_in_the_summary(recorder_in, tmp_path, monkeypatch):
    recorder = recorder_in(tmp_path / "out")
    with monkeypatch.context() as patch:
        ShortWrites(patch, most=50, room=0)
        add(recorder, 0, EVEN)
        summary = recorder.finish(np.zeros(1), summarise(recorder, 1.0, {}, "done", ""))
    assert summary["not_whole"] == dict.fromkeys(("timeline.raw", "iterations.csv"), FULL)
    assert json.loads((tmp_path / "out/summary.json").read_text())["not_whole"] == summary["not_whole"]
    assert f"  incomplete files   timeline.raw ({FULL}), iterations.csv ({FULL})" in lines(summary)
    recorder.finish(np.zeros(1), summary)
    assert iterations(tmp_path / "out") == [0]


def test_a_run_whose_parameters_are_not_saved_has_failed(recorder_in, tmp_path):
    recorder = recorder_in(tmp_path / "out")
    with no_file_longer_than(3000):
        summary = recorder.finish(np.zeros(1000), {"status": "done", "reason": "", "iterations": 0})
        told = [summary[name] for name in ("status", "exit_code", "reason")]
        assert told == ["failed", 1, "params.npy: File too large"]
        stopped = recorder.finish(np.zeros(1000), {"status": "interrupted", "reason": "asked to stop"})
        assert (stopped["status"], stopped["not_whole"]) == ("interrupted", {"params.npy": "File too large"})
    assert recorder.finish(np.zeros(1000), {"status": "done"}) == {"status": "done"}
    assert len(np.load(tmp_path / "out/params.npy")) == 1000


@pytest.fixture
def full_for(monkeypatch):
    """The disk is full for these files until the end of the context; at_first: only while the timeline lies there."""

    @contextmanager
    def full(*names, at_first=False):
        real = disk.write_whole

        def write(path, fill, *more):
            there = [name for name in ("timeline.raw", "timeline.npz") if (path.parent / name).exists()]
            if path.name in names and (there or not at_first):
                raise OSError(errno.ENOSPC, FULL, str(path))
            real(path, fill, *more)

        with monkeypatch.context() as patch:
            for module in (disk, recorder, timeline):
                patch.setattr(module, "write_whole", write)
            yield

    return full


@pytest.mark.parametrize("name", ["params.npy", "summary.json"])
def test_the_timeline_makes_room_for_the_result(recorder_in, tmp_path, full_for, name):
    record, params = recorder_in(tmp_path / "out"), np.zeros(3)
    add(record, 0, EVEN)
    with full_for(name, "timeline.npz", at_first=True):
        summary = record.finish(params, {"status": "done"})
        assert summary == {"status": "done", "not_whole": {"timeline.raw": FULL}}
        assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
        assert (tmp_path / "out/params.npy").exists()
        assert not list((tmp_path / "out").glob("timeline.*"))
    assert record.finish(params, {"status": "done"}) == summary


def test_the_timeline_makes_room_for_a_checkpoint_while_the_run_goes(recorder_in, tmp_path, capfd):
    record = recorder_in(tmp_path / "out")
    for iteration in range(3):
        add(record, iteration, EVEN)
        record.drop_timeline()
    assert not (tmp_path / "out/timeline.raw").exists()
    assert capfd.readouterr().err == (
        f"psgc: {tmp_path}/out/timeline.raw is removed to make room for a checkpoint; the record is incomplete, "
        "the run goes on\n"
    )
    assert record.finish(np.zeros(1), {}) == {"not_whole": {"timeline.raw": FULL}}
    assert not list((tmp_path / "out").glob("timeline.*"))


@pytest.mark.parametrize("name", ["params.npy", "summary.json"])
def test_the_recorder_says_when_checkpoints_should_make_room(recorder_in, tmp_path, full_for, name):
    record = recorder_in(tmp_path / "out")
    with full_for(name):
        with pytest.raises(OSError, match="No space") if name == "summary.json" else nullcontext():
            record.finish(np.zeros(3), {"status": "done"})
        assert record.lacks_room
    record.finish(np.zeros(3), {"status": "done"})
    assert not record.lacks_room


def test_the_same_parameters_are_written_once(recorder_in, tmp_path, full_for):
    """A checkpoint may have taken the room that a second file would need."""
    record, params = recorder_in(tmp_path / "out"), np.zeros(3)
    record.finish(params, {"status": "done", "evaluating": True})
    with full_for("params.npy"):
        assert record.finish(params, {"status": "done"}) == {"status": "done"}


def test_without_room_for_a_text_or_better_rows_the_run_goes_on(recorder_in, tmp_path):
    record = recorder_in(tmp_path / "out")
    add(record, 0, {(1, 0): 1.0, (1, 1): 1.0}, missing=1, error_measure=1 / 3, recovered=2)
    with no_file_longer_than(100):
        told = record.failure_text(3, "ValueError: x\n" + 200 * "y")
        assert told == f"ValueError: x (no traceback in {tmp_path}/out/worker-3-error.txt: File too large)"
        record.complete({0: 0.25})
    assert record.not_whole == {"iterations.csv": "File too large"}
    assert iterations(tmp_path / "out") == [0]


def test_the_figures_beside_best_npy_are_those_of_its_parameters(recorder_in, tmp_path):
    out = tmp_path / "out"
    recorder = recorder_in(out)
    recorder.keep_best(np.ones(3), {"iteration": 1, "test_loss": 0.5})
    with no_file_longer_than(4096):
        recorder.keep_best(np.zeros(1000), {"iteration": 2, "test_loss": 0.25})
    assert np.load(out / "best.npy").tolist() == [1, 1, 1]
    assert json.loads((out / "best.json").read_text()) == {"iteration": 1, "test_loss": 0.5}
    assert "best.npy" in recorder.not_whole
    recorder.drop_best()
    assert not list(out.glob("best.*"))
