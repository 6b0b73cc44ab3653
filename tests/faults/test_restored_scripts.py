"""A script with several runs: each starts again by its own settings, and those that follow it are new."""

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
PROGRAM = """
import json, os, sys, time
from pathlib import Path
import numpy as np
import psgc

rank, was_started_again = int(os.environ["OMPI_COMM_WORLD_RANK"]), "PSGC_RESTORED" in os.environ
X = np.random.default_rng(0).standard_normal((48, 5))

class Ridge:
    dim = 5

    def __init__(self, name, differs):
        self.lost, self.factor = Path(name, "lost.csv"), 2.0 if differs and rank == 2 else 1.0

    def initial_params(self):
        return np.zeros(5)

    def gradient(self, params, chunk, rng):
        is_short = self.lost.exists() and not was_started_again  # of a worker, until the new ranks are there
        time.sleep(0.2 if is_short else 0.02)
        return self.factor * chunk.weight * (chunk.X.T @ (chunk.X @ params - chunk.y) / len(chunk.y))

for name, given in json.loads(sys.argv[1]).items():
    problem, about = Ridge(name, given.pop("differs", False)), {"coding": {"chunks_per_worker": 2, "replication": 2}}
    last = given.pop("last", 24)
    about["callbacks"] = [lambda row, params: row["iteration"] + 1 >= last]
    psgc.train(problem, (X, X.sum(1)), lr=0.1, iterations=24, output=name, checkpoint={"every": 2}, **about, **given)
"""
KILLED = {"restore": {"after": 0.5}, "inject": [{"kind": "kill", "rank": 2, "iteration": KILLED_IN}]}
AGAIN = "psgc launch: worker 2 gone for 0.5 s: the run starts again from here, with 3 ranks (faults.restore)"


def restores(folder, name):
    return len(earlier(folder / name / "restores.csv", Restored))


def launched(folder, code, script=SCRIPT, **runs):
    (folder / "train.py").write_text(script)
    python = prepared(TORCH) if script == SCRIPT else None
    command = psgc("launch", "train.py", "-n", "3", "--", json.dumps(runs), python=python)
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


def test_a_program_that_is_started_again_goes_on_with_its_second_run_and_its_third_one_is_new(tmp_path):
    runs = {"first": {}, "second": {"faults": KILLED}, "third": {"differs": True}}
    ended = launched(tmp_path, 1, PROGRAM, **runs)
    assert AGAIN in ended.stderr.splitlines(), ended.said
    assert "nothing to do: first has done 24 iterations of 24" in ended.stdout, ended.said
    assert [restores(tmp_path, name) for name in ("first", "second")] == [0, 1]
    assert [row.iteration for row in earlier_rows(tmp_path / "second/iterations.csv")] == [*range(STEPS)]
    assert "trial: chunk " in ended.stderr, ended.said


def test_a_program_that_is_started_again_records_that_of_no_run_before(tmp_path):
    """A callback has ended the first one early: it makes no more steps."""
    ended = launched(tmp_path, 0, PROGRAM, first={"last": 10}, second={"faults": KILLED})
    assert AGAIN in ended.stderr.splitlines(), ended.said
    assert "nothing to do: first has done 10 iterations of 24 (callback <lambda> said so)" in ended.stdout, ended.said
    assert [row.iteration for row in earlier_rows(tmp_path / "first/iterations.csv")] == [*range(10)]
    assert [restores(tmp_path, name) for name in ("first", "second")] == [0, 1], ended.said
