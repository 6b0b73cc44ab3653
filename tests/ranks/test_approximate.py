"""Approximate recovery under real mpirun: what a deadline costs in accuracy, and what the record says of it."""

import csv
import json

import numpy as np
import pytest
from scipy.special import expit

from psgc.data import write_dense
from tests.ranks.mpirun import mpirun, run, sets

ITERATIONS = 16
CHUNKS = 20
CONFIG = f"""
problem: {{kind: logistic}}
data: {{path: data.npz}}
optimizer: {{kind: sgd, lr: 2.0}}
iterations: {ITERATIONS}
coding: {{chunks_per_worker: 5, replication: 1}}
schedule: uncoded
stragglers: {{kind: slow, seconds: {{all: 0.04, 3: 0.08}}}}
dedicated_server: true
output: out
"""
# of five chunks the slow worker has done three by then, which leaves two of twenty
DEADLINE = "recovery={mode: approximate, deadline: 0.3}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("approximate")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 8))
    y = (X @ rng.standard_normal(8) + 0.5 * rng.standard_normal(2000) > 0).astype(float)
    write_dense(str(folder / "data.npz"), X, y)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


class Ended:
    def __init__(self, folder, name, *overrides):
        settings = sets(*overrides, f"output={name}")
        finished = run(mpirun(5, ["-m", "psgc", "train", "run.yaml", *settings]), folder, code=0)
        self.said = finished.stdout
        with (folder / name / "iterations.csv").open(newline="") as stream:
            self.rows = list(csv.DictReader(stream))
        self.summary = json.loads((folder / name / "summary.json").read_text())
        self.params = np.load(folder / name / "params.npy")
        self.timeline = np.load(folder / name / "timeline.npz")
        with np.load(folder / "data.npz") as data:
            self.X, self.y = np.column_stack([data["X"], np.ones(len(data["y"]))]), data["y"]

    def descended(self, params, iterations):
        """The parameters after so many exact steps."""
        for _ in range(iterations):
            params = params - 2.0 * self.X.T @ (expit(self.X @ params) - self.y) / len(self.y)
        return params

    def loss(self, params):
        return np.logaddexp(0, (1 - 2 * self.y) * (self.X @ params)).mean()

    def column(self, name):
        return np.array([float(row[name]) for row in self.rows])


@pytest.fixture(scope="module", params=["server", "allreduce"])
def late(folder, request):
    return Ended(folder, f"late-{request.param}", DEADLINE, f"aggregation={request.param}")


def test_with_a_tenth_of_the_chunks_lost_the_loss_is_as_low_after_as_many_iterations(late):
    exact = late.loss(late.descended(np.zeros(9), ITERATIONS))
    assert np.median(late.column("missing")) == 2
    assert len(late.rows) == ITERATIONS
    assert late.loss(late.params) < 1.05 * exact
    assert exact < 0.3  # from 0.69
    assert np.median(late.column("seconds")) < 0.36  # with all chunks it would take 0.4


def test_the_record_says_what_was_missing(late):
    missing, measure, error = (late.column(name) for name in ("missing", "error_measure", "actual_error"))
    np.testing.assert_allclose(measure, missing / CHUNKS)
    np.testing.assert_array_equal(late.column("recovered"), CHUNKS - missing)
    assert np.isfinite(error).all()
    assert ((error > 0) == (missing > 0)).all()
    assert late.summary["approximate_iterations"] == (missing > 0).sum()
    assert late.summary["actual_error"] == pytest.approx(np.median(error[missing > 0]), rel=1e-6)
    assert "  approximate        " in late.said


def lacking(run, iteration=0):
    """The chunks of the first iteration that were not used, and the gradient of every chunk in it, at params 0."""
    first = (run.timeline["iteration"] == iteration) & (run.timeline["outcome"] == 0)
    there = set(run.timeline["chunk"][first].tolist())
    pieces = np.array_split(np.arange(len(run.y)), CHUNKS)
    gradients = [(run.X[rows].T @ (0.5 - run.y[rows])) / len(run.y) for rows in pieces]
    return [chunk for chunk in range(CHUNKS) if chunk not in there], np.array(gradients)


def test_the_actual_error_is_the_actual_error(late):
    chunks, gradients = lacking(late)
    expected = np.linalg.norm(gradients[chunks].sum(axis=0)) / np.linalg.norm(gradients.sum(axis=0))
    assert late.column("actual_error")[0] == pytest.approx(expected, abs=1e-9)


def test_an_error_target_and_several_parts_combined(folder):
    settings = ["coding={chunks_per_worker: 5, replication: 2, parts: 2}", "schedule=skipping", "transfer=combined"]
    settings += ["iterations=10", "recovery={mode: approximate, max_error: 0.2}", "aggregation=allreduce"]
    target = Ended(folder, "target", *settings)
    measure = target.column("error_measure")
    assert (measure <= 0.2).all()
    assert np.median(measure) > 0.1  # it stops as soon as it may
    assert ((target.column("actual_error") > 0) == (measure > 0)).all()
    assert target.column("loss")[0] == pytest.approx(np.log(2))  # at the initial parameters
