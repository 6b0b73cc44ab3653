"""`psgc compare`: rows, their order, the table, and the figure."""

import json
import os
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from psgc.run_rows import EvaluationRow
from psgc.tools.comparison import compared
from psgc.tools.run_directory import read_run
from tests.unit.recorded_runs import changed, record, with_columns

LONG = 300 * "a"  # longer than a name can be


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    record(place / "a", workers=2, chunks_per_worker=2, iterations=4, seed=1)
    record(place / "b", workers=3, chunks_per_worker=2, iterations=5, lost={2: 1}, loss=lambda k: 9.0 - k)
    record(place / "killed", workers=2, chunks_per_worker=2, iterations=3, killed=True, loss=lambda k: 1.0)
    return place


@pytest.fixture
def compare(recorded, monkeypatch, psgc_command):
    """`psgc compare` beside the runs."""
    monkeypatch.chdir(recorded)
    return partial(psgc_command, "compare")


def runs(place, *names):
    return [read_run(place / name) for name in names]


def test_rows_say_what_differs_and_how_each_run_went(recorded):
    a, b = runs(recorded, "a", "b")
    first, second = compared([b, a])
    assert [first["run"], second["run"]] == [str(a.path), str(b.path)]  # the least final loss first
    assert first["settings"] == {"iterations": 4, "workers": 2}  # not the directory
    assert second["settings"] == {"iterations": 5, "workers": 3}
    assert (second["status"], second["iterations"], second["final_loss"], second["lost"]) == ("done", 5, 5.0, 1)
    assert second["seconds_per_iteration"] == pytest.approx(np.median(b.iterations["seconds"]))
    assert second["efficiency"] == pytest.approx(1 / 1.05)
    assert second["seconds"] == pytest.approx(b.iterations["seconds"].sum())
    assert second["test_loss"] is None
    json.dumps([first, second])


def test_the_order_is_that_of_held_out_losses_then_of_losses(recorded):
    (a,) = runs(recorded, "a")

    def made(name, **summary):
        return changed(a, path=Path(name), summary=a.summary | summary)

    best = made("best", test_loss=0.9, final_loss=9.0)  # at its end; it was the least before
    worse = made("worse", test_loss=0.6, final_loss=0.1)
    nan = made("nan", test_loss="nan", final_loss=0.2)
    found = [("loss", 0.52), ("auc", 0.6), ("loss", 0.55), ("accuracy", 0.9), ("auc", 0.7)]
    epochs = with_columns(made("epochs"), test_loss=[np.nan, np.nan, 0.52 - 1e-10, 0.55])  # as iterations.csv rounds
    epochs = changed(epochs, evaluated=[EvaluationRow(at, 1, *it) for at, it in enumerate(found)])
    without, diverged = made("without", final_loss=None), made("diverged", final_loss="nan")
    best = with_columns(best, test_loss=[np.nan, 0.4, np.nan, 0.9])
    slow = made("and slow", test_loss=0.5, final_loss=9.0, seconds=best.summary["seconds"] + 1)
    rows = compared([diverged, without, nan, slow, worse, epochs, best])
    assert [row["run"] for row in rows] == ["best", "and slow", "epochs", "worse", "nan", "diverged", "without"]
    assert (rows[2]["test_loss"], rows[2]["best_test_loss"], rows[2]["test_accuracy"]) == (0.55, 0.52, 0.9)
    assert rows[2]["metrics"] == {"auc": 0.7}


def test_runs_that_have_not_ended(recorded):
    (killed,) = runs(recorded, "killed")
    (row,) = compared([killed])
    assert (row["status"], row["iterations"], row["final_loss"]) == ("killed", 3, 1.0)
    assert row["seconds"] == pytest.approx(killed.iterations["seconds"].sum())
    assert row["efficiency"] == pytest.approx(1 / 1.05)
    (row,) = compared([with_columns(killed, test_loss=[0.5, 0.6, np.nan])])
    assert (row["test_loss"], row["best_test_loss"]) == (0.6, 0.5)
    empty = changed(killed, iterations={name: column[:0] for name, column in killed.iterations.items()})
    (row,) = compared([empty])
    assert (row["iterations"], row["final_loss"], row["efficiency"], row["seconds"]) == (0, None, None, 0)


def test_a_run_goes_on_while_its_process_lives_or_touches_its_lock(recorded):
    (killed,) = runs(recorded, "killed")
    lock = killed.path / "run.lock"

    def status(**holder):
        lock.write_text(json.dumps(holder))
        return compared([killed])[0]["status"]

    try:
        assert status(host=socket.gethostname(), pid=os.getpid()) == "running"
        assert status(host=socket.gethostname(), pid=2**22 + 1) == "killed"
        assert status(host="another", pid=1) == "running"
        os.utime(lock, (1, 1))
        assert compared([killed])[0]["status"] == "killed"
        assert status(host=socket.gethostname()) == "killed"  # damaged
    finally:
        lock.unlink()


# the command


def test_the_table_and_its_file(compare, tmp_path):
    code, out, err = compare("a", "./b", "a/", "killed", "--json", str(tmp_path / "rows.json"))
    assert (code, err) == (0, "")
    above, head, *rows, below = out.splitlines()
    assert above.split() == ["iter-", "sec-", "ms", "per"]
    columns = "run iterations workers status ations loss onds iter. T*/T lost"
    assert head.split() == columns.split()  # of what is not known in any run there is none
    assert [row.split()[0] for row in rows] == ["killed", "a", "b"]
    assert rows[2].split()[1:6] == ["5", "3", "done", "5", "5"]
    assert below.startswith("the least loss first")
    assert [row["run"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["killed", "a", "b"]


def test_metrics_of_scripts_have_columns(compare, recorded, tmp_path, monkeypatch):
    names = ["auc", "lost", *(f"[b]{number}" for number in range(6))]
    place = record(tmp_path / "script", workers=2, chunks_per_worker=2, iterations=3)
    rows = ["iteration,epoch,name,value", *(f"2,1,{name},0.12345" for name in names)]
    (place / "evaluations.csv").write_text("\n".join([*rows, "2,1,[b]6,nan", ""]))
    monkeypatch.chdir(tmp_path)
    code, out, _ = compare("script", str(recorded / "b"), "--json", "rows.json")
    head, script = (line.split() for line in out.splitlines()[1:3])
    assert code == 0
    assert head[head.index("loss") + 1 :][:6] == names[:6]
    assert script[head.index("loss") + 1 :][:6] == ["0.1235"] * 6
    assert out.splitlines()[-1] == "3 more metrics, which --json FILE has: [b]4, [b]5, [b]6"
    (row,) = (row for row in json.loads((tmp_path / "rows.json").read_text()) if row["metrics"])
    assert (row["metrics"]["auc"], row["metrics"]["[b]6"]) == (0.12345, "nan")


def test_a_wrong_directory_is_a_line_and_does_not_hide_the_others(compare):
    code, out, err = compare("a", "nowhere", "a/config.yaml")
    assert code == 2
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["psgc compare", "nowhere"],
        ["psgc compare", "a/config.yaml"],
    ]
    assert out.splitlines()[2].startswith("a ")
    code, out, err = compare("nowhere")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "psgc: no run to compare; expected run directories, such as runs/*"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plot", "a.jpg"], "--plot a.jpg: expected a name that ends in .png, .pdf or .svg"),
        (["--plot", "no/a.png"], "--plot no/a.png: expected a file in a directory that exists"),
        (["--json", "a"], "--json a: expected a file in a directory that exists"),
        (["--json", LONG], f"--json {LONG}: file name too long"),
        (["--plot", f"{LONG}/a.png"], f"--plot {LONG}/a.png: file name too long"),
    ],
)
def test_a_file_that_cannot_be_is_refused_first(compare, arguments, said):
    assert compare("a", *arguments) == (2, "", f"psgc: {said}\n")


def test_what_is_common_is_not_repeated_and_nothing_is_cut(compare, recorded, monkeypatch):
    place = recorded.name
    monkeypatch.chdir(recorded.parent)
    terminal = Console(width=20, force_terminal=True)
    monkeypatch.setattr("psgc.record.progress.Console", lambda **how: Console(**how) if how else terminal)
    code, out, _ = compare(f"{place}/a", f"{place}/b")
    above, *_, a, b, _ = out.splitlines()
    assert (code, above) == (0, f"in {place}/")
    assert (a.split()[0], b.split()[:4], b.split()[-1]) == ("a", ["b", "5", "3", "done"], "1")


def test_text_of_a_run_is_no_markup_and_a_loss_may_be_infinite(compare, recorded, tmp_path):
    place = record(tmp_path / "[red]x", workers=2, chunks_per_worker=2, iterations=3, loss=lambda k: np.inf)
    settings = (place / "config.yaml").read_text().replace("train.npz", "'[b]\\x1b'")
    (place / "config.yaml").write_text(settings)
    code, out, _ = compare(str(place), "a", "--json", str(tmp_path / "rows.json"))
    assert code == 0
    assert "[red]x" in out
    assert "[b]" in out
    assert "\x1b" not in out
    assert json.loads((tmp_path / "rows.json").read_text())[1]["final_loss"] == "inf"


def test_the_figure_has_a_line_for_each_run_and_names_the_best(compare, recorded, tmp_path):
    pytest.importorskip("matplotlib")
    from psgc.tools.comparison_figure import NAMED, draw

    (a,) = runs(recorded, "a")
    many = [with_columns(changed(a, path=Path(f"r{k}")), loss=[9.0, 8.0, 7.0, k]) for k in range(NAMED + 2)]
    many = [changed(run, summary=run.summary | {"final_loss": float(k)}) for k, run in enumerate(many)]
    lossless = changed(a, path=Path("none"), iterations={k: v for k, v in a.iterations.items() if k != "loss"})
    many.append(changed(lossless, summary=a.summary | {"final_loss": None}))
    figure, remark = draw(compared(many), many)
    assert remark == (
        "the losses of 12 runs; the legend names the best 10, the others are grey; 1 without a loss is left out"
    )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*(f"r{k}" for k in range(NAMED)), "2 others"]
    for panel, x in zip(figure.axes, (range(4), np.cumsum(a.iterations["seconds"])), strict=True):
        assert len(panel.lines) == NAMED + 2
        lines = {line.get_label(): line for line in panel.lines}
        assert lines["r3"].get_xdata() == pytest.approx(list(x))
        assert lines["r3"].get_ydata().tolist() == [9, 8, 7, 3]
        named = [line for label, line in lines.items() if not label.startswith("_")]
        assert len({(line.get_color(), line.get_linestyle()) for line in named}) == NAMED
    assert compare("a", "killed", "--plot", str(tmp_path / "c.svg"))[1].endswith("c.svg: the losses of 2 runs\n")
    assert "<svg" in (tmp_path / "c.svg").read_text()
