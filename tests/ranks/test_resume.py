"""Checkpoints and `--resume` under a real mpirun: a run that is cut off and goes on ends where it would have ended."""

import csv
import json
import os
import signal

import numpy as np
import pytest

from psgc.data import write_dense
from psgc.reporting.run_directory import read_run
from psgc.training.claim import Claim
from tests.ranks.mpirun import MpiRun, mpirun, run
from tests.ranks.test_train import wait_until

CONFIG = """
problem: {kind: mlp, hidden: 5, l2: 0.01}
data: {path: data.npz}
optimizer: {kind: adam, lr: 0.05}
iterations: 40
batch: 9
coding: {chunks_per_worker: 4, replication: 2}
transfer: per_chunk
checkpoint: {every: 7, keep: 2}
output: OUTPUT
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the data, and the undisturbed run in `whole`."""
    folder = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    write_dense(str(folder / "data.npz"), rng.normal(size=(240, 5)), rng.integers(0, 3, 240).astype(float))
    finished = train(folder, "whole")
    assert finished.returncode == 0, finished.said
    assert checkpoints(folder / "whole")[0] == 40
    return folder


SLOWLY = ("--set", "stragglers={kind: exponential, seconds: {all: 0.02}}")  # time enough to be stopped in


def command(folder, output, *arguments, ranks=4):
    (folder / f"{output}.yaml").write_text(CONFIG.replace("OUTPUT", output))
    return mpirun(ranks, ["-m", "psgc", "train", f"{output}.yaml", *arguments])


def train(folder, output, *arguments, ranks=4):
    return run(command(folder, output, *arguments, ranks=ranks), folder)


def checkpoints(output):
    names = (path.name for path in (output / "checkpoints").iterdir() if path.suffix == ".npz")
    return sorted((int(name.split("-")[0]) for name in names), reverse=True)


def rows(output):
    with (output / "iterations.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def killed_after(folder, output, iteration):
    """A run all of whose processes are killed soon after the checkpoint of `iteration`."""
    with MpiRun(command(folder, output, *SLOWLY), folder) as running:
        place = folder / output / "checkpoints"
        wait_until(lambda: place.exists() and max([*checkpoints(folder / output), 0]) >= iteration)
        running.kill()
    assert not (folder / output / "summary.json").exists()


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (4, []),
        (3, ["--set", "schedule=static", "--set", "coding.replication=1"]),
        (6, ["--set", "schedule=full"]),
    ],
    ids=["the same again", "fewer workers, static", "more workers, full"],
)
def test_a_killed_run_goes_on_to_the_same_parameters_to_the_last_bit(folder, ranks, changes):
    output = f"killed{ranks}"
    killed_after(folder, output, 14)
    killed = read_run(folder / output)  # what it had recorded, to its last row
    assert killed.summary is None
    assert set(killed.timeline["iteration"].tolist()) >= set(killed.iterations["iteration"].tolist()) >= set(range(14))
    (folder / output / "checkpoints/.psgc-0.tmp").write_bytes(b"half of it")
    resumed = train(folder, output, *changes, "--resume", ranks=ranks)
    assert resumed.returncode == 0, resumed.said
    assert "resuming from iteration " in resumed.stdout
    assert (folder / output / "params.npy").read_bytes() == (folder / "whole/params.npy").read_bytes()
    found, undisturbed = rows(folder / output), rows(folder / "whole")
    assert [row["iteration"] for row in found] == [str(i) for i in range(40)]
    assert [row["loss"] for row in found] == [row["loss"] for row in undisturbed]
    summary = json.loads((folder / output / "summary.json").read_text())
    assert (summary["status"], summary["iterations"], summary["workers"]) == ("done", 40, ranks - 1)
    assert set(read_run(folder / output).timeline["iteration"].tolist()) == set(range(40))
    assert [path.name for path in folder.iterdir()].count(output) == 1
    assert checkpoints(folder / output)[0] == 40  # of those before it, the disk may not have been in time for all
    assert len(checkpoints(folder / output)) == 2
    assert not list((folder / output / "checkpoints").glob(".*"))


def test_a_run_that_was_asked_to_stop_says_how_to_go_on_and_more_iterations_extend_it(folder):
    with MpiRun(command(folder, "asked", *SLOWLY), folder) as running:
        wait_until(lambda: (folder / "asked/iterations.csv").exists() and len(rows(folder / "asked")) > 3)
        os.kill(running.process.pid, signal.SIGUSR1)  # mpirun passes it on
        finished = running.wait(60)
    summary = json.loads((folder / "asked/summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by SIGUSR1")
    said = next(line for line in finished.stderr.splitlines() if line.startswith("psgc"))
    go_on = f"psgc launch asked.yaml -n 4 --set '{SLOWLY[1]}' --resume"
    assert said == f"psgc: interrupted: stopped by SIGUSR1; resume with: {go_on}", finished.said
    assert checkpoints(folder / "asked")[0] == summary["iterations"]

    resumed = train(folder, "asked", "--resume", "--set", f"iterations={summary['iterations']}")
    assert resumed.returncode == 0, resumed.said
    assert json.loads((folder / "asked/summary.json").read_text())["status"] == "done"
    attempt = train(folder, "asked", "--resume", "--set", "iterations=2")
    assert attempt.returncode == 0, attempt.said
    assert "nothing to do" in attempt.stdout
    extended = train(folder, "asked", "--resume")
    assert extended.returncode == 0, extended.said
    assert (folder / "asked/params.npy").read_bytes() == (folder / "whole/params.npy").read_bytes()
    assert len(np.load(folder / "asked/timeline.npz")["worker"]) >= 12 * 40


def test_another_run_is_refused_and_nothing_is_touched(folder):
    before = {path: path.read_bytes() for path in (folder / "whole").rglob("*") if path.is_file()}
    finished = train(folder, "whole", "--resume", "--set", "seed=1")
    assert finished.returncode == 2, finished.said
    (line,) = (line for line in finished.stderr.splitlines() if line.startswith("psgc"))
    assert "seed: 1 does not match the checkpoint of iteration 40 in whole, which has 0" in line
    assert {path: path.read_bytes() for path in (folder / "whole").rglob("*") if path.is_file()} == before


def test_a_second_run_in_the_same_directory_is_refused_and_touches_nothing(folder):
    claim = Claim(folder / "whole")
    try:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        finished = train(folder, "whole", ranks=2)
        assert finished.returncode == 2, finished.said
        (line,) = (line for line in finished.stderr.splitlines() if line.startswith("psgc"))
        assert line.startswith(f"psgc: output: whole: another run uses it (process {os.getpid()} on ")
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    finally:
        claim.release()
