"""Scripts whose ranks do not make the same steps: one line says which rank, at which step, and in what it differs."""

import re

import pytest

from tests.ranks.mpirun import mpirun, run
from tests.ranks.prepared import TORCH, prepared

SCRIPT = """
import os, random, sys, time
from pathlib import Path

import torch
import torch.nn.functional as F

import psgc.torch

torch.set_num_threads(1)
what, aggregation, rank = *sys.argv[1:], int(os.environ["OMPI_COMM_WORLD_RANK"])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
x, y = torch.randn(200, 10), torch.randint(0, 3, (200,))
scale = 1.0

def loss(model, batch):
    x, y = batch
    return scale * F.cross_entropy(model(x), y, reduction="sum"), len(y)

data = torch.utils.data.TensorDataset(x, y)
run = psgc.torch.init(model, data, loss, chunks=6, trial=False, aggregation=aggregation)
optimizer = torch.optim.SGD(model.parameters(), 0.2 if what == "rate" and rank == 1 else 0.1)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
run.attach(optimizer, schedule)
if what == "weights" and rank == 1:
    with torch.no_grad():
        model[0].weight.mul_(3)
random.seed(rank)
for batch in run.batches(50, epochs=2):
    if what == "draws":
        scale = 1 + random.random()
    if what == "picture" and rank == 0:
        random.random(), torch.rand(1)
    run.backward(batch)
    if what == "clipping" and rank == 1:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    if what == "frozen" and rank == 1:
        model[0].requires_grad_(False)
    Path(f"step-{batch.iteration}-{rank}").touch()
    end = time.monotonic() + 5  # a rank that is late for all steps would never be compared
    while len([*Path().glob(f"step-{batch.iteration}-*")]) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    optimizer.step()
    if what != "schedule" or rank == 0:
        schedule.step()
"""
SCHEDULE, PARAMETERS = "the state of StepLR", "the parameters"
OPTIMIZER, RANDOM = "the state of SGD", "the random numbers of the script \\(random\\)"

OPENING = (
    r"psgc \d\S*: 3 workers on 1 host, 6 chunks in 18 copies \(blocks\), parts 1, schedule dynamic, aggregation {}, "
    "transfer combined, 115 parameters, torch float32 on cpu, Open MPI v5"
)


def said(folder, what, aggregation, code):
    """The lines of a run that ends so, without the first ones, which say what it is."""
    (folder / "script.py").write_text(SCRIPT)
    finished = run(mpirun(3, ["script.py", what, aggregation], True, prepared(TORCH)), folder, 100, code=code)
    alone, what_it_is, *_ = finished.stdout.splitlines()
    assert alone == "started without psgc launch: exit codes are mpirun's"
    assert re.match(OPENING.format(aggregation), what_it_is)
    return finished.lines


faults = pytest.mark.faults


@pytest.mark.parametrize(
    ("what", "aggregation", "differs"),
    [
        ("schedule", "server", SCHEDULE),
        pytest.param("frozen", "allreduce", "requires_grad of the parameters", marks=faults),
        pytest.param("rate", "server", OPTIMIZER, marks=faults),
        pytest.param("weights", "server", PARAMETERS, marks=faults),
        pytest.param("clipping", "allreduce", PARAMETERS, marks=faults),
        pytest.param("draws", "allreduce", RANDOM, marks=faults),
    ],
)
def test_a_rank_that_makes_other_steps_ends_the_run(tmp_path, what, aggregation, differs):
    (line,) = said(tmp_path, what, aggregation, 2)
    worker = "[23]" if what in ("schedule", "draws") else "2"  # the first one that is looked at
    assert re.match(rf"psgc: worker {worker} on \S+: at iteration [0-3] it differs from rank 0 in .*{differs}", line)


@faults
def test_a_rank_may_draw_random_numbers_that_no_other_one_draws(tmp_path):
    assert said(tmp_path, "picture", "allreduce", 0) == []
