"""A mistake in a script with psgc.torch: one line that says what is wrong, and exit code 2, as in one process."""

import re
import socket

import pytest

from tests.ranks.mpirun import mpirun, run
from tests.ranks.prepared import TORCH, prepared

SCRIPT = """
import os, sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import psgc.torch

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
    return None if mistake == "none" else found

data = torch.utils.data.TensorDataset(x, y)
seed, replication = rank // 2 if mistake == "seed" else 0, 9 if mistake == "batch on rank 2" else 3
run = psgc.torch.init(model, data, loss, chunks=6, seed=seed, replication=replication)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
state = {}
if mistake != "no attach":
    run.attach(optimizer, SimpleNamespace(state_dict=lambda: state, load_state_dict=state.update))
for batch in run.batches(50):
    run.backward([] if mistake == "batch" or (mistake == "batch on rank 2" and rank == 2) else batch)
    optimizer.step()
    if mistake == "state":
        state["later"] = [1, set()]
"""
HOST = socket.gethostname()
DIFFERS = f"psgc: rank {{}} on {HOST} differs from rank 0 on {HOST}: {{}}; all ranks need the same script"


def said(folder, mistake, ranks=3):
    """The lines of a run that ends with exit code 2."""
    (folder / "script.py").write_text(SCRIPT)
    python, command = prepared(TORCH), ["script.py", mistake]
    return run(mpirun(ranks, command, True, python) if ranks > 1 else [python, *command], folder, 100, code=2).lines


@pytest.mark.parametrize(
    ("mistake", "rank", "difference"),
    [
        ("data", 1, "row 0 of the dataset differs"),
        pytest.param("seed", 2, "seed is 1, not 0", marks=pytest.mark.faults),
    ],
)
def test_what_a_rank_has_otherwise_is_named(tmp_path, mistake, rank, difference):
    (line,) = said(tmp_path, mistake)
    assert line == f"{DIFFERS.format(rank, difference)}, arguments, data and versions"


CONTRACT = "expected (sum over the examples, number of examples), or the mean over the examples"
MISTAKES = {
    "none": f"the loss returned a value of type NoneType; {CONTRACT}",
    "no attach": "SGD steps parameters of the model, but was not attached; expected run.attach(optimizer) before the "
    "first batch",
    "state": "SimpleNamespace, attached to the run: simplenamespace.later.1 is a set, which cannot be saved; "
    "expected numbers, texts, tensors",
    "batch": "run.backward: got a list, expected a batch of run.batches",
}


@pytest.mark.faults
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_that_every_rank_makes_is_told_once(tmp_path, mistake):
    """That it is the user's is told by the exit code, in one process and in several."""
    alone, (line,) = said(tmp_path, mistake, ranks=1), said(tmp_path, mistake)
    told = re.sub(r"worker . on \S+, chunk ., iteration 0: ", "", line)
    assert [told] == alone == [f"psgc: {MISTAKES[mistake]}"]


@pytest.mark.faults
def test_a_mistake_that_one_worker_makes_ends_the_run(tmp_path):
    """A replication that so few workers cannot give is only said."""
    first, line = said(tmp_path, "batch on rank 2")
    assert first == "replication is 9, but there are 3 workers: every worker may compute every chunk"
    assert line == f"psgc: worker 3 on {HOST}: {MISTAKES['batch']}"
