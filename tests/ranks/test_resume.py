"""Checkpoints and `--resume` under a real mpirun: a run that is cut off and goes on ends where it would have ended."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest

from psgc.data import write_dense
from psgc.tools.run_directory import read_run
from tests.ranks.mpirun import MpiRun, mpirun, run, sets
from tests.ranks.test_train import wait_until

CONFIG = """
problem: {kind: mlp, hidden: 5, l2: 0.01}
data: {path: data.npz}
optimizer:
  {kind: adam, lr: 0.05, weight_decay: 0.1, clip_norm: 0.1, schedule: {kind: cosine, warmup: 9, final: 0.1}}
batch: {size: 59, epochs: 8}
coding: {chunks_per_worker: 4, replication: 2}
transfer: per_chunk
checkpoint: {every: 7, keep: 2}
output: OUTPUT
"""  # 240 rows: an epoch has 5 iterations, the last one with 4 rows for 12 chunks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the data, and the undisturbed run in `whole`."""
    folder = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    write_dense(str(folder / "data.npz"), rng.normal(size=(240, 5)), rng.integers(0, 3, 240).astype(float))
    train(folder, "whole")
    assert checkpoints(folder / "whole")[0] == 40
    return folder


SLOWLY = ("--set", "stragglers={kind: exponential, seconds: {all: 0.02}}")  # time enough to be stopped in


def command(folder, output, *arguments, ranks=3):
    (folder / f"{output}.yaml").write_text(CONFIG.replace("OUTPUT", output))
    return mpirun(ranks, ["-m", "psgc", "train", f"{output}.yaml", *arguments])


def train(folder, output, *arguments, ranks=3):
    return run(command(folder, output, *arguments, ranks=ranks), folder, code=0)


def checkpoints(output):
    names = (path.name for path in (output / "checkpoints").iterdir() if path.suffix == ".safetensors")
    return sorted((int(name.split("-")[0]) for name in names), reverse=True)


def rows(output):
    with (output / "iterations.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def killed(folder):
    """A run all of whose processes were killed soon after the checkpoint of iteration 14."""
    place = folder / "killed/checkpoints"
    with MpiRun(command(folder, "killed", *SLOWLY), folder) as running:
        wait_until(lambda: place.exists() and max([*checkpoints(folder / "killed"), 0]) >= 14)
        running.kill()
    (place / ".psgc-0.tmp").write_bytes(b"half of it")
    return folder / "killed"


def test_a_killed_run_goes_on_with_other_settings_to_the_same_parameters_to_the_last_bit(folder, killed):
    recorded = read_run(killed)  # what it had recorded, to its last row
    assert recorded.summary is None
    rows_before = set(recorded.iterations["iteration"].tolist())
    assert set(recorded.timeline["iteration"].tolist()) >= rows_before >= set(range(14))
    output = "goes-on"
    shutil.copytree(killed, folder / output)
    resumed = train(folder, output, *sets("schedule=static", "coding.replication=1"), "--resume", ranks=2)
    assert "resuming from iteration " in resumed.stdout
    assert (folder / output / "params.npy").read_bytes() == (folder / "whole/params.npy").read_bytes()
    found, undisturbed = rows(folder / output), rows(folder / "whole")
    assert [row["iteration"] for row in found] == [str(i) for i in range(40)]
    assert [row["loss"] for row in found] == [row["loss"] for row in undisturbed]
    summary = json.loads((folder / output / "summary.json").read_text())
    assert (summary["status"], summary["iterations"], summary["workers"]) == ("done", 40, 2)
    assert set(read_run(folder / output).timeline["iteration"].tolist()) == set(range(40))
    assert checkpoints(folder / output)[0] == 40  # of those before it, the disk may not have been in time for all
    assert len(checkpoints(folder / output)) == 2
    assert not list((folder / output / "checkpoints").glob(".*"))


@pytest.mark.faults
def test_a_run_that_was_asked_to_stop_says_how_to_go_on_and_does_so(folder):
    with MpiRun(command(folder, "asked", *SLOWLY), folder) as running:
        wait_until(lambda: (folder / "asked/iterations.csv").exists() and len(rows(folder / "asked")) > 3)
        os.kill(running.process.pid, signal.SIGUSR1)  # mpirun passes it on
        finished = running.wait(60)
    summary = json.loads((folder / "asked/summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by SIGUSR1")
    said = next(line for line in finished.stderr.splitlines() if line.startswith("psgc"))
    go_on = f"psgc launch asked.yaml -n 3 --set '{SLOWLY[1]}' --resume"
    assert said == f"psgc: interrupted: stopped by SIGUSR1; resume with: {go_on}", finished.said
    assert checkpoints(folder / "asked")[0] == summary["iterations"]

    train(folder, "asked", "--resume")
    assert (folder / "asked/params.npy").read_bytes() == (folder / "whole/params.npy").read_bytes()
    assert len(np.load(folder / "asked/timeline.npz")["worker"]) >= 12 * 40
