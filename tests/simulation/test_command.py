"""`psgc simulate`: the table, the JSON, the figure, and exit codes."""

import json
import sys
from pathlib import Path

import pytest

import psgc
from psgc.cli import main
from psgc.simulation import experiment

SIMULATION = """\
assignment: {kind: cyclic, chunks: 12, workers: 12, load: 4}
speeds: {kind: exponential, failed: "load - parts"}
schedules: [uncoded, static, dynamic]
parts: [1, 2]
trials: 5
deadlines: [1, 2]
bound: true
"""
KEYS = ["parts", "schedule", "mean_time", "std_time", "mean_bound", "mean_ratio", "mean_errors"]


@pytest.fixture(autouse=True)
def sim_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    Path("sim.yaml").write_text(SIMULATION)


def exit_code(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "sim.yaml", *arguments])
    return caught.value.code


def test_a_table_with_a_line_for_every_row(capsys):
    assert exit_code() == 0
    out, err = capsys.readouterr()
    title, head, *lines = out.splitlines()
    assert title == "5 trials, means over those that recover; seconds"
    assert " ".join(head.split()) == "l schedule mean time std T* T / T* copies impossible error at 1 error at 2"
    assert [line.split()[:2] for line in lines] == [
        [parts, s] for parts in "12" for s in ("uncoded", "static", "dynamic")
    ]
    assert err == ""  # no progress bar where nobody watches


def test_json_is_a_list_of_rows(capsys):
    assert exit_code("--json", "rows.json", "--set", "trials=3", "--set", "speeds.failed=0") == 0
    rows = json.loads(Path("rows.json").read_text())
    assert len(rows) == 6
    for row in rows:
        assert list(row) == [*KEYS, "impossible", "mean_computed"]
        assert row["mean_ratio"] >= 1
        assert row["impossible"] == 0
        assert len(row["mean_errors"]) == 2
    assert psgc.simulate("sim.yaml", set={"trials": 3, "speeds.failed": 0}) == rows


def test_json_has_null_where_there_is_no_mean(capsys):
    assert exit_code("--json", "rows.json", "--set", "speeds.failed=11", "--set", "bound=false") == 0
    text = Path("rows.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    for row in json.loads(text):
        assert row["impossible"] == 5
        assert row["mean_time"] is row["std_time"] is row["mean_ratio"] is row["mean_bound"] is None
        assert row["mean_computed"] is None


def test_json_that_cannot_be_written_is_exit_2_and_one_line(capsys):
    Path("rows.json").symlink_to("elsewhere")
    assert exit_code("--json", "rows.json") == 2
    assert capsys.readouterr().err == "psgc: rows.json: cannot be written: Is a link, not a file\n"


def test_a_plot_is_a_png(capsys):
    pytest.importorskip("matplotlib")
    assert exit_code("--plot", "figure.png") == 0
    assert Path("figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json", "none/rows.json"], "--json none/rows.json: expected a file in a directory that exists"),
        (["--plot", "none/f.png"], "--plot none/f.png: expected a file in a directory that exists"),
        (["--set", "trials=0"], "--set trials=0: expected a whole number >= 1, got 0"),
        (["--set", "parts=[9]"], "parts is 9, but chunk 0 is held by only 4 workers"),
        (["--set", "assignment={kind: file, path: no.npy}"], "no.npy: cannot read it: no such file or directory"),
    ],
)
def test_a_mistake_is_exit_2_and_one_line_before_anything_is_simulated(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(experiment.coding, "ordering", lambda *arguments: pytest.fail("simulated"))
    assert exit_code(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"psgc: {said}")
    assert len(err.splitlines()) == 1
    assert out == ""


def test_a_wrong_name_and_no_matplotlib_are_exit_2(capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    for name in ("figure", "figure.doc", "figure.png.gz"):
        assert exit_code("--plot", name) == 2
        assert "expected a name that ends in .png, .pdf or .svg" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "psgc.tools.drawing", raising=False)
    assert exit_code("--plot", "figure.png") == 2
    assert capsys.readouterr().err == "psgc: plots need matplotlib: pip install matplotlib\n"


NETWORK = """\
network: {rate: 25e6, latency: 1e-4, dim: 1000000, itemsize: 4}
workers: [8, 400]
parts: [1, 2]
"""


def test_a_network_is_a_table_and_json(capsys):
    Path("sim.yaml").write_text(NETWORK)
    assert exit_code("--json", "rows.json") == 0
    out, err = capsys.readouterr()
    title, head, *lines = out.splitlines()
    assert title.startswith("an iteration with nothing to compute; links of 2.5e+07 bytes/s, latency 0.0001 s; 1000000")
    assert " ".join(head.split()) == "workers program l seconds MB busiest link over mean control at rank 0"
    assert lines[0].split() == ["8", "allreduce", "0.2814", "14.0", "1.000", "0"]
    assert lines[1].split() == ["8", "server", "1", "1.601", "64.0", "4.500", "160"]
    assert lines[9].split()[:3] == ["400", "coded_allreduce", "2"]
    assert lines[9].endswith("by symmetry")
    assert err == ""
    rows = json.loads(Path("rows.json").read_text())
    assert psgc.simulate(Path("sim.yaml")) == rows
    assert [(row["workers"], row["program"], row["parts"]) for row in rows] == [
        (workers, program, parts)
        for workers in (8, 400)
        for program in ("allreduce", "server", "coded_allreduce")
        for parts in ([None] if program == "allreduce" else [1, 2])
    ]
    assert [row["by_symmetry"] for row in rows] == 5 * [False] + [True, False, False, True, True]
    assert all(row["ratio"] == pytest.approx(row["busiest_bytes"] / row["mean_bytes"]) for row in rows)
    assert [*rows[0]][3:] == ["seconds", "busiest_bytes", "mean_bytes", "ratio", "control_messages", "by_symmetry"]


def test_a_network_has_no_figure(capsys):
    Path("sim.yaml").write_text(NETWORK)
    assert exit_code("--plot", "f.png") == 2
    said = "psgc: --plot: expected a simulation of schedules; one of a network has a table only\n"
    assert capsys.readouterr().err == said


def test_a_ring_of_one_rank_sends_nothing(capsys):
    Path("sim.yaml").write_text(NETWORK)
    assert exit_code("--set", "programs=[allreduce]", "--set", "workers=[1]", "--json", "rows.json") == 0
    [row] = json.loads(Path("rows.json").read_text())
    assert (row["seconds"], row["busiest_bytes"], row["ratio"]) == (0, 0, 1)
