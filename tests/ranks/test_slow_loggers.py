"""A logger that sends for long what it has left has the time for it; a process that hangs after that does not."""

import os
import sys

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import run

WANDB = """
import time
run = None
def init(**settings): return Run()
class Run:
    def log(self, values, step): pass
    def finish(self, exit_code):
        time.sleep(2)
        print(f"wandb has sent everything, exit code {exit_code}", flush=True)
"""
LAUNCH = """
from psgc.launching import outcome
outcome.GRACE = 0.3  # seconds that a process may go on for after the run
from psgc.cli import main
main()
"""
YAML = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 3
coding: {chunks_per_worker: 2}
log: [wandb]
output: out
"""
SCRIPT = """
import atexit, os, time
import torch
import psgc.torch
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    atexit.register(time.sleep, 60)
torch.manual_seed(0)
model, data = torch.nn.Linear(2, 1), torch.utils.data.TensorDataset(torch.randn(8, 2))
loss = lambda model, batch: (model(batch[0]).square().sum(), len(batch[0]))
run = psgc.torch.init(model, data, loss, chunks=2, output="out", log_with=["wandb"])
optimizer = torch.optim.SGD(model.parameters(), 0.1)
run.attach(optimizer)
for batch in run.batches(4):
    run.backward(batch)
    optimizer.step()
"""


@pytest.mark.parametrize(("name", "text"), [("run.yaml", YAML), ("train.py", SCRIPT)])
def test_psgc_launch_waits_for_it(tmp_path, name, text):
    for file, content in {"wandb.py": WANDB, "launch.py": LAUNCH, name: text}.items():
        (tmp_path / file).write_text(content)
    write_dense(str(tmp_path / "data.npz"), np.ones((8, 2)), np.ones(8))
    command = [sys.executable, "launch.py", "launch", name, "-n", "2"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    finished = run(command, tmp_path, timeout=50, env={"PYTHONPATH": path}, code=0)
    assert "wandb has sent everything, exit code 0\n" in finished.stdout, finished.said
    assert "  run directory      out\n" in finished.stdout, finished.said
