"""psgc from Python: what a loaded run knows, and what `import psgc` costs."""

import json
import pydoc
import shutil
import subprocess
import sys

import numpy as np
import pytest

import psgc
from tests.unit.recorded_runs import record


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "whole", workers=3, chunks_per_worker=2, iterations=4, lost={2: 1})


def test_everything_that_a_run_has_left(whole, monkeypatch):
    monkeypatch.setenv("RUNS", str(whole.parent))
    run = psgc.load("$RUNS/whole")
    assert run.path == whole
    assert run.summary == json.loads((whole / "summary.json").read_text())
    np.testing.assert_allclose(run.history["loss"], 2.3 * 0.97 ** np.arange(4))
    assert run.history["lost"].tolist() == [0, 1, 1, 1]
    assert run.params.tolist() == [0, 0, 0]
    lost = {"iteration": 1, "worker": 2, "host": "n1", "event": "lost", "reason": "its process died"}
    assert run.lost == [lost]
    assert type(run.config) is dict
    assert (run.config["optimizer"]["lr"], run.config["coding"]["parts"]) == (0.5, 1)
    assert "status done, iterations 4, loss 2.09915, " in repr(run)
    assert repr(run).endswith("workers lost 1>")


def test_a_run_that_has_not_ended(tmp_path):
    run = psgc.load(record(tmp_path / "run", workers=2, chunks_per_worker=2, iterations=3, killed=True))
    assert (run.summary, run.params, run.lost) == ({}, None, [])
    assert run.history["iteration"].tolist() == [0, 1, 2]
    assert "not ended, iterations 3" in repr(run)
    begun = psgc.load(record(tmp_path / "begun", workers=2, chunks_per_worker=2, iterations=0, killed=True))
    assert len(begun.history["seconds"]) == 0
    assert repr(begun).endswith("begun: status not ended, iterations 0>")


def test_a_notebook_shows_text_and_not_what_a_file_says(whole, tmp_path):
    directory = shutil.copytree(whole, tmp_path / "<b>run")
    summary = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(json.dumps(summary | {"reason": "<script>\x1b[31m"}))
    html = psgc.load(directory)._repr_html_()
    assert "&lt;b&gt;run" in html
    assert "<td>done (&lt;script&gt;\\x1b[31m)</td>" in html


def test_mistakes_are_one_line(whole, tmp_path):
    with pytest.raises(psgc.UserError, match="none: no such directory; expected a run directory"):
        psgc.load(tmp_path / "none")
    directory = shutil.copytree(whole, tmp_path / "run")
    (directory / "params.npy").write_bytes(b"no array")
    with pytest.raises(psgc.UserError, match=r"^\S*run/params.npy: "):
        _ = psgc.load(directory).params


def test_a_report(whole, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("psgc.reporting.report.pictures", lambda run, iteration: [])  # they take their time
    assert psgc.load(whole).report(tmp_path / "a" / "b") == tmp_path / "a/b/index.html"
    assert "The run is done" in (tmp_path / "a/b/index.html").read_text()
    killed = psgc.load(record(tmp_path / "run", workers=2, chunks_per_worker=2, iterations=1, killed=True))
    assert "The run has not ended" in killed.report().read_text()


def test_import_psgc_is_cheap_and_help_is_whole():
    program = "import sys, psgc; print({'numpy', 'mpi4py', 'yaml', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    shown = pydoc.render_doc(psgc, renderer=pydoc.plaintext)
    for name in psgc.__all__:
        assert getattr(psgc, name).__doc__.splitlines()[0] in shown
    assert "load(path: 'str | os.PathLike[str]')" in shown or "load(path: str | os.PathLike[str])" in shown
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = psgc.nothing
