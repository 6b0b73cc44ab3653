"""Damaged run directories: one line that names the file, or a run of which everything can be said."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from psgc.run_rows import COLUMNS, OPTIONAL
from psgc.tools.figures import pictures
from psgc.tools.page import page
from psgc.tools.report import sentences
from psgc.tools.run_directory import read_run
from tests.unit.fuzzed_files import NO_FILES, damaged, no_file, quietly
from tests.unit.fuzzing import fuzzed
from tests.unit.recorded_runs import record

WHOLE = ["config.yaml", "iterations.csv", "evaluations.csv", "lost.csv", "timeline.npz", "summary.json"]
HALF = ["config.yaml", "iterations.csv", "evaluations.csv", "lost.csv", "timeline.raw"]
ODD = [b"", *b'nan inf -inf -1 0 1e308 1e-308 99999999999999999999 2 \xff " \0'.split()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole and a half-written run, by the files that they have."""
    made = {}
    for names, killed in ((WHOLE, False), (HALF, True)):
        directory = record(tmp_path_factory.mktemp("runs") / "out", 3, 2, 4, lost={2: 1}, killed=killed)
        (directory / "evaluations.csv").write_text("iteration,epoch,name,value\n1,0,auc,0.5\n3,1,auc,0.75\n")
        made[tuple(names)] = (directory, {name: (directory / name).read_bytes() for name in names})
    return made


def told(directory):
    """Reads the run and says all of it; a refusal names the directory."""
    run, refusal = quietly(
        lambda: read_run(directory), str(directory), *(f"{directory}/{name}" for name in WHOLE + HALF)
    )
    if run is not None:
        lengths = {len(column) for column in run.iterations.values()}
        assert len(lengths) == 1
        assert {*COLUMNS} - {*OPTIONAL} <= set(run.iterations)
        found = pictures(run)
        text = page(run, sentences(run), [])
        assert text.isascii() or text.encode()
        assert all(picture.alt and picture.caption for picture in found)
    return run, refusal


@pytest.mark.parametrize("names", [WHOLE, HALF], ids=["whole", "half-written"])
@fuzzed(60)
@given(data=st.data())
def test_damage(runs, names, data):
    directory, files = runs[tuple(names)]
    name = data.draw(st.sampled_from(names))
    (directory / name).write_bytes(data.draw(damaged(files[name])))
    try:
        told(directory)
    finally:
        (directory / name).write_bytes(files[name])


@fuzzed(60)
@given(data=st.data())
def test_odd_numbers(runs, data):
    directory, files = runs[tuple(WHOLE)]
    name = data.draw(st.sampled_from(["iterations.csv", "lost.csv", "evaluations.csv", "iterations.csv"]))
    lines = files[name].splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    fields = lines[at].rstrip(b"\r\n").split(b",")
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(st.sampled_from(ODD))
    (directory / name).write_bytes(b"".join([*lines[:at], b",".join(fields) + b"\r\n", *lines[at + 1 :]]))
    try:
        told(directory)
    finally:
        (directory / name).write_bytes(files[name])


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind not in ("below a file", "closed to us")])
@pytest.mark.parametrize("name", WHOLE)
def test_no_files(runs, tmp_path, kind, name):
    run = shutil.copytree(runs[tuple(WHOLE)][0], tmp_path / "run")
    (run / name).unlink()
    with no_file(kind, run / name):
        found, refusal = told(run)
    missing = ("nothing", "a long name", "a NUL in its name", "a link to nothing", "a link in a circle")
    needed = name in ("config.yaml", "iterations.csv")
    assert (found is None) == (needed or kind not in missing)
    assert bool(refusal) == (found is None)
