"""A logger that goes on sending has the time for it, and so have exit hooks; a process that hangs then has not."""

import os
import shutil
import sys

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import run
from tests.unit import torch_problem

WANDB = """
import time
run = None
def init(**settings): return Run()
class Run:
    def log(self, values, step): pass
    def finish(self, exit_code):
        time.sleep(2.5)
        print(f"wandb has sent everything, exit code {exit_code}", flush=True)
"""
LAUNCH = """
from psgc.launching import outcome
outcome.GRACE = 1.0  # seconds that a process may go on for after the run
from psgc.cli import main
main()
"""
NUMPY = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 3
coding: {chunks_per_worker: 2}
log: [wandb]
output: out
"""
TORCH = """
problem: {torch: "torch_problem:build"}
optimizer: {torch: SGD, lr: 0.1}
batch: {size: 125, epochs: 1}
coding: {chunks: 2}
log: [wandb]
output: out
"""
SCRIPT = """
import atexit, os, time
import torch
import psgc.torch
def late():
    time.sleep(2.5)
    print("the hook has ended", flush=True)
atexit.register(*[(late,), (time.sleep, 60)][int(os.environ["OMPI_COMM_WORLD_RANK"])])
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


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.yaml", NUMPY, ["wandb"]),
        pytest.param("run.yaml", TORCH, ["wandb"], marks=pytest.mark.faults),
        pytest.param("train.py", SCRIPT, ["wandb", "the hook has ended\n"], marks=pytest.mark.faults),
    ],
    ids=["numpy", "torch", "script"],
)
def test_psgc_launch_waits_for_it(tmp_path, name, text, said):
    for file, content in {"wandb.py": WANDB, "launch.py": LAUNCH, name: text}.items():
        (tmp_path / file).write_text(content)
    write_dense(str(tmp_path / "data.npz"), np.ones((8, 2)), np.ones(8))
    shutil.copy(torch_problem.__file__, tmp_path)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "launch.py", "launch", name, "-n", "2"]
    finished = run(command, tmp_path, timeout=50, env={"PYTHONPATH": path}, code=0)
    assert "wandb has sent everything, exit code 0\n" in finished.stdout, finished.said
    assert all(text in finished.stdout for text in said), finished.said
    assert "  run directory      out\n" in finished.stdout, finished.said
    assert not (tmp_path / "out/.logging").exists()
