"""The server from the YAML to the summary, without MPI and workers: a script answers in their place."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from psgc.errors import UserError
from psgc.messages import Kind
from psgc.server.checkpoint import load_newest
from psgc.training.ending import Ending
from psgc.training.server_side import serve
from tests.unit.scripted import Transport, done, said

CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: momentum, lr: 0.01}
iterations: 2
coding: {chunks_per_worker: 2, replication: 2}
trial: false
schedule: dynamic
output: out
"""
FEATURES = 3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(40, FEATURES)), rng.normal(size=40))
    (tmp_path / "run.yaml").write_text(CONFIG)


def train(script, *overrides, resuming=False):
    """The exit code of a run of two workers."""

    def to_the_end():
        yield from script
        while True:  # farewells
            yield [said(worker, Kind.GOODBYE) for worker in (1, 2)]

    return serve(Transport(3, to_the_end()), "run.yaml", overrides, [], resuming, Ending())


def chunks_of(iteration, workers, seconds, gradient=0.1):
    """Each of the four chunks by one of these workers, which take turns; seconds: of a chunk, by worker."""
    for chunk in range(4):
        worker = workers[chunk % len(workers)]
        yield [done(worker, iteration, chunk, np.full(FEATURES + 1, gradient), seconds[worker])]


def newest():
    return load_newest(Path("out/checkpoints"))[0]


def test_a_resumed_run_knows_how_fast_the_workers_are():
    def first():
        for iteration in (0, 1):
            yield from chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.3})

    assert train(first()) == 0
    assert newest().estimates == pytest.approx({1: 0.1, 2: 0.3})
    assert train(chunks_of(2, (1,), {1: 0.1}), "iterations=3", resuming=True) == 0
    assert newest().iteration == 3
    assert newest().estimates == pytest.approx({1: 0.1, 2: 0.3})  # worker 2 was not heard of since


def test_a_resumed_run_goes_on_with_the_state_of_its_optimizer():
    def some(first, end):
        for iteration in range(first, end):
            yield from chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.1}, gradient=iteration + 1.0)

    assert train(some(0, 4), "iterations=4") == 0
    whole = newest().params
    shutil.rmtree("out")
    assert train(some(0, 2)) == 0
    assert train(some(2, 4), "iterations=4", resuming=True) == 0
    assert newest().params.tolist() == whole.tolist()


# how a run ends


def summary():
    return json.loads(Path("out/summary.json").read_text())


def test_wrong_data_is_the_users_mistake_and_one_line(capsys):
    X = np.ones((40, FEATURES))
    X[17, 2] = np.nan
    write_dense("data.npz", X, np.ones(40))

    def script():
        yield [said(2, Kind.FAILED, 0, 1)]  # whose rows are 10 to 19

    assert train(script()) == 2
    reason = "data.npz: row 17, column 2 of X (counted from 0) is nan, expected finite numbers"
    streams = capsys.readouterr()
    assert streams.err == f"psgc: {reason}\n"
    assert len(streams.out.splitlines()) == 1  # the opening line
    assert [summary()[name] for name in ("status", "reason", "exit_code")] == ["failed", reason, 2]


def test_a_loss_that_is_not_finite_ends_the_run_in_its_iteration(capsys):
    def script():
        for iteration, loss in enumerate([1.0, 0.5, np.inf]):
            for chunk in range(4):
                yield [done(1, iteration, chunk, np.full(FEATURES + 1, 0.1), loss=loss)]

    assert train(script(), "iterations=30", "checkpoint.every=1") == 1
    assert "the loss of iteration 2 is inf" in capsys.readouterr().err
    assert [summary()[name] for name in ("status", "final_loss", "exit_code")] == ["failed", "inf", 1]
    losses = [line.split(",")[1] for line in Path("out/iterations.csv").read_text().splitlines()[1:]]
    assert losses == ["4", "2", "inf"]
    assert not list(Path("out/checkpoints").glob("00000002-*"))  # it would only fail again
    assert np.isfinite(np.load("out/params.npy")).all()


def test_a_held_out_loss_that_is_not_finite_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr("psgc.training.evaluation.quality", lambda *_: {"test_loss": np.nan})
    assert train(chunks_of(0, (1,), {1: 0.1}), "iterations=1") == 1
    assert "psgc: failed: the held-out loss is nan" in capsys.readouterr().err
    assert [summary()[name] for name in ("status", "test_loss")] == ["failed", "nan"]


MODEL = """
import numpy as np

class WithoutLoss:
    dim = 4
    def initial_params(self):
        return np.zeros(4)
    def gradient(self, params, chunk, rng):
        return np.zeros(4)
"""


def test_a_problem_without_a_loss_has_none_in_the_record(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("without_loss.py").write_text(MODEL)

    def script():
        for chunk in range(4):
            yield [done(1, 0, chunk, np.zeros(4), loss=np.nan)]

    assert train(script(), "problem={python: 'without_loss:WithoutLoss'}", "iterations=1") == 0
    assert "loss" not in capsys.readouterr().out
    assert summary()["final_loss"] is None
    assert Path("out/iterations.csv").read_text().splitlines()[1].startswith("0,,")


def test_test_data_is_looked_at_before_the_training():
    X = np.ones((20, FEATURES))
    X[3, 1] = np.inf
    write_dense("test.npz", X, np.ones(20))
    with pytest.raises(UserError, match=r"^test\.npz: row 3, column 1 of X \(counted from 0\) is inf"):
        train(iter([]), "data.test=test.npz")
    write_dense("test.npz", np.where(np.isinf(X), 2**24 + 1, 0).astype(int), np.ones(20))
    with pytest.raises(
        UserError, match=r"^test\.npz: row 3, column 1 of X \(counted from 0\) is 16777217, which float32"
    ):
        train(iter([]), "data.test=test.npz", "dtype=float32")
    assert not Path("out").exists()
