"""The loop that psgc is compared with: it takes the steps of gradient descent, and the times that it is told."""

import csv
from pathlib import Path

import numpy as np

from psgc.data import write_dense
from tests.ranks.mpirun import mpirun, run

SCRIPT = str(Path(__file__).parents[2] / "scripts/allreduce_loop.py")


def test_it_descends_and_takes_the_emulated_time(tmp_path):
    rng = np.random.default_rng(0)
    X, w = rng.random((50, 3)), np.zeros(4)
    y = X @ [1.0, 2.0, 3.0]
    write_dense(str(tmp_path / "data.npz"), X, y)
    (tmp_path / "run.yaml").write_text(
        "problem: {kind: least_squares}\ndata: {path: data.npz}\noptimizer: {kind: sgd, lr: 0.1}\n"
        "iterations: 4\ncoding: {chunks_per_worker: 3}\noutput: out\n"
        "stragglers: {kind: slow, seconds: {all: 0.001, 2: 0.02}}\n"
    )
    run(mpirun(2, [SCRIPT, "run.yaml"]), tmp_path, code=0)
    with (tmp_path / "out/iterations.csv").open() as text:
        rows = list(csv.DictReader(text))
    A = np.c_[X, np.ones(50)]
    for row in rows:
        residual = A @ w - y
        assert abs(float(row["loss"]) - residual @ residual / 100) < 1e-12
        w -= 0.1 * A.T @ residual / 50
    assert len(rows) == 4
    # the slower rank has 3 chunks of 20 ms; the first iteration begins when each is ready
    assert sum(float(row["seconds"]) for row in rows[1:]) > 0.12
