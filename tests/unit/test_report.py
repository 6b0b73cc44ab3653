"""`psgc report`: what it writes where, and one line for a mistake."""

import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.record.summary import lines
from psgc.run_rows import EvaluationRow
from psgc.tools.drawing import LIGHT, Picture, new_figure
from psgc.tools.figures import pictures
from psgc.tools.report import SCALARS, write_events
from psgc.tools.run_directory import read_run
from tests.simulation.network import Clock
from tests.unit.recorded_runs import changed, record


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "whole", workers=3, chunks_per_worker=2, iterations=3)


@pytest.fixture
def report_of(psgc_command):
    return partial(psgc_command, "report")


def test_figures_and_a_page(report_of, whole):
    before = sorted(os.listdir(whole))
    code, out, err = report_of(whole)
    assert (code, err) == (0, "")
    assert out == f"report written to {whole}/report/index.html, with its figures beside it\n"
    assert sorted(os.listdir(whole)) == sorted([*before, "report"])
    names = ["convergence.png", "efficiency.png", "gantt.png", "heatmap.png", "index.html"]
    assert sorted(os.listdir(whole / "report")) == names
    for name in names[:-1]:
        assert (whole / "report" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_killed_run_is_reported_elsewhere_and_of_one_iteration(report_of, tmp_path):
    directory = record(tmp_path / "killed", workers=3, chunks_per_worker=2, iterations=3, killed=True)
    with (directory / "iterations.csv").open("a") as stream:
        stream.write("3,0.5,0.0")
    code, out, err = report_of(directory, "--iteration", 1, "--output", tmp_path / "a/b")
    assert (code, err) == (0, "")
    assert f"{tmp_path}/a/b/index.html" in out
    text = (tmp_path / "a/b/index.html").read_text()
    for said in ("The run has not ended", "It has recorded 3 iterations.", "Iteration 1, worker by worker"):
        assert said in text
    assert (tmp_path / "a/b/gantt.png").exists()


def test_a_timeline_that_leaves_iterations_out(report_of, tmp_path, monkeypatch):
    """12 chunks on each of 4 workers are at most 48 entries an iteration, and there is room for 3 of 7 iterations."""
    monkeypatch.setattr("psgc.record.timeline.MOST_BYTES", 29 * 48 * 3)
    run = read_run(record(tmp_path / "run", workers=4, chunks_per_worker=3, iterations=7))
    assert run.iterations["iteration"][run.in_timeline].tolist() == [0, 3, 6]
    assert run.summary["timeline_every"] == 3
    assert "  timeline           one of 3 iterations, so that the file stays small" in lines(run.summary)
    (heat_map,) = (picture for picture in pictures(run) if picture.name == "heatmap")
    assert heat_map.caption.endswith("Each column is the mean of 3 iterations, of which the timeline has one.")
    (cells,) = heat_map.draw(LIGHT).axes[0].images
    assert cells.get_array().shape == (4, 3)
    assert not np.ma.is_masked(cells.get_array())
    refused = report_of(run.path, "--iteration", 4)[2]
    assert re.search("--iteration 4: the timeline does not have it, .* 0 to 6, such as 3", refused)


def test_a_run_that_was_killed_before_its_first_iteration(report_of, tmp_path):
    directory = record(tmp_path / "killed", workers=3, chunks_per_worker=2, iterations=0, killed=True)
    assert report_of(directory)[0] == 0
    assert os.listdir(directory / "report") == ["index.html"]


def test_mistakes_are_one_line(report_of, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [])  # they take their time
    code, out, err = report_of(tmp_path / "none")
    assert (code, out) == (2, "")
    assert err == f"psgc: {tmp_path}/none: no such directory; expected a run directory, the output of psgc train\n"
    code, out, err = report_of(whole, "--iteration", 3)
    assert (code, out) == (2, "")
    assert err == "psgc: --iteration 3: the timeline does not have it, expected one of 0 to 2\n"
    killed = shutil.copytree(whole, tmp_path / "run")
    (killed / "timeline.npz").unlink()
    assert report_of(killed, "--iteration", 0)[2] == "psgc: --iteration 0: this run has no timeline; leave it out\n"
    code, _, err = report_of(whole, "--output", whole / "config.yaml")
    assert (code, err) == (2, f"psgc: {whole}/config.yaml: cannot be made: File exists; give --output\n")
    (tmp_path / "out" / "index.html").mkdir(parents=True)
    code, _, err = report_of(whole, "--output", tmp_path / "out")
    assert (code, err) == (2, f"psgc: {tmp_path}/out/index.html: cannot be written: Is a directory\n")


@pytest.mark.parametrize("planted", ["report", "report/index.html", "report/tiny.png", "report/tensorboard"])
def test_links_in_somebody_elses_run_directory_are_not_followed(report_of, whole, tmp_path, monkeypatch, planted):
    pytest.importorskip("tensorboard")
    tiny = Picture("tiny", "title", "alt", "caption", lambda theme: new_figure(1, 1))
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [tiny])
    directory = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    (home := tmp_path / "home").mkdir()
    for name in ("index.html", "tiny.png"):
        (home / name).write_text("precious")
    (link := directory / planted).parent.mkdir(exist_ok=True)
    link.symlink_to(home / Path(planted).name if "." in planted else home)
    code, _, err = report_of(directory, "--tensorboard")
    assert code == 2
    assert re.match(f"psgc: {directory}/{planted}: cannot be (made|written): Is a link, not a ", err)
    left = {path.name: path.read_text() for path in home.iterdir()}
    assert left == {"index.html": "precious", "tiny.png": "precious"}


def test_a_run_directory_that_is_a_link_is_fine_and_so_is_an_output(report_of, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [])
    (tmp_path / "link").symlink_to(shutil.copytree(whole, tmp_path / "scratch"))
    assert report_of(tmp_path / "link")[0] == 0
    (tmp_path / "out").mkdir()
    (tmp_path / "outlink").symlink_to("out")
    assert report_of(tmp_path / "link", "--output", tmp_path / "outlink")[0] == 0
    assert [(tmp_path / place / "index.html").exists() for place in ("scratch/report", "out")] == [True, True]


def test_without_matplotlib_one_line_says_what_to_install(report_of, whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in [name for name in sys.modules if name.startswith("psgc.tools.")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = report_of(whole)
    assert (code, err) == (2, "psgc: plots need matplotlib: pip install matplotlib\n")


def test_without_tensorboard_one_line_says_what_to_install(report_of, whole, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    code, _, err = report_of(whole, "--tensorboard", "--output", tmp_path / "out")
    assert (code, err) == (2, "psgc: --tensorboard needs TensorBoard: pip install tensorboard\n")
    assert not (tmp_path / "out").exists()


# event files, read back by TensorBoard itself


def test_a_run_that_goes_on_is_watched(report_of, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [])  # they take their time
    directory = record(tmp_path / "run", workers=3, chunks_per_worker=2, iterations=2, killed=True)
    page, seen = directory / "report/index.html", []

    def sleep(seconds):
        text = page.read_text()
        seen.append(("recorded 2 iterations" in text, "recorded 3 iterations" in text, 'http-equiv="refresh"' in text))
        if len(seen) == 1:  # `psgc launch` starts it again
            summary = json.loads((whole / "summary.json").read_text())
            summary |= {"status": "interrupted", "starts_again": True}
            (directory / "summary.json").write_text(json.dumps(summary))
        if len(seen) == 2:
            (directory / "summary.json").unlink()
            shutil.copy(whole / "iterations.csv", directory)
        if len(seen) == 3:
            shutil.copy(whole / "summary.json", directory)

    monkeypatch.setattr("psgc.cli.report.time.sleep", sleep)
    code, out, err = report_of(directory, "--watch")
    assert (code, err) == (0, "")
    assert seen == [(True, False, True), (True, False, True), (False, True, True)]
    assert "refresh" not in page.read_text()  # it has ended
    assert out.splitlines() == [
        f"{page}: written again while the run goes on; Ctrl-C ends that",
        f"report written to {page}, with its figures beside it",
    ]
    (directory / "summary.json").unlink()
    monkeypatch.setattr("psgc.cli.report.time.sleep", mock.Mock(side_effect=KeyboardInterrupt))
    assert report_of(directory, "--watch")[0] == 0


def test_who_watches_a_run_that_was_killed_is_told_so_once(report_of, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [])
    directory, clock = record(tmp_path / "run", workers=3, chunks_per_worker=2, iterations=2, killed=True), Clock()
    lock, said = directory / "run.lock", []
    lock.write_text("{}")

    def sleep(seconds):
        clock.now += seconds
        if clock.now < 120:
            os.utime(lock, (clock.now, clock.now))
        if clock.now > 300:  # it was resumed
            shutil.copy(whole / "summary.json", directory)

    monkeypatch.setattr("psgc.cli.report.time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now))
    monkeypatch.setattr("psgc.cli.report.say", lambda text, error=False: error and said.append((clock.now, text)))
    assert report_of(directory, "--watch")[0] == 0
    ((when, text),) = said
    assert 119 + 37 < when < 119 + 40  # of 30 a rank 0 that is stopped has until it is replaced
    why = "nothing has touched run.lock for 37 s, so the run may have been killed; Ctrl-C ends this"
    assert text == f"psgc: {directory}: {why}"


@pytest.fixture
def read_back():
    """The scalars of a directory by their names."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(directory):
        accumulator = events.EventAccumulator(str(directory)).Reload()
        return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}

    return read


def test_tensorboard_reads_what_was_recorded(tmp_path, read_back):
    def loss(iteration):
        return float("nan") if iteration == 2 else 1.0 / (1 + iteration)

    held_out = lambda i: {"test_loss": 0.5, "test_accuracy": 0.75} if i == 2 else {}  # noqa: E731
    run = read_run(record(tmp_path / "run", 3, 2, 5, lost={2: 1}, loss=loss, held_out=held_out))
    run = changed(run, evaluated=[EvaluationRow(3, 1, "auc", 0.5), EvaluationRow(3, 1, "f1", np.nan)])
    for written in (1000, 2000):  # a report that is made again takes the place of the one before
        os.utime(run.path / "iterations.csv", (written, written))  # config.yaml is newer, as when the run is resumed
        write_events(run, tmp_path / "events")
    found = read_back(tmp_path / "events")
    assert [(event.step, event.value) for event in found.pop("evaluate/auc")] == [(3, 0.5)]
    assert set(found) == set(SCALARS)
    for name, column in SCALARS.items():
        column = run.iterations[column]
        if name in ("bytes", "redundant_chunks"):  # of the run so far
            column = np.cumsum(column)
        known = np.isfinite(column)
        assert [event.step for event in found[name]] == np.flatnonzero(known).tolist()
        assert [event.value for event in found[name]] == pytest.approx(column[known].tolist(), rel=1e-6)
    times = [event.wall_time for event in found["seconds"]]
    assert times[-1] == pytest.approx(2000, abs=1e-5)
    assert np.diff(times) == pytest.approx(run.iterations["seconds"][1:], abs=1e-5)
    assert len(list((tmp_path / "events").iterdir())) == 1


def test_a_problem_without_a_loss_has_no_scalars_of_it(tmp_path, read_back):
    write_events(read_run(record(tmp_path / "run", 3, 2, 5, loss=lambda _: None)), tmp_path / "events")
    assert set(read_back(tmp_path / "events")) == set(SCALARS) - {"loss", "test_loss", "test_accuracy"}


def test_the_command_says_where_they_are(report_of, tmp_path, monkeypatch, read_back):
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [])  # they take their time
    record(tmp_path / "run", 3, 2, 5)
    out = report_of(tmp_path / "run", "--tensorboard")[1]
    place = tmp_path / "run/report/tensorboard"
    assert out.splitlines()[1] == (f"scalars written to {place}; see them with: tensorboard --logdir {place}")
    assert set(read_back(place)) == set(SCALARS) - {"test_loss", "test_accuracy"}
