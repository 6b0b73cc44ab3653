"""psgc.train under a real mpirun: the program is `train_in_program.py`, which asserts what each rank has to see."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.ranks.mpirun import MpiRun, mpirun, psgc, run
from tests.ranks.test_train import wait_until


@pytest.fixture
def folder(tmp_path):
    shutil.copy(Path(__file__).with_name("train_in_program.py"), tmp_path / "program.py")
    return tmp_path


def launch(*how, options=()):
    return psgc("launch", "program.py", "-n", "4", *options, "--", *how)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(launch("twice"), id="launch"),
        pytest.param(mpirun(4, ["program.py", "twice"]), id="mpirun", marks=pytest.mark.faults),
    ],
)
def test_two_runs_in_one_program(folder, command):
    finished = run(command, folder, code=0)
    assert finished.stderr == "", finished.said
    assert [finished.stdout.count(f"rank {rank} goes on\n") for rank in range(4)] == [1] * 4, finished.said
    assert "callback low_enough said so" in finished.stdout


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        pytest.param("other_data", 2, "psgc: rank 2 on HOST differs from rank 0 on HOST: data: 48 rows of 5 features (",
                     marks=pytest.mark.faults),
        ("strange", 1, "psgc: failed: callback strange raised KeyError: 'who', program.py:"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(folder, how, code, line):
    finished = run(launch(how), folder, code=code)
    (said,) = finished.stderr.splitlines()
    assert said.startswith(line.replace("HOST", os.uname().nodename)), finished.said
    assert "goes on" not in finished.stdout, finished.said


@pytest.mark.faults
@pytest.mark.parametrize(("rank", "more"), [(1, []), (0, ["train"])])
def test_a_program_that_fails_after_its_run(folder, rank, more):
    """Also while others begin the next one."""
    finished = run(launch("raise", str(rank), *more), folder, code=1)
    assert finished.stderr.count("\nAssertionError: after the run\n") == 1, finished.said
    early = f"psgc: the script of rank {rank} on {os.uname().nodename} ended before the others: "
    assert finished.stderr.count(early) == len(more), finished.said
    assert "execution.py" not in finished.stderr, finished.said
    assert json.loads((folder / "runs/program/summary.json").read_text())["status"] == "done"


def test_a_killed_worker_costs_nothing_but_the_next_run(folder):
    finished = run(launch("lose"), folder, code=0)
    assert "psgc.train: the run before has lost ranks, after which no other can begin" in finished.stdout
    assert finished.stdout.count("goes on") == 1, finished.said


@pytest.mark.faults
def test_when_rank_0_is_killed_another_rank_gets_the_run_and_goes_on(folder):
    finished = run(launch("succeed"), folder, code=0)
    assert finished.stdout.count("goes on") == 1, finished.said
    assert "rank 1 goes on" in finished.stdout


@pytest.mark.faults
def test_a_program_that_is_stopped_and_goes_on(folder):
    with MpiRun(launch("long", "1000"), folder) as running:
        wait_until(lambda: list(folder.glob("runs/program/checkpoints/*5*")))
        os.kill(running.process.pid, signal.SIGTERM)
        finished = running.wait(20, code=128 + signal.SIGTERM)
    on = "to resume from the last checkpoint: psgc launch program.py -n 4 --resume -- long 1000"
    assert finished.stderr == f"psgc launch: stopped by SIGTERM; {on}\n", finished.said
    assert "goes on" not in finished.stdout, finished.said
    summary = json.loads((folder / "runs/program/summary.json").read_text())
    assert summary["status"] == "interrupted"
    again = run(launch("long", str(summary["iterations"] + 20), options=["--resume"]), folder, code=0)
    assert "rank 0 goes on" in again.stdout, again.said
    assert "resum" in again.stdout + again.stderr, again.said


@pytest.mark.faults
def test_a_run_is_not_resumed_with_another_problem(folder):
    run(launch("of", "Ridge"), folder, code=0)
    refused = run(launch("of", "Lasso", options=["--resume"]), folder, code=2)
    assert refused.stderr.startswith(
        'psgc: problem: {"kind": "script", "script": "program.py", "of": "Lasso"} does not '
    )
    assert "nothing to do" in run(launch("of", "Ridge", options=["--resume"]), folder, code=0).stdout
