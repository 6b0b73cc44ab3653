"""Held-out rows during a run (`evaluate`): with a slow and a dying worker the figures are those of one process."""

import json

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import OptimizerSettings
from psgc.data import ChunkSource, open_data, write_dense
from psgc.optimizer import finite_step, make_optimizer
from psgc.problems import Softmax
from psgc.tools.run_directory import read_run
from tests.ranks.mpirun import psgc, run

CONFIG = """
problem: {kind: softmax}
data: {path: train.npz, test: test.npz}
optimizer: {kind: nesterov, lr: 0.02}
iterations: 60
evaluate: {every: 2, keep_best: true, patience: 3}
coding: {chunks_per_worker: 4, replication: 3}
stragglers: {kind: slow, seconds: {all: 0.01, 2: 0.08}}  # so slow that a death is noticed before the run ends
faults: {inject: [{kind: kill, rank: 3, iteration: 2, step: gradient}]}
output: out
"""


def test_the_figures_are_those_of_one_process_and_the_run_ends_when_they_do_not_become_better(tmp_path):
    rng = np.random.default_rng(0)
    for name, rows in (("train", 90), ("test", 50)):  # so few that the model learns them by heart
        X = rng.normal(size=(rows, 30))
        write_dense(str(tmp_path / f"{name}.npz"), X, np.argmax(X[:, :3] + rng.normal(size=(rows, 3)), axis=1))
    (tmp_path / "run.yaml").write_text(CONFIG)
    launch = psgc("launch", "run.yaml", "-n", "4")
    run(launch, tmp_path, code=0)
    found = read_run(tmp_path / "out")
    summary, rows = json.loads((tmp_path / "out/summary.json").read_text()), found.iterations
    assert summary["status"] == "done"
    assert [event.worker for event in found.events] == [3]

    # the figures
    train, test = (
        ChunkSource(open_data(str(tmp_path / f"{name}.npz")), 1, "float64", Backend()).chunk(0)
        for name in ("train", "test")
    )
    problem, optimizer = Softmax(30, 3), make_optimizer(OptimizerSettings(kind="nesterov", lr=0.02))
    params = [problem.initial_params()]
    for _ in rows["loss"]:
        gradient = problem.loss_and_gradient(params[-1], train, rng)[1]
        params.append(finite_step(optimizer, params[-1], gradient, 0))
    evaluated = list(range(2, len(rows["loss"]), 2))
    assert np.flatnonzero(np.isfinite(rows["test_loss"])).tolist() == evaluated
    losses = [problem.loss(params[iteration], test) for iteration in evaluated]
    assert rows["test_loss"][evaluated] == pytest.approx(losses, rel=1e-8)
    accuracies = [problem.accuracy(params[iteration], test) for iteration in evaluated]
    assert rows["test_accuracy"][evaluated] == pytest.approx(accuracies, rel=1e-8)

    # the best
    best = evaluated[int(np.argmin(losses))]
    assert best == evaluated[-4]  # three evaluations came after it
    assert np.load(tmp_path / "out/best.npy") == pytest.approx(params[best], rel=1e-8)
    assert np.load(tmp_path / "out/params.npy") == pytest.approx(params[-1], rel=1e-8)
    assert summary["best"]["iteration"] == best
    assert summary["best"]["test_loss"] == pytest.approx(min(losses), rel=1e-8)
    assert summary["ended_early"] == f"no lower held-out loss in 3 evaluations after that of iteration {best}"

    again = run([*launch, "--resume"], tmp_path, code=0)
    assert f"nothing to do: out has done {len(rows['loss'])} iterations of 60 (no lower" in again.stdout
