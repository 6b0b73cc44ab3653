"""What rank 0 refuses before a run starts: one line, and nothing is written."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.config import load
from psgc.data import write_dense
from psgc.errors import UserError
from psgc.run.ending import Ending
from psgc.run.inputs import Given
from psgc.run.meeting import Meeting
from psgc.run.prepare import prepare
from psgc.run.server_side import serve
from tests.unit.scripted import Transport

CONFIG = """
problem: {kind: softmax}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.5}
iterations: 5
coding: {chunks_per_worker: 2, replication: 2}
output: out
"""
FROM_A_FILE = "coding={assignment: {kind: file, path: A.npy}}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.random((80, 5)), np.arange(80.0) % 3)
    Path("run.yaml").write_text(CONFIG)


def assert_refused(message, *overrides, ranks=4):
    transport = Transport(ranks)
    ending = Ending(transport)
    with pytest.raises(UserError, match=re.escape(message)):
        serve(transport, Given("run.yaml", overrides=overrides), ending, Meeting(transport, ending, ""), False)
    assert ending.in_order
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("coding.parts=3", "parts 3 is more than replication 2"),
        ("coding.replication=4", "coding.replication: 4 is too large for 3 workers, expected at most 3"),
        ("coding.chunks_per_worker=100", "80 rows cannot be cut into 300 chunks"),
        ("data.path=nowhere.npz", "nowhere.npz: cannot read it: no such file"),
        ("problem.kind=logistic", "logistic needs 0/1 or -1/+1"),
        ("stragglers={kind: slow, factor: {9: 2}}", "rank 9 is named, but the workers are ranks 1..3"),
        ("faults.inject=[{kind: kill, rank: 4, iteration: 1}]", "rank 4 is named, but this run has ranks 0..3"),
        ("backend=cupy", "use backend: numpy or auto"),
        ("problem={python: 'no_start:Model'}", "initial_params() gave NaN or infinity"),
    ],
)
def test_settings_that_do_not_fit_the_run(override, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    Path("no_start.py").write_text(
        "import numpy as np\n\n\nclass Model:\n    dim = 4\n\n    def initial_params(self):\n"
        "        return np.full(4, np.nan)\n\n    def gradient(self, params, chunk, rng):\n        return params\n"
    )
    assert_refused(message, override)


def test_batches_that_are_smaller_than_the_number_of_chunks():
    expected = "batch.size: 5 rows cannot be cut into 6 chunks; use larger batches, fewer workers or coding.chunks_per_"
    assert_refused(expected, "iterations=null", "batch={size: 5, epochs: 1}")


def test_an_assignment_for_another_number_of_workers():
    np.save("A.npy", np.ones((4, 2), np.int8))
    assert_refused("A.npy: the assignment has 2 columns", FROM_A_FILE)


def test_an_assignment_without_a_copy_to_spare_for_verify():
    assignment = np.ones((8, 3), np.int8)
    assignment[5, 1:] = 0
    np.save("A.npy", assignment)
    expected = "verify: A.npy: chunk 5 is held by 1 worker; to check it with parts 1 takes 2"
    assert_refused(expected, FROM_A_FILE, "verify={every: 1}")


def test_one_rank_alone_is_told_how_to_launch():
    assert_refused("psgc launch run.yaml -n 9", ranks=1)


@pytest.mark.parametrize(("rows", "overrides", "chunks"), [
    (80, (), 8), (10, (), 3), (3, (), 1), (80, ("iterations=null", "batch={size: 7, epochs: 1}"), 2),
])  # fmt: skip
def test_automatic_chunks_are_no_more_than_the_rows_of_an_iteration(monkeypatch, rows, overrides, chunks):
    monkeypatch.setattr("psgc.run.prepare.seconds_of_share", lambda *_: 10.0)  # which makes eight for each worker
    write_dense("data.npz", np.ones((rows, 5)), np.arange(rows) % 3)
    given = Given("run.yaml", overrides=("coding.chunks_per_worker=auto", *overrides))
    run = prepare(Transport(4), load(given.source, given.overrides), given, False)
    assert run.plan.num_chunks == 3 * run.config.coding.per_worker == 3 * chunks
