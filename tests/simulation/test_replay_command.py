"""`psgc replay`: the table, the JSON, the advice, and exit codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

import psgc
from psgc import coding
from psgc import config as configuration
from psgc.cli import main
from psgc.data import write_dense
from psgc.iteration import is_evaluated
from psgc.record.csv_files import COLUMNS
from psgc.simulation import advice
from psgc.vectors import TAIL
from psgc.yaml_source import to_text
from tests.simulation.recorded import record, settings, torch_settings
from tests.unit import recorded_runs

SECONDS = [[1.0, 1.0, 1.0, 4.0]] * 6  # worker 4 is slow


@pytest.fixture(autouse=True)
def run_directory(tmp_path, monkeypatch):
    """A run of four workers in run/, as files."""
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    write_dense("data.npz", np.ones((64, 9)), np.zeros(64))
    write_run(settings("static", chunks_per_worker=4, replication=2).model_copy(update={"data": data("data.npz")}))
    return Path("run")


def data(path):
    return configuration.Data(path=path)


def write_run(config, seconds=SECONDS, every=0):
    run = record(config, seconds)
    directory = Path("run")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "config.yaml").write_text(config.to_yaml())
    rows = [",".join(COLUMNS)]
    for i, seconds in enumerate(run.iterations["seconds"].tolist()):
        values = {
            "iteration": i,
            "seconds": seconds,
            "loss": 1.0,
            "recovered": 16,
            "redundant": 0,
            "bytes": 0,
            "lost": 0,
            "test_loss": 0.5 if is_evaluated(i, every) else "",
            "test_accuracy": "",
        }
        rows.append(",".join(str(values.get(name, 0)) for name in COLUMNS))
    (directory / "iterations.csv").write_text("\n".join(rows) + "\n")
    np.savez(directory / "timeline.npz", **run.timeline, outcomes=np.array(["used", "late", "abandoned", "lost"]))
    np.save(directory / "params.npy", np.zeros(10))
    summary = {"status": "done", "reason": "", "workers": 4, "chunks": 16}
    (directory / "summary.json").write_text(json.dumps(summary))


def exit_code(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["replay", "run", *arguments])
    return caught.value.code


def test_runs_of_psgc_torch_have_their_chunks_together(capsys):
    write_run(torch_settings("static", chunks=16, replication=2))
    assert exit_code("--chunks", "8,16", "--schedule", "dynamic", "--json", "rows.json") == 0
    out = capsys.readouterr().out
    assert "chunks: in all" in out
    assert "  chunks: " in out  # the lines of YAML
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert {row["chunks"] for row in rows} == {8, 16}
    assert psgc.replay("run", chunks=[8, 16], schedule=["dynamic"])["rows"] == rows
    assert exit_code("--chunks-per-worker", "8") == 2
    assert capsys.readouterr().err.endswith("expected --chunks\n")


def test_a_program_with_psgc_train_has_chunks_for_each_worker(capsys):
    config = settings("static", chunks_per_worker=4, replication=2).model_copy(update={"batch": 6})
    write_run(config)
    own = psgc.replay("run", schedule=["static"], chunks_per_worker=[4, 8])["rows"]
    write_run(config.model_copy(update={"problem": of_program()}))
    result = psgc.replay("run", schedule=["static"], chunks_per_worker=[4, 8])
    assert result["rows"] == own
    assert result["yaml"].startswith("psgc.train(..., coding={'chunks_per_worker': ")
    assert exit_code("--schedule", "skipping", "--chunks-per-worker", "8", "--replication", "2", "--parts", "1") == 0
    out = capsys.readouterr().out
    assert "chunks: for each worker" in out
    assert out.endswith("schedule='skipping', transfer='per_chunk', batch=3)\n")
    assert exit_code("--chunks", "8") == 2
    assert capsys.readouterr().err.endswith("expected --chunks-per-worker\n")


@pytest.mark.parametrize(
    ("every", "replayed", "told"),
    [
        (0, 5, None),
        (2, 3, "2 iterations that evaluate held-out rows take longer, and are left out"),
        (1, 5, "every iteration evaluates held-out rows; the time that this takes is in all rows"),
    ],
)
def test_it_says_what_becomes_of_iterations_that_evaluate(capsys, every, replayed, told):
    write_run(settings("static", chunks_per_worker=4, replication=2), every=every)
    assert exit_code("--schedule", "static") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"6 iterations, of which {replayed} are replayed" in lines[0]
    assert [line for line in lines if "evaluate" in line] == ([told] if told else [])


def of_program():
    """The problem in the record of a program that calls psgc.train."""
    return configuration.ScriptProblem(script="train_ridge.py", of="Ridge")


def test_a_table_with_the_run_marked_and_one_recommended(capsys):
    assert exit_code("--json", "rows.json") == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where nobody watches
    assert "4 workers, 6 iterations, of which 5 are replayed; transfer per_chunk" in out
    lines = [line.split() for line in out.splitlines()]
    (own,) = (place for place, line in enumerate(lines) if line and line[0] in (">", "*>") and len(line) > 10)
    assert lines[own][1:6] == ["static", "4", "2", "1", "7000.0"]
    assert lines[own + 1] == ["recorded", "7000.0", "32.1", "%"]
    (advised,) = (line for line in lines if line and line[0] in ("*", "*>") and line[1] != "recommended")
    report = json.loads(Path("rows.json").read_text())
    (row,) = (row for row in report["rows"] if row["recommended"])
    assert advised[1:5] == [str(row[key]) for key in ("schedule", "chunks_per_worker", "replication", "parts")]
    assert report["rows"] == sorted(report["rows"], key=lambda row: row["seconds"])
    assert row["seconds"] <= 1.03 * report["rows"][0]["seconds"]
    assert report["reason"] in " ".join(out.split())
    assert out.endswith(report["yaml"])
    assert f"{len(report['rows'])} settings were tried; all of them are in rows.json" in out
    (uncoded,) = (r for r in report["rows"] if (r["schedule"], r["chunks_per_worker"], r["parts"]) == ("uncoded", 8, 1))
    assert uncoded["seconds"] == pytest.approx(8 * 2.0)
    assert uncoded["data_held"] == 0.25
    assert uncoded["memory_bytes"] == 0.25 * 64 * 10 * 8 + 10 * 8
    assert (uncoded["bytes_in"], uncoded["bytes_out"]) == (32 * (10 + TAIL) * 8, 4 * 10 * 8)


def test_a_grid_of_ones_own(capsys):
    assert exit_code("--replication", "1,3", "--chunks-per-worker", "4", "--parts", "1", "--schedule", "dynamic") == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["schedule"])
    rows = [line.lstrip("*> ").split()[:4] for line in lines[head + 1 : head + 5]]
    found = [["dynamic", "4", "1", "1"], ["dynamic", "4", "3", "1"], ["static", "4", "2", "1"]]
    assert sorted(row for row in rows if row[0] != "recorded") == found


def test_the_table_fits_a_terminal(monkeypatch, capsys):
    terminal = Console(width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr("psgc.record.progress.Console", lambda **how: Console(**how) if how else terminal)
    assert exit_code() == 0
    table = [line for line in capsys.readouterr().out.splitlines() if "%" in line and "B" in line]
    assert len(table) > 20
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in table)


def test_data_and_model_that_are_not_here_are_done_without(capsys):
    Path("data.npz").unlink()
    Path("run/params.npy").unlink()
    assert exit_code("--schedule", "skipping", "--json", "rows.json") == 0
    assert "data.npz: cannot read it" in (out := capsys.readouterr().out)
    assert "chunks count as equally expensive" in out
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert psgc.replay("run", schedule=["skipping"])["rows"] == rows
    assert capsys.readouterr().out == ""
    assert all(row["memory_bytes"] is row["bytes_in"] is row["bytes_out"] is None for row in rows)


def test_settings_that_are_not_possible_are_told_and_left_out(capsys):
    assert exit_code("--chunks-per-worker", "4,50", "--schedule", "skipping", "--parts", "1") == 0
    out = capsys.readouterr().out
    assert "2 settings are not possible, for example: data.npz: 64 rows cannot be cut into 200 chunks" in out


EQUAL, SLOW = [[1.0] * 4] * 6, SECONDS
UNBIASED = {"mode": "approximate", "deadline": 60.0, "estimator": "unbiased"}
FILE = {"kind": "file", "path": "A.npy"}


@pytest.mark.parametrize(
    ("changes", "seconds", "refused"),
    [
        ({"verify": {"every": 10}}, EQUAL, "verify: schedule uncoded has no second copy to compare with"),
        ({"recovery": UNBIASED}, SLOW, "recovery.estimator: unbiased needs fixed queues"),
        ({"verify": {"idle": True}, "transfer": "combined"}, EQUAL, "verify: idle compares gradients"),
        ({"verify": {"every": 9}, "coding": {"assignment": FILE}}, EQUAL, "verify: 2 copies with parts 2 leave none"),
        ({"iterations": None, "batch": {"size": 16, "epochs": 2}}, SLOW, "16 rows cannot be cut into 32 chunks"),
        ({"reproducible": True}, SLOW, "reproducible: with parts 2 the rounding depends"),
    ],
)
def test_what_is_recommended_is_what_the_yaml_of_the_run_takes(changes, seconds, refused):
    np.save("A.npy", coding.cyclic(16, 4, 2).toarray())
    base = settings("static", chunks_per_worker=4, replication=2).model_dump() | {"data": {"path": "data.npz"}}
    write_run(configuration.Config(**base | changes), seconds)
    written, remarks = yaml.safe_load(Path("run/config.yaml").read_text()), []
    for name in ("uncoded", "static", "skipping"):
        result = advice.predict("run", advice.Grid(schedule=[name]))
        remarks += result.remarks
        for prediction in result.predictions:  # any of them might be the quickest
            lines = advice.yaml_lines(result.replay.run.config, prediction.choice, 16, 4)
            read = configuration.from_yaml_text(to_text(written | yaml.safe_load(lines)))
            if isinstance(read.batch, configuration.BatchSettings):
                assert 4 * read.coding.per_worker <= read.batch.size
            if read.reproducible:
                assert read.coding.per_worker == 4
    assert any(refused in remark for remark in remarks)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replication", "2,x"], "--replication 2,x: expected whole numbers >= 1, separated by commas"),
        (["--chunks-per-worker", ""], "--chunks-per-worker : expected whole numbers >= 1"),
        (["--replication", "9"], "--replication 9: this run has 4 workers, expected no more"),
        (["--schedule", "dynamic,fast"], "--schedule dynamic,fast: expected some of uncoded,full,random"),
        (["--parts", "3", "--replication", "2", "--schedule", "static"], "nothing to try: parts needs as much"),
        (["--json", "."], "--json .: expected a file in a directory that exists"),
    ],
)
def test_a_mistake_is_exit_2_and_one_line_before_anything_is_simulated(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(advice, "Replay", lambda *arguments: pytest.fail("simulated"))
    assert exit_code(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"psgc: {said}")
    assert len(err.splitlines()) == 1
    assert out == ""


def test_an_assignment_from_a_file_says_replication_and_chunks_itself(capsys):
    np.save("A.npy", np.ones((16, 4), np.int8))
    file = {"assignment": configuration.AssignmentFile(kind="file", path="A.npy")}
    write_run(settings("static", **file))
    assert exit_code("--replication", "2") == 2
    assert "the assignment of this run is from a file" in capsys.readouterr().err
    assert exit_code("--schedule", "dynamic", "--parts", "1,4") == 0
    out = capsys.readouterr().out
    assert "path: A.npy" in out
    assert "not possible" not in out


def test_the_numbers_of_an_assignment_from_a_file_are_those_of_its_matrix(capsys):
    np.save("A.npy", coding.cyclic(16, 4, 3).toarray())
    config = settings("static", assignment=configuration.AssignmentFile(kind="file", path="A.npy"))
    write_run(config)
    assert exit_code("--parts", "1,2", "--json", "rows.json") == 0
    report = json.loads(Path("rows.json").read_text())
    assert {(row["chunks_per_worker"], row["replication"]) for row in report["rows"]} == {(4, 3)}
    rest = config.model_dump(include={"problem", "optimizer", "iterations", "output"})
    read = configuration.from_yaml_text(to_text(rest) + report["yaml"])  # is to be pasted
    assert read.coding.assignment == config.coding.assignment


def test_the_settings_of_the_run_alone_are_a_row(capsys):
    own = ("--schedule", "static", "--chunks-per-worker", "4", "--replication", "2", "--parts", "1")
    assert exit_code(*own, "--json", "rows.json") == 0
    report = json.loads(Path("rows.json").read_text())
    assert [row["recorded_seconds"] for row in report["rows"]] == [pytest.approx(7.0)]
    assert report["reason"] == "Nothing else was asked for."
    write_run(settings("uncoded", chunks_per_worker=4, replication=2))
    assert exit_code("--schedule", "uncoded", "--chunks-per-worker", "4", "--parts", "1", "--json", "rows.json") == 0
    assert len(json.loads(Path("rows.json").read_text())["rows"]) == 1


def test_a_run_that_was_killed_is_replayed_as_far_as_it_came(capsys):
    recorded_runs.record(Path("killed"), workers=4, iterations=6, slow={2: 5}, killed=True)
    with pytest.raises(SystemExit) as caught:
        main(["replay", "killed", "--schedule", "static,uncoded", "--json", "rows.json"])
    assert caught.value.code == 0
    assert "killed: 4 workers, 6 iterations, of which 5 are replayed" in capsys.readouterr().out
    rows = json.loads(Path("rows.json").read_text())["rows"]
    (uncoded,) = (row for row in rows if (row["schedule"], row["chunks_per_worker"], row["parts"]) == ("uncoded", 8, 1))
    assert 8 * 5 * 0.005 * 0.7 < uncoded["seconds"] < 8 * 5 * 0.005 * 1.5  # eight chunks of worker 2
    assert uncoded["bytes_in"] is None  # no params.npy


def without_room(run, reasons):
    """The run's record as a full disk leaves it. reasons: as in its summary."""
    (run / "timeline.npz").unlink()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"not_whole": reasons}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: shutil.rmtree(run), "run: no such directory"),
        (lambda run: (run / "timeline.npz").unlink(), "run: it has no timeline.raw and no timeline.npz: the"),
        (lambda run: without_room(run, {"timeline.raw": "No space"}), "run: it has no timeline.raw (No space); "),
        (lambda run: without_room(run, 3), "run: it has no timeline.raw and no timeline.npz: the disk was full"),
        (lambda run: (run / "iterations.csv").write_text(",".join(COLUMNS) + "\n"), "run: its timeline has no chunk"),
        (lambda run: (run / "params.npy").write_text("no"), "run/params.npy"),
    ],
)
def test_what_is_no_whole_run_is_exit_2_and_one_line(capsys, run_directory, spoil, said):
    spoil(run_directory)
    assert exit_code() == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"psgc: {said}")
    assert len(err.splitlines()) == 1
    assert out == ""
