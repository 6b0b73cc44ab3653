"""Runs where a dead rank cannot be survived: Open MPI without its fault tolerance, and MPICH.

They do what they do elsewhere as long as nobody dies, and say how to go on when somebody does. MPICH lies in a
directory of its own (`make .venv/mpich`); mpi4py's wheels take the library that MPI4PY_LIBMPI names.
"""

import importlib.util
import json
import os
import shlex
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import MpiRun, mpirun_path, psgc, run, wait_until
from tests.ranks.test_doctor import DOCTOR
from tests.sweeper import environ_of

CONFIG = """
problem: {kind: softmax}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.5}
iterations: 15
coding: {chunks_per_worker: 2, replication: 2}
checkpoint: {every: 5}
output: out
"""
SLOWLY = ("--set", "stragglers={kind: exponential, seconds: {all: 0.15}}")  # time enough to be killed in
ON = "psgc launch: to resume from the last checkpoint: "
PROMPT = 40.0  # seconds for a run to be over after a death: it takes 0.6 on an idle machine, 8 on a busy one


@dataclass
class Mpi:
    """env: what chooses it; mpirun: its bare command; options: what `psgc launch` needs to go without survival."""

    name: str
    mpirun: list[str]
    env: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def launch(self, *arguments: str) -> list[str]:
        return psgc("launch", "run.yaml", "-n", "3", *self.options, *arguments, python=sys.executable)

    def train(self, *arguments: str) -> list[str]:
        return [*self.mpirun, "-n", "3", sys.executable, "-m", "psgc", "train", "run.yaml", *arguments]


def mpich() -> Mpi:
    directory = Path(os.environ.get("PSGC_TEST_MPICH", Path(sys.prefix) / "mpich"))
    command, library = directory / "bin/mpirun", directory / "lib/libmpi.so.12"
    if not command.exists():
        pytest.skip(f"no MPICH in {directory}: make .venv/mpich")
    (package,) = importlib.util.find_spec("mpi4py").submodule_search_locations
    if not list(Path(package).glob("MPI.mpich.*")):
        pytest.skip("this mpi4py is built for one MPI alone, expected the wheel")
    env = {"PATH": f"{directory / 'bin'}:{os.environ['PATH']}", "MPI4PY_LIBMPI": str(library)}
    return Mpi("MPICH", [str(command)], env)


def open_mpi() -> Mpi:
    return Mpi("Open MPI", [mpirun_path(), "--oversubscribe", "--bind-to", "none"], options=("--no-fault-tolerance",))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    write_dense(str(tmp_path / "data.npz"), rng.random((80, 5)), np.arange(80.0) % 3)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The parameters at the end, computed without psgc's servers and workers."""
    rng = np.random.default_rng(0)
    X, y = rng.random((80, 5)), (np.arange(80) % 3)
    X = np.hstack([X, np.ones((80, 1))])
    W = np.zeros((6, 3))
    for _ in range(15):
        scores = np.exp(X @ W)
        W -= 0.5 * X.T @ (scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[y]) / 80
    return W


def kill(running, rank):
    marks = {f"OMPI_COMM_WORLD_RANK={rank}", f"PMI_RANK={rank}"}
    (pid,) = [p for p in running.processes() if marks & environ_of(p)]
    os.kill(pid, signal.SIGKILL)


def kill_after_a_checkpoint(running, folder, rank):
    wait_until(lambda: list((folder / "out").glob("checkpoints/*.safetensors")) or running.process.poll() is not None)
    kill(running, rank)
    finished = running.wait(PROMPT)
    assert not finished.orphans
    return finished


def assert_done(folder, expected):
    summary = json.loads((folder / "out/summary.json").read_text())
    assert (summary["status"], summary["iterations"], summary["workers"]) == ("done", 15, 3)
    np.testing.assert_allclose(np.load(folder / "out/params.npy"), expected.ravel(), atol=1e-10)


def test_a_run_without_faults_is_the_same_under_mpich(folder, expected):
    mpi = mpich()
    finished = run(mpi.launch("--set", "transfer=combined", "--set", "coding.parts=2"), folder, env=mpi.env, code=0)
    assert finished.stderr == ""
    assert ", MPICH " in finished.stdout
    assert_done(folder, expected)


@pytest.mark.faults
def test_mpichs_mpirun_alone_has_the_right_exit_code(folder, expected):
    mpi = mpich()  # whose hydra kills ranks that end without its leave
    finished = run(mpi.train("--set", "transfer=per_chunk"), folder, env=mpi.env)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.said
    assert_done(folder, expected)
    refused = run(mpi.train("--set", "problem.kind=logistic"), folder, env=mpi.env, code=2)
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(("made", "transfer", "rank"), [(open_mpi, "combined", 2), (mpich, "per_chunk", 0)])
@pytest.mark.faults
def test_a_dead_rank_ends_the_run_with_the_command_that_goes_on(made, folder, expected, transfer, rank):
    mpi = made()
    with MpiRun(mpi.launch("--set", f"transfer={transfer}", *SLOWLY), folder, mpi.env) as running:
        finished = kill_after_a_checkpoint(running, folder, rank)
    assert finished.returncode == 1, finished.said
    last = finished.stderr.splitlines()[-1]
    assert last.startswith(ON), finished.said
    attempt = shlex.split(last.removeprefix(ON))
    assert attempt[-1] == "--resume"
    assert set(mpi.options) <= set(attempt)
    resumed = run([sys.executable, "-m", *attempt], folder, env=mpi.env, code=0)
    assert "resuming from iteration " in resumed.stdout
    assert_done(folder, expected)


@pytest.mark.faults
def test_mpirun_alone_has_said_how_to_go_on(folder):
    mpi = open_mpi()
    with MpiRun(mpi.train(*SLOWLY), folder, mpi.env) as running:
        finished = kill_after_a_checkpoint(running, folder, 1)
    assert finished.returncode not in (0, 2), finished.said
    go_on = f"psgc launch run.yaml -n 3 --set '{SLOWLY[1]}' --resume"
    assert f"no fault tolerance: a dead rank ends this run; resume it with: {go_on}\n" in finished.stdout


STOPPED = ("--set", "faults={collect_timeout: 2, inject: [{kind: stop, rank: 2, iteration: 3, step: gradient}]}")


@pytest.mark.faults
def test_a_stopped_worker_is_done_without_by_open_mpi(folder, expected):
    run(open_mpi().launch(*STOPPED, "--set", "schedule=dynamic"), folder, code=0)
    assert_done(folder, expected)


@pytest.mark.faults
def test_a_stopped_worker_that_holds_up_mpich_ends_the_run(folder):
    mpi = mpich()  # whose memory for messages between processes of a host is used up by those that nobody reads
    env = mpi.env | {"MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_NUM_CELLS": "8"}
    finished = run(
        mpi.launch(*STOPPED, "--set", "iterations=100000", "--set", "checkpoint.every=3"), folder, env=env, code=1
    )
    assert "nothing reaches it for 2 s" in finished.stdout
    assert finished.stderr.splitlines()[-1].startswith(ON)


@pytest.mark.faults
def test_ctrl_c_is_an_orderly_end_under_mpich(folder):
    mpi = mpich()
    with MpiRun(mpi.launch(*SLOWLY), folder, mpi.env) as running:
        wait_until(lambda: list((folder / "out").glob("checkpoints/*.safetensors")))
        os.kill(running.process.pid, signal.SIGINT)
        finished = running.wait(PROMPT, code=130)
    stopped = ON.replace("to resume", "stopped by Ctrl-C (SIGINT); to resume")
    assert finished.stderr.splitlines()[-1].startswith(stopped)
    assert json.loads((folder / "out/summary.json").read_text())["status"] == "interrupted"


@pytest.mark.faults
def test_the_doctor_says_that_a_dead_rank_ends_the_run(tmp_path):
    finished = run(DOCTOR, tmp_path, timeout=90, env=mpich().env, code=0)
    lacks = "ends the job (mpirun exited with 9): mpi4py knows no error for a dead rank of this MPI"
    for line in ("MPICH Version: 5", "netmod ", lacks, f"\n  a dead rank: {lacks}; Open MPI 5 survives it\n"):
        assert line in finished.stdout, finished.said
    assert "note     killed worker     ends the run; psgc launch run.yaml -n " in finished.stdout


@pytest.mark.faults
def test_the_doctor_finds_an_mpirun_of_another_mpi(tmp_path):
    env = {"PATH": mpich().env["PATH"]}  # and mpi4py takes the usual library
    finished = run(DOCTOR, tmp_path, timeout=90, env=env, code=1)
    assert "the ranks do not see each other: mpirun is MPICH, mpi4py uses Open MPI" in finished.stdout
