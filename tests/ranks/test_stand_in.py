"""Training with `backend: cupy` on the stand-in for CuPy: no array gets from the device to the host by itself."""

import json
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import mpirun, run

ROOT = Path(__file__).parents[2]
CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
backend: cupy
aggregation: AGGREGATION
transfer: combined
optimizer: {kind: momentum, lr: 0.1, momentum: 0.5}
iterations: 20
coding: {chunks_per_worker: 3, replication: 2, parts: 2}
checkpoint: {every: 5}
output: out
"""


@pytest.mark.parametrize(("aggregation", "cuda_aware"), [("server", "0"), ("allreduce", "1")])
def test_training_on_a_device_takes_the_steps_of_gradient_descent(tmp_path, aggregation, cuda_aware):
    rng = np.random.default_rng(0)
    X, w, velocity = rng.random((60, 4)), np.zeros(5), np.zeros(5)
    y = X @ [1.0, 2.0, 3.0, 4.0]
    write_dense(str(tmp_path / "data.npz"), X, y)
    (tmp_path / "run.yaml").write_text(CONFIG.replace("AGGREGATION", aggregation))
    env = {"PYTHONPATH": f"{ROOT / 'tests/stand_in'}:{ROOT}", "PSGC_CUDA_AWARE": cuda_aware}
    run(mpirun(2, ["-m", "psgc", "train", "run.yaml"]), tmp_path, env=env, code=0)
    A = np.c_[X, np.ones(60)]
    for _ in range(20):
        velocity = 0.5 * velocity + A.T @ (A @ w - y) / 60
        w = w - 0.1 * velocity
    np.testing.assert_allclose(np.load(tmp_path / "out/params.npy"), w, rtol=0, atol=1e-10)
    if aggregation == "allreduce":
        assert json.loads((tmp_path / "out/summary.json").read_text())["replicas"]["equal"] == [1, 2]
