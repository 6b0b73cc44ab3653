"""`psgc sweep` under a real mpirun: two runs, the table of them, and `psgc compare` of what they left."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.ranks.mpirun import psgc, run

SETTINGS = """\
problem: {kind: least_squares}
data: {path: train.npz, test: train.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 5
coding: {chunks_per_worker: 2, replication: 2}
output: runs/a
"""


def test_two_runs_one_after_the_other_and_their_comparison(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 3))
    np.savez(tmp_path / "train.npz", X=X, y=X @ [1.0, 2.0, 3.0])
    Path(tmp_path, "run.yaml").write_text(SETTINGS)
    finished = run(psgc("sweep", "run.yaml", "-n", "3", "--set", "optimizer.lr=0.01,0.2"), tmp_path, code=0)
    table = finished.stdout.partition("\n\n")[2].splitlines()
    names = ["1_optimizer.lr=0.2", "0_optimizer.lr=0.01"]  # the quicker one is the better one
    assert [line.split()[:4] for line in table[3:5]] == [
        [names[0], "0.2", "done", "5"],
        [names[1], "0.01", "done", "5"],
    ], finished.said
    directories = [f"runs/a/{name}" for name in names]
    again = run(psgc("compare", *directories, "--json", "rows.json"), tmp_path, code=0)
    assert again.stdout.splitlines() == table[:6]
    best, worst = json.loads((tmp_path / "rows.json").read_text())
    assert best["settings"] == {"optimizer.lr": 0.2}
    assert 0 < best["test_loss"] < worst["test_loss"]
    summary = json.loads(Path(tmp_path, directories[0], "summary.json").read_text())
    assert best["seconds"] == summary["seconds"]
    assert best["efficiency"] == pytest.approx(summary["efficiency"], rel=1e-4)
