"""What is read from a run directory, whole or half-written, and one line for what cannot be."""

import json
import shutil

import numpy as np
import pytest
import yaml

from psgc.errors import UserError
from psgc.run_rows import COLUMNS, HELD_OUT, WorkerEvent
from psgc.tools.run_directory import read_run
from tests.unit.recorded_runs import record


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return record(directory, workers=4, chunks_per_worker=3, iterations=5, slow={2: 4.0}, lost={3: 2})


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def refusal(directory):
    with pytest.raises(UserError) as caught:
        read_run(directory)
    assert str(caught.value).startswith(str(directory))
    return str(caught.value).removeprefix(str(directory))


def test_what_is_known_of_no_iteration_has_no_column(tmp_path):
    held_out = lambda iteration: {"test_loss": 1.5 - iteration} if iteration == 1 else {}  # noqa: E731
    without = read_run(record(tmp_path / "without", 2, 2, 3, loss=lambda _: None, held_out=held_out))
    assert set(COLUMNS) - set(without.iterations) == {"loss", "test_accuracy"}
    np.testing.assert_array_equal(without.iterations["test_loss"], [np.nan, 0.5, np.nan])
    assert without.summary["final_loss"] is None
    diverged = read_run(record(tmp_path / "diverged", 2, 2, 3, loss=lambda i: [None, np.nan, np.inf][i]))
    assert [str(loss) for loss in diverged.iterations["loss"]] == ["nan", "nan", "inf"]
    assert diverged.summary["final_loss"] == "inf"
    text = (tmp_path / "without/iterations.csv").read_text().splitlines()
    for other in ("seconds", "bound"):  # an empty field is a loss only
        row = dict(zip(COLUMNS, text[1].split(","), strict=True)) | {other: ""}
        (tmp_path / "without/iterations.csv").write_text("\n".join([text[0], ",".join(row.values()), *text[2:], ""]))
        assert f"{other}: expected a number, got ''" in refusal(tmp_path / "without")


def test_everything_that_a_run_leaves(whole):
    run = read_run(str(whole))
    assert run.path == whole
    assert (run.workers, run.chunks, run.summary["status"]) == (4, 12, "done")
    assert (run.config.iterations, run.config.output) == (5, str(whole))
    assert tuple(run.iterations) == tuple(name for name in COLUMNS if name not in HELD_OUT)
    assert run.iterations["iteration"].tolist() == [0, 1, 2, 3, 4]
    assert run.iterations["lost"].tolist() == [0, 0, 1, 1, 1]
    assert run.iterations["loss"] == pytest.approx(2.3 * 0.97 ** np.arange(5))
    assert [name for name, column in run.iterations.items() if column.dtype == np.int64] == [
        "iteration", "missing", "recovered", "redundant", "bytes", "bytes_in", "lost",
    ]  # fmt: skip
    assert run.events == [WorkerEvent(2, 3, "n1", "lost", "its process died")]
    with np.load(whole / "timeline.npz") as archive:
        assert {name: archive[name].tolist() for name in archive} == {
            name: column.tolist() for name, column in run.timeline.items()
        }


def test_the_pace_of_workers_is_the_mean_of_what_they_did(whole):
    run = read_run(whole)
    seconds = run.seconds_per_chunk()
    timeline = run.timeline
    assert seconds.shape == (5, 4)
    for row in range(5):
        for worker in range(1, 5):
            mine = (timeline["iteration"] == row) & (timeline["worker"] == worker) & (timeline["outcome"] != 2)
            took = timeline["seconds"][mine]
            assert seconds[row, worker - 1] == pytest.approx(took.mean() if took.size else np.nan, nan_ok=True)
    assert np.isnan(seconds[3:, 2]).all()  # it was lost
    assert np.nanmean(seconds[:, 1]) > 3 * np.nanmean(seconds[:, 0])


def test_chunks_of_iterations_without_a_row_are_left_out(run):
    rows = (run / "iterations.csv").read_bytes().splitlines(keepends=True)
    (run / "iterations.csv").write_bytes(b"".join([rows[0], rows[2], rows[4]]))
    few, all_of_them = read_run(run), read_run(run)
    assert few.iterations["iteration"].tolist() == [1, 3]
    np.testing.assert_array_equal(few.seconds_per_chunk(), all_of_them.seconds_per_chunk())
    (run / "iterations.csv").write_bytes(rows[0])
    assert read_run(run).seconds_per_chunk().shape == (0, 4)


# half-written


def test_a_run_that_was_killed_has_all_but_its_end(tmp_path):
    directory = record(tmp_path / "run", workers=4, chunks_per_worker=3, iterations=5, killed=True)
    run = read_run(directory)
    assert (run.summary, run.workers, run.chunks, len(run.iterations["loss"])) == (None, 4, 12, 5)
    assert np.isfinite(run.seconds_per_chunk()).all()


def test_at_any_byte_the_rows_before_are_read(run):
    """Whatever was written when it was killed, all lines before the last are there."""
    content = (run / "iterations.csv").read_bytes()
    first = content.index(b"\n") + 1
    for size in [*range(first, len(content), 7), len(content) - 1]:
        (run / "iterations.csv").write_bytes(content[:size])
        assert len(read_run(run).iterations["loss"]) == content[:size].count(b"\n") - 1
    (run / "lost.csv").write_bytes((run / "lost.csv").read_bytes()[:-3])
    assert read_run(run).events == []


def test_without_summary_and_timeline_little_is_known(run):
    (run / "summary.json").unlink()
    (run / "timeline.npz").unlink()
    found = read_run(run)
    assert (found.summary, found.timeline, found.workers, found.chunks) == (None, None, 3, 0)  # worker 3 was lost
    assert found.seconds_per_chunk().shape == (0, 3)
    (run / "lost.csv").unlink()
    assert read_run(run).workers == 0


# what is no run directory, and damage


def test_what_is_no_run_directory(tmp_path, whole):
    expected = "; expected a run directory, the output of psgc train"
    assert refusal(tmp_path / "none") == f": no such directory{expected}"
    assert refusal(whole / "config.yaml") == f": not a directory{expected}"
    assert refusal(tmp_path) == f": not a run directory, it has no config.yaml and no iterations.csv{expected}"
    shutil.copy(whole / "config.yaml", tmp_path)
    assert refusal(tmp_path) == f": not a run directory, it has no iterations.csv{expected}"
    with pytest.raises(UserError, match="no such directory"):
        read_run("a\0b")


OTHER = "written by another version of psgc: expected the columns "
EVENTS = "iteration, worker, host, event, reason"


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("config.yaml", b"schedule:", b"cadence:", "cadence: unknown key"),
        ("iterations.csv", b"efficiency", b"speed", OTHER + ", ".join(COLUMNS)),
        ("iterations.csv", b"loss", b"iteration", OTHER),
        ("iterations.csv", b"iteration", b"\xef\xbb\xbfiteration", OTHER),
        ("lost.csv", b"host", b"node", OTHER + EVENTS),
        ("iterations.csv", b"\n1,", b"\n0,", "damaged: the iterations do not ascend"),
        ("iterations.csv", b"\n1,", b"\n-1,", "damaged: row 3: iteration: expected a whole number, got '-1'"),
        (
            "iterations.csv",
            b"\n1,",
            b"\n" + 30 * b"1" + b",",
            "damaged: row 3: iteration: expected a whole number, got '11",
        ),
        ("iterations.csv", b",2.231,", b",much,", "damaged: row 3: loss: expected a number, got 'much'"),
        ("iterations.csv", b",2.231,", b",2.231,-", "damaged: row 3: seconds: expected 0 to 1e+09, got '-"),
        ("iterations.csv", b",2.231,", b",", "damaged: row 3 has 14 values, expected 15"),
        ("iterations.csv", None, b"", "empty, expected a line with the names of the columns"),
        ("iterations.csv", None, b'"' + 140_000 * b"a" + b"\n", "damaged, or of another version of psgc (Error: field"),
        ("iterations.csv", None, 2**20 * b"a", "a line is longer than 1048576 bytes"),
        ("summary.json", None, b"{", "damaged, or of another version of psgc ("),
        ("summary.json", None, 99_999 * b"[", "damaged, or of another version of psgc ("),
        ("summary.json", None, b"[]", "damaged, or of another version of psgc: expected status, of type str"),
        ("summary.json", b'"workers": 4', b'"workers": true', "expected workers, of type int"),
        ("lost.csv", b"2,3", b"x,3", "row 2: iteration: expected a whole"),
    ],
)
def test_other_versions_and_damage_are_one_line(run, name, old, new, said):
    text = (run / name).read_bytes()
    assert old is None or old in text
    (run / name).write_bytes(new if old is None else text.replace(old, new, 1))
    told = refusal(run)
    assert told.startswith(f"/{name}:")
    assert said in told
    assert "\n" not in told
    if name == "config.yaml":
        assert told.endswith("cannot read it, another version may have written it")


def test_a_dollar_in_a_path_of_the_run_is_a_dollar(run):
    """The variables of the user's YAML were expanded when the run began."""
    settings = yaml.safe_load((run / "config.yaml").read_text()) | {"output": "runs/a$b"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert read_run(run).config.output == "runs/a$b"


def test_files_that_do_not_fit_each_other(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"workers": 2}))
    assert refusal(run) == ": damaged: a run of 2 workers has no worker 4"
    (run / "summary.json").write_text(json.dumps(summary | {"workers": 10**9}))
    assert refusal(run) == ": damaged: 1000000000 workers and 12 chunks are no run"
    (run / "summary.json").write_text(json.dumps(summary | {"workers": 10**6}))
    entries = len(np.load(run / "timeline.npz")["worker"])
    said = f": damaged: 1000000 workers in 5 iterations do not go with {entries} chunks in timeline"
    assert refusal(run) == said
    (run / "summary.json").write_text(json.dumps(summary | {"chunks": -1}))
    assert refusal(run) == ": damaged: 4 workers and -1 chunks are no run"
