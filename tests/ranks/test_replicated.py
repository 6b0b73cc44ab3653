"""`aggregation: allreduce` under real mpirun: every rank holds the parameters, and all of them hold the same."""

import csv
import json
import os
import signal

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import MpiRun, mpirun, psgc, run, sets
from tests.ranks.test_train import wait_until

ITERATIONS = 24
CONFIG = f"""
problem: {{kind: mlp, hidden: 4, l2: 0.01}}
data: {{path: data.npz}}
optimizer: {{kind: adam, lr: 0.05}}
iterations: {ITERATIONS}
coding: {{chunks_per_worker: 2, replication: 4}}
checkpoint: {{every: 5, keep: 2}}
output: OUTPUT
"""
ALLREDUCE, SERVER = "aggregation=allreduce", "aggregation=server"
SLOWLY = "stragglers={kind: slow, seconds: {all: 0.06}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the data; the problem has 39 parameters, of which four parts leave a rest."""
    folder = tmp_path_factory.mktemp("replicated")
    rng = np.random.default_rng(0)
    write_dense(str(folder / "data.npz"), rng.normal(size=(240, 5)), rng.integers(0, 3, 240).astype(float))
    return folder


def train(folder, output, *settings, workers=5, options=()):
    (folder / f"{output}.yaml").write_text(CONFIG.replace("OUTPUT", output))
    command = ["-m", "psgc", "train", f"{output}.yaml", *sets(*settings), *options]
    return run(mpirun(workers, command), folder, code=0)


def summary_of(folder, output):
    return json.loads((folder / output / "summary.json").read_text())


def assert_replicas_are_equal(folder, output):
    assert summary_of(folder, output)["replicas"] == {"iteration": ITERATIONS, "equal": [1, 2, 3, 4, 5]}


def events(folder, output):
    with (folder / output / "lost.csv").open(newline="") as stream:
        return [
            (row["event"], int(row["worker"]), int(row["iteration"]), row["reason"]) for row in csv.DictReader(stream)
        ]


def assert_same_parameters(folder, output, expected):
    found, wanted = (np.load(folder / name / "params.npy") for name in (output, expected))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def whole(folder):
    """The same training with the parameters on the server."""
    train(folder, "whole", SERVER, "transfer=per_chunk")
    return "whole"


@pytest.mark.faults
def test_a_run_goes_on_with_another_aggregation_after_a_stop_and_with_other_ranks(folder, whole):
    """By all-reduce, interrupted, then on fewer workers with the sums on the server."""
    (folder / "stages.yaml").write_text(CONFIG.replace("OUTPUT", "stages"))
    slowly = sets(ALLREDUCE, "coding.parts=4", "stragglers={kind: slow, seconds: {all: 0.1}}")
    with MpiRun(psgc("launch", "stages.yaml", "-n", "5", *slowly), folder) as run:
        wait_until(lambda: len(list((folder / "stages").glob("checkpoints/*"))) == 1)
        os.kill(run.process.pid, signal.SIGTERM)
        run.wait(30, code=128 + signal.SIGTERM)
    summary = summary_of(folder, "stages")
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by SIGTERM")
    finished = train(folder, "stages", SERVER, "transfer=per_chunk", workers=4, options=["--resume"])
    assert 0 < summary["iterations"] < ITERATIONS
    assert f"resuming from iteration {summary['iterations']}," in finished.stdout
    assert_same_parameters(folder, "stages", whole)


@pytest.mark.faults
def test_a_worker_that_stands_still_for_a_while_falls_behind_and_catches_up(folder, whole):
    stop = "faults.inject=[{kind: stop, rank: 2, iteration: 5, step: begin, seconds: 3}]"
    train(folder, "behind", ALLREDUCE, "stragglers={kind: slow, seconds: {all: 0.1}}", stop)
    assert_same_parameters(folder, "behind", whole)
    assert not (folder / "behind/lost.csv").exists()
    timeline = np.load(folder / "behind/timeline.npz")
    worked_in = set(timeline["iteration"][timeline["worker"] == 2].tolist())
    assert len(worked_in & {*range(5)}) >= 3  # a busy machine may leave out one that is slow
    assert ITERATIONS - 1 in worked_in
    assert {*range(6, ITERATIONS)} - worked_in  # two gradients wait for it, then the others go on without it
    assert_replicas_are_equal(folder, "behind")


FLIP = "faults.inject=[{kind: flip, rank: 2, iteration: %d, step: stepping}]"


@pytest.mark.faults
def test_a_worker_whose_parameters_differ_is_lost_and_comes_back_with_those_of_another(folder, whole):
    finished = train(folder, "differs", ALLREDUCE, SLOWLY, FLIP % 15)  # parameters are compared at iteration 16
    assert_same_parameters(folder, "differs", whole)
    (lost, *rest), returned = events(folder, "differs"), "returned"
    assert (lost[:2], lost[3]) == (
        ("lost", 2),
        "at iteration 16 it differs from rank 0 in the parameters and the state of the optimizer",
    )
    assert lost[2] in (15, 16, 17)
    assert [event[:2] for event in rest] == [(returned, 2)]
    assert "at iteration 16 it differs from rank 0 in the parameters" in finished.stdout
    assert_replicas_are_equal(folder, "differs")


@pytest.mark.faults
def test_verify_finds_nothing_but_what_a_worker_does_with_parameters_that_differ(folder, whole):
    train(folder, "checked", ALLREDUCE, SLOWLY, "verify={every: 1, strikes: 2}", FLIP % 4)
    assert_same_parameters(folder, "checked", whole)
    assert summary_of(folder, "checked")["wrong"].keys() == {"2"}
    found = events(folder, "checked")
    assert {event[1] for event in found} == {2}
    assert {event[2] for event in found} <= {5, 6}  # at once
    assert [event[0] for event in found if event[0] != "wrong"] == ["lost"]
    assert summary_of(folder, "checked")["replicas"] == {"iteration": ITERATIONS, "equal": [1, 3, 4, 5]}
