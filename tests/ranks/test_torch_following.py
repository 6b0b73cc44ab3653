"""Two runs of psgc.torch in one script, under a real mpirun: what one rank does between them keeps no other rank."""

import os

import pytest

from tests.ranks.mpirun import mpirun, psgc, run
from tests.ranks.prepared import TORCH, prepared

SCRIPT = """
import os, sys, time
from types import SimpleNamespace

import torch

import psgc.torch

# Optimizers import the compiler only to say what it is not to compile. That takes as long as importing torch.
sys.modules["torch._dynamo"] = SimpleNamespace(disable=lambda function, *_, **__: function, graph_break=lambda: None)
torch.set_num_threads(1)
what, rank = sys.argv[1], int(os.environ["OMPI_COMM_WORLD_RANK"])
data = torch.utils.data.TensorDataset(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))

def train():
    model = torch.nn.Linear(3, 1)
    loss = lambda model, batch: model(batch[0]).mean()
    run = psgc.torch.init(model, data, loss, chunks=6, aggregation="server")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(20):
        run.backward(batch)
        optimizer.step()
    return run

run = train()
if what == "slow" and rank:
    time.sleep(0.5)
if what == "rank 0 raises" and rank == 0:
    time.sleep(0.5)
    raise ValueError("on purpose")
if what != "slow":
    run.close()
if what == "rank 1 raises" and rank == 1:
    raise ValueError("on purpose")
train()
print(f"rank {rank} has come to the end", flush=True)
"""
EARLY = f"psgc: the script of rank 1 on {os.uname().nodename} ended before the others: its script raised ValueError: "

pytestmark = pytest.mark.faults


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def test_the_next_run_waits_for_a_worker_that_is_slow_after_its_last_step(folder):
    finished = run(mpirun(3, ["script.py", "slow"], True, prepared(TORCH)), folder, code=0)
    assert finished.stdout.count("has come to the end") == 3, finished.said


@pytest.mark.parametrize("how", ["mpirun", "launch"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_script_that_raises_between_two_runs(folder, rank, how):
    what = f"rank {rank} raises"
    launched = psgc("launch", "script.py", "-n", "3", "--", what, python=prepared(TORCH))
    command = launched if how == "launch" else mpirun(3, ["script.py", what], True, prepared(TORCH))
    finished = run(command, folder, code=1)
    assert finished.seconds < 30  # nobody is killed
    assert finished.stderr.count("\nValueError: on purpose\n") == 1, finished.said
    assert finished.stderr.count(EARLY) == rank, finished.said
