"""A run whose disk is full: it loses of its record, and neither the training nor the parameters."""

import json

import numpy as np
import pytest

from psgc.checkpoints import load_newest
from psgc.data import write_dense
from psgc.run.checkpoint import read
from tests.ranks.mpirun import mpirun, run
from tests.unit.small_disk import small_disk

CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: nesterov, lr: 1.0e-3}
iterations: ITERATIONS
transfer: combined
coding: {chunks_per_worker: 8, replication: 2}
checkpoint: {every: 10, keep: 3}
output: disk/out
"""


@pytest.mark.faults
@pytest.mark.parametrize(("size", "iterations", "done"), [("260k", 400, True), ("120k", 200, False)])
def test_the_record_and_older_checkpoints_make_room_for_the_result(tmp_path, size, iterations, done):
    """A checkpoint takes 86 kB, the parameters 40; the timeline would take more than the whole disk."""
    rng = np.random.default_rng(0)
    write_dense(tmp_path / "data.npz", rng.normal(size=(64, 5000)), rng.normal(size=64))
    (tmp_path / "run.yaml").write_text(CONFIG.replace("ITERATIONS", str(iterations)))
    with small_disk(tmp_path / "disk", size) as disk:
        finished = run(mpirun(3, ["-m", "psgc", "train", "run.yaml"]), tmp_path, 110, code=int(not done))
        summary = json.loads((disk / "out/summary.json").read_text())
        assert summary["iterations"] == iterations
        assert "No space left on device" in summary["not_whole"]["timeline.raw"]
        newest = load_newest(disk / "out/checkpoints", read)
        if done:
            assert summary["status"] == "done"
            assert newest.iteration >= iterations - 10
            assert len(np.load(disk / "out/params.npy")) == 5001
        else:
            assert (summary["status"], summary["reason"]) == ("failed", "params.npy: No space left on device")
            assert newest is not None
            assert "psgc: failed: params.npy: No space left on device" in finished.stderr
