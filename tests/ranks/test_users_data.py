"""What a user brings himself, under mpirun: images from his reader, a model with batch statistics, where to begin."""

import json
import sys

import numpy as np
import pytest

from psgc import config
from psgc.backend import Backend
from psgc.data import ChunkSource
from psgc.optimizer import make_optimizer
from psgc.problems import evaluate, prepare_evaluation
from psgc.run.inputs import open_problem
from psgc.tools.run_directory import read_run
from tests.ranks.mpirun import mpirun, run

MODULE = """
from dataclasses import replace
from itertools import islice

import numpy as np

from psgc.problems import Softmax


def read(held_out):
    images = np.load("images.npy", mmap_mode="r")
    labels = np.load("labels.npy")
    assert images.dtype == np.uint8
    return {"X": images[held_out:], "y": labels[held_out:], "X_test": images[:held_out], "y_test": labels[:held_out]}


class Normalised(Softmax):
    def __init__(self):
        super().__init__(64, 10)

    def seen(self, chunk, statistics=None):
        assert chunk.X.dtype == np.uint8 and chunk.X.shape[1:] == (8, 8) and chunk.y.dtype == np.int64
        X = chunk.X.reshape(-1, 64).astype(float)
        mean, deviation = statistics or (X.mean(0), X.std(0) + 1)
        return replace(chunk, X=(X - mean) / deviation)

    def loss_and_gradient(self, params, chunk, rng=None):
        self.running = self.seen(chunk)  # as batch normalisation, it leaves something behind
        return super().loss_and_gradient(params, self.running)

    def prepare_evaluation(self, params, chunks):
        X = np.concatenate([chunk.X for chunk in islice(chunks, 3)]).reshape(-1, 64)
        self.statistics = X.mean(0), X.std(0) + 1

    def loss(self, params, chunk):
        return super().loss(params, self.seen(chunk, self.statistics))

    def accuracy(self, params, chunk):
        return super().accuracy(params, self.seen(chunk, self.statistics))
"""
RUN = """
problem: {python: "my_module:Normalised"}
data: {python: "my_module:read", options: {held_out: 297}}
optimizer: {kind: adamw, lr: 0.02, weight_decay: 0.1, clip_norm: 1.0, schedule: {kind: cosine, warmup: 5}}
initial: earlier
iterations: 25
evaluate: {every: 10}
coding: {chunks_per_worker: 2, replication: 2}
output: out
"""
GOES_ON = ["--set", "iterations=27", "--set", "initial=gone"]  # it begins with its checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    np.save(tmp_path / "images.npy", digits.images.astype(np.uint8))
    np.save(tmp_path / "labels.npy", digits.target)
    (tmp_path / "earlier").mkdir()
    np.save(tmp_path / "earlier/params.npy", np.random.default_rng(0).normal(0, 0.1, 650))
    (tmp_path / "my_module.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_module", None)


def test_the_run_takes_the_steps_of_one_process(folder):
    run(mpirun(3, ["-m", "psgc", "train", "run.yaml"]), folder, code=0)
    settings = config.load("run.yaml")
    dataset, problem = open_problem(settings, "run.yaml")
    chunks, compute = ChunkSource(dataset, 6, "float64", Backend()), evaluate(problem)
    optimizer, params = make_optimizer(settings.optimizer, 25), np.load("earlier/params.npy")
    test = ChunkSource(dataset.held_out, 1, "float64", Backend()).chunk(0)
    during = read_run(folder / "out").iterations["test_loss"]
    assert np.flatnonzero(np.isfinite(during)).tolist() == [10, 20]
    for iteration in range(25):
        if np.isfinite(during[iteration]):  # the state of the workers' models is that of this one
            prepare_evaluation(problem, params, chunks.each())
            assert during[iteration] == pytest.approx(problem.loss(params, test), rel=1e-9)
        gradient = sum(compute(params, chunk, None)[1] for chunk in chunks.each())
        params = optimizer.step(params, gradient, iteration)
    np.testing.assert_allclose(np.load("out/params.npy"), params, rtol=1e-9)

    prepare_evaluation(problem, params, chunks.each())
    summary = json.loads((folder / "out/summary.json").read_text())
    assert summary["test_accuracy"] == problem.accuracy(params, test) > 0.85
    assert summary["test_loss"] == pytest.approx(problem.loss(params, test))
    assert config.from_yaml_text((folder / "out/config.yaml").read_text()).initial == "earlier"

    more = run(mpirun(2, ["-m", "psgc", "train", "run.yaml", "--resume", *GOES_ON]), folder, code=0)
    assert "resuming from iteration 25" in more.stdout
    assert json.loads((folder / "out/summary.json").read_text())["iterations"] == 27
