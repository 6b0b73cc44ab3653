"""A script with two runs, one after the other: each is started again by its own settings, and only the one that was."""

import json

import pytest

from psgc.record.csv_files import Restored, earlier, earlier_rows
from tests.ranks.mpirun import psgc, run
from tests.ranks.prepared import TORCH, prepared

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
KILLED_IN, STEPS = 4, 24
SCRIPT = """
import json, os, sys, time
from pathlib import Path
import torch
import psgc.torch

torch.set_num_threads(1)
rank, was_started_again = int(os.environ["OMPI_COMM_WORLD_RANK"]), "PSGC_RESTORED" in os.environ
x = torch.randn(120, 6, generator=torch.Generator().manual_seed(1))
data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))

for name, given in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    model, differs = torch.nn.Linear(6, 1), given.pop("differs", False)

    def loss(model, batch):
        features, labels = batch
        time.sleep(0.02)  # so that each worker does some chunks
        factor = 2.0 if differs and rank == 2 else 1.0
        return factor * torch.nn.functional.mse_loss(model(features), labels, reduction="sum"), len(labels)

    run = psgc.torch.init(model, data, loss, chunks=6, output=name, checkpoint_every=2, **given)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    run.attach(optimizer)
    for batch in run.batches(20, epochs=4):
        run.backward(batch)
        optimizer.step()
        if rank == 0 and Path(name, "lost.csv").exists() and not was_started_again:
            time.sleep(0.5)  # until the new ranks are there
    run.close()
"""
KILLED = {"restore": {"after": 0.5}, "inject": [{"kind": "kill", "rank": 2, "iteration": KILLED_IN}]}
AGAIN = "psgc launch: worker 2 gone for 0.5 s: the run starts again from here, with 3 ranks (faults.restore)"


def restores(folder, name):
    return len(earlier(folder / name / "restores.csv", Restored))


def launched(folder, code, **runs):
    (folder / "train.py").write_text(SCRIPT)
    command = psgc("launch", "train.py", "-n", "3", "--", json.dumps(runs), python=prepared(TORCH))
    return run(command, folder, 120, code=code)


@pytest.mark.parametrize("first", [None, {"restore": {"after": 1000}}], ids=["nothing", "after 1000 s"])
def test_the_second_run_of_a_script_is_started_again_by_its_own_settings(tmp_path, first):
    ended = launched(tmp_path, 0, first={"faults": first} if first else {}, second={"faults": KILLED})
    assert ended.stderr.splitlines().count(AGAIN) == 1, ended.said
    assert (restores(tmp_path, "first"), restores(tmp_path, "second")) == (0, 1), ended.said
    for name in ("first", "second"):
        assert [row.iteration for row in earlier_rows(tmp_path / name / "iterations.csv")] == [*range(STEPS)]
        assert json.loads((tmp_path / name / "summary.json").read_text())["status"] == "done"


def test_a_run_that_follows_the_one_that_was_started_again_has_its_trial(tmp_path):
    ended = launched(tmp_path, 1, first={"faults": KILLED}, second={"differs": True})
    assert AGAIN in ended.stderr.splitlines(), ended.said
    assert restores(tmp_path, "first") == 1
    assert "trial: chunk " in ended.stderr, ended.said
