"""A mistake in a script with psgc.torch: one line that says what is wrong, and exit code 2, as in one process."""

import socket
import sys

import pytest

from tests.ranks.mpirun import mpirun, run

SCRIPT = """
import os, sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import psgc.torch

# Optimizers import the compiler only to say what it is not to compile. That takes as long as importing torch.
nothing_is_compiled = {"disable": lambda function, *_, **__: function, "graph_break": lambda: None}
sys.modules["torch._dynamo"] = SimpleNamespace(**nothing_is_compiled)
torch.set_num_threads(1)
mistake, rank = sys.argv[1], int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
torch.manual_seed(0)
model = torch.nn.Linear(10, 3)
y = torch.randint(0, 3, (200,))
torch.manual_seed(rank if mistake == "data" else 0)
x = torch.randn(200, 10)

def loss(model, batch):
    x, y = batch
    found = F.cross_entropy(model(x), y, reduction="sum"), len(y)
    return {"none": None, "vector": model(x), "float": 1.0}.get(mistake, found)

data = torch.utils.data.TensorDataset(x, y)
run = psgc.torch.init(model, data, loss, chunks=6, seed=rank // 2 if mistake == "seed" else 0)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
run.attach(optimizer)
for batch in run.batches(50):
    run.backward(batch)
    optimizer.step()
"""
HOST = socket.gethostname()
DIFFERS = f"psgc: rank {{}} on {HOST} differs from rank 0 on {HOST}: {{}}; all ranks need the same script"


def said(folder, mistake, ranks=3):
    """The lines of a run that ends with exit code 2."""
    (folder / "script.py").write_text(SCRIPT)
    command = ["script.py", mistake]
    finished = run(mpirun(ranks, command, ulfm=True) if ranks > 1 else [sys.executable, *command], folder, 100)
    assert finished.returncode == 2, finished.said
    assert not finished.orphans
    return [*finished.stdout.splitlines(), *finished.stderr.splitlines()]


@pytest.mark.parametrize(
    ("mistake", "rank", "difference"),
    [
        ("data", 1, "row 0 of the dataset is another one"),
        pytest.param("seed", 2, "seed is 1, not 0", marks=pytest.mark.faults),
    ],
)
def test_what_a_rank_has_otherwise_is_named(tmp_path, mistake, rank, difference):
    (line,) = said(tmp_path, mistake)
    assert line == f"{DIFFERS.format(rank, difference)}, arguments, data and versions"
