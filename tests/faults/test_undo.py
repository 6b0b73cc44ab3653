"""A wrong gradient that is found when it is in a step already: the run goes back to the checkpoint before that."""

import json

import numpy as np
import pytest

from psgc.data import write_dense
from psgc.record.csv_files import earlier_rows
from tests.ranks.mpirun import psgc, run, sets
from tests.ranks.prepared import TORCH, prepared

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
# worker 2 does both chunks of an iteration, and worker 1 ends its first one when worker 2 is in the next iteration
LATE = """
import os, time, zlib
from pathlib import Path

begun, late = Path("begun"), Path("late")  # the iterations that worker 2 and worker 1 are in
newest, was_started_again = None, "PSGC_RESTORED" in os.environ

def until(holds):
    end = time.monotonic() + 5
    while time.monotonic() < end and not holds():
        time.sleep(0.001)

def wait(params):
    global newest
    if was_started_again:
        return
    iteration = str(zlib.crc32(params))  # parameters differ from iteration to iteration
    is_first, newest = iteration != newest, iteration
    if os.environ["PMIX_RANK"] == "2":
        if is_first:
            begun.write_text(iteration)
            until(lambda: late.read_text() == iteration)
        time.sleep(0.03)  # until the server has what worker 1 has sent
    elif is_first:  # a second chunk is begun where the next iteration is not known in time
        late.write_text(iteration)
        until(lambda: begun.read_text() not in ("", iteration))
        time.sleep(0.08)  # until this worker knows of the next iteration: the rest of this one is not its work any more
"""
MODEL = """
from late import wait
from psgc.problems.models import LeastSquares

class Late(LeastSquares):
    def __init__(self):
        super().__init__(5)

    def loss_and_gradient(self, params, chunk, rng=None):
        wait(params)
        return super().loss_and_gradient(params, chunk, rng)
"""
SETTINGS = """
problem: {python: 'model:Late'}
data: {path: data.npz}
optimizer: {kind: momentum, lr: 0.1}
iterations: 12
coding: {chunks_per_worker: 1, replication: 2}
schedule: full
transfer: combined
verify: {idle: true}
trial: false
dedicated_server: true
"""
SCRIPT = """
import json, sys
import torch
import psgc.torch
from late import wait

torch.manual_seed(0)
x = torch.randn(80, 6)
model, steps = torch.nn.Linear(6, 1), 0

class Waits(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        if steps > 1:  # in the first two steps the loss is called more often, to look at it
            wait(model.weight.detach().numpy().tobytes())
        return gradient

def loss(model, batch):
    return (Waits.apply(model(batch[0]))[:, 0] - batch[1]).square().sum(), len(batch[1])

output, every, inject = json.loads(sys.argv[1])
run = psgc.torch.init(
    model, torch.utils.data.TensorDataset(x, x[:, 0]), loss, chunks=2, replication=2, schedule="full", trial=False,
    transfer="combined", verify={"idle": True}, checkpoint_every=every, dedicated_server=True, output=output,
    faults={"inject": inject},
)
optimizer = torch.optim.Adam(model.parameters(), 0.1)
run.attach(optimizer)
for batch in run.batches(80, 12, shuffle=False):
    run.backward(batch)
    optimizer.step()
    steps += 1
"""
FLIPS = [{"kind": "flip", "rank": 2, "iteration": 5, "step": "gradient", "error": 2}] * 2  # of both chunks
UNDONE = [
    "iteration 5: the copies of chunk 0 by workers 1 and 2 differ; this was found too late to tell which copy is "
    "wrong, during the step or after it; so the run goes back to the checkpoint of step {newest}",
    "psgc launch: the run starts again from its checkpoint, to undo the step",
]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    write_dense(str(tmp_path / "data.npz"), rng.normal(size=(80, 5)), rng.normal(size=80))
    for name, text in (("late.py", LATE), ("model.py", MODEL), ("run.yaml", SETTINGS), ("train.py", SCRIPT)):
        (tmp_path / name).write_text(text)
    return tmp_path


def launched(folder, what, output, every, inject):
    """The final parameters, and what was said of the step."""
    for name in ("begun", "late"):
        (folder / name).write_bytes(b"")
    if what == "script":
        after = ["train.py", "-n", "3", "--", json.dumps([output, every, inject])]
    else:
        settings = f"output={output}", f"checkpoint.every={every}", f"faults.inject={json.dumps(inject)}"
        after = ["run.yaml", "-n", "3", *sets(*settings)]
    ended = run(psgc("launch", *after, python=prepared(TORCH) if what == "script" else None), folder, code=0)
    said = [line for line in ended.said.splitlines() if "the checkpoint of step" in line or "to undo" in line]
    return np.load(folder / output / "params.npy"), said


@pytest.mark.parametrize("what", ["problem", "script"])
def test_a_wrong_step_is_undone(folder, what):
    expected, said = launched(folder, what, "healthy", 2, [])
    assert said == []
    for every, newest in ((2, 4), (100, 0)):
        found, said = launched(folder, what, output := f"flipped-{every}", every, FLIPS)
        assert sorted(said) == [line.format(newest=newest) for line in UNDONE]
        np.testing.assert_array_equal(found, expected)
        assert [row.iteration for row in earlier_rows(folder / output / "iterations.csv")] == [*range(12)]
        (restored,) = json.loads((folder / output / "summary.json").read_text())["restores"]
        assert (restored["iteration"], restored["repeated"]) in ((newest, 5 - newest), (newest, 6 - newest))
