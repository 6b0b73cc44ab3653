"""`psgc simulate`: the table, the JSON, the figure, and exit codes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import psgc
from psgc.cli import main
from psgc.cli.simulate import draw_errors, draw_times, figure_of
from psgc.simulation import experiment
from psgc.simulation.experiment import ScheduleRow

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


@pytest.mark.parametrize(("name", "start"), [("f.png", b"\x89PNG\r\n\x1a\n"), ("f.svg", b"<?xml"), ("f.pdf", b"%PDF")])
def test_a_plot_is_what_its_name_says(capsys, name, start):
    pytest.importorskip("matplotlib")
    assert exit_code("--plot", name) == 0
    assert Path(name).read_bytes().startswith(start)


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


# the figure

ROWS = [
    ScheduleRow(1, "static", 2.0, 0.5, None, None, [3.0, 0.1], 0, 20.0),
    ScheduleRow(2, "static", 3.0, 0.5, None, None, [4.0, 0.0], 0, 30.0),
    ScheduleRow(1, "dynamic", 1.0, 0.2, None, None, [2.0, 0.0], 0, 15.0),
    ScheduleRow(2, "dynamic", None, None, None, None, [3.0, 1.0], 5, None),
]


@pytest.fixture
def axes():
    return pytest.importorskip("matplotlib.figure").Figure().subplots()


@pytest.mark.parametrize(
    ("deadlines", "panels"), [([], ["completion time"]), ([1.0], ["completion time", "mean error"])]
)
@pytest.mark.parametrize("rows", [ROWS, [ScheduleRow(1, "static", None, None, None, None, [0.0], 3, None)]])
def test_errors_have_a_panel_where_there_are_deadlines(rows, deadlines, panels):
    pytest.importorskip("matplotlib")
    rows = [replace(row, mean_errors=row.mean_errors[: len(deadlines)]) for row in rows]
    assert [axes.get_ylabel() for axes in figure_of(rows, deadlines).axes] == panels


def test_times_have_bars_of_one_standard_deviation(axes):
    draw_times(axes, {"static": [(1, 2.0, 0.5), (2, 3.0, 0.25)], "never": []})
    (bars,) = axes.containers
    assert bars.get_label() == "static"
    assert bars.lines[0].get_ydata().tolist() == [2.0, 3.0]
    (segments,) = (collection.get_segments() for collection in bars.lines[2])
    assert [segment[:, 1].tolist() for segment in segments] == [[1.5, 2.5], [2.75, 3.25]]
    assert axes.get_xticks().tolist() == [1, 2]


def test_errors_are_logarithmic_and_zeros_left_out(axes):
    draw_errors(axes, [2.0, 1.0, 3.0], {"a": [0.1, 3.0, 0.0], "gone": [0.0, 0.0, 0.0]})
    (line,) = axes.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1.0, 2.0], [3.0, 0.1])
    assert axes.get_yscale() == "log"


# a network

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
    numbers = ["seconds", "busiest_bytes", "mean_bytes", "ratio", "control_messages"]
    assert [*rows[0]][3:] == [*numbers, "by_symmetry", "per_host"]


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
