"""The command `psgc`: arguments, exit codes, one line for a mistake, and what it leaves unloaded until it is needed."""

import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from psgc.cli import main
from psgc.errors import RunFailed, UserError
from psgc.launching.mpirun import Placement
from psgc.launching.script import Program

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SUBMIT = ("submit", "run.yaml", "--nodes", "2", "--ranks-per-node", "3", "--time", "2:00:00")


def exit_code(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return 0 if caught.value.code is None else caught.value.code


@pytest.fixture
def launched(monkeypatch):
    """In the place of psgc.cli.launch.launch."""
    monkeypatch.setattr("psgc.cli.launch.launch", launch := Mock(return_value=0))
    return launch


@pytest.fixture
def trained(monkeypatch):
    """In the place of `train`, with the environment that it sees; signals and environment are put back."""

    def look(*_):
        train.environment = dict(os.environ)
        sys.exit(0)

    monkeypatch.setattr("psgc.run.session.train", train := Mock(side_effect=look))
    for name in (*THREADS, *LOCAL_SIZES, "SLURM_CPUS_ON_NODE"):
        monkeypatch.setenv(name, "")  # so that what psgc sets is taken back
        monkeypatch.delenv(name)
    before = {number: signal.getsignal(number) for number in STOPPERS}
    yield train
    for number, handler in before.items():
        signal.signal(number, handler)


# arguments


@pytest.mark.parametrize(
    "command", ["train", "launch", "sweep", "submit", "doctor", "report", "compare", "simulate", "replay", "order"]
)
def test_help(capsys, command):
    assert exit_code("--help") == 0
    assert f"\n    {command} " in capsys.readouterr().out
    assert exit_code(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: psgc {command} ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["launch", "run.yaml", "-n", "3", "--host", "a", "--hostfile", "b"], "not allowed with argument"),
        (["train", "run.yaml", "--", "--map-by", "core"], "unrecognized arguments"),
        (["launch", "run.yaml", "-n", "3", "--epochs", "4"], "unrecognized arguments: --epochs 4\n"),
        (
            ["launch", "a/train.py", "-n", "3", "--epochs", "4"],
            "unrecognized arguments: --epochs 4; those of a/train.py come after --, as in: -- --epochs 4\n",
        ),
        (["submit", "train.py", *SUBMIT[2:], "name=a b"], "come after --, as in: -- 'name=a b'\n"),
        (["launch", "run.yaml", "-n", "3", "--mpirun=-x 'a"], "--mpirun -x 'a: no closing quotation\n"),
        (["train", "train.py"], "train.py is a script, which is started with: psgc launch train.py -n RANKS, or: "),
    ],
)
def test_a_wrong_command_is_exit_2(capsys, arguments, said):
    assert exit_code(*arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


EMPTY = {"overrides": [], "for_mpirun": []}


@pytest.mark.parametrize(
    ("arguments", "program", "placement", "requeue"),
    [
        ("--set a.b=1 --set c=2 --debug --resume", {"overrides": ["a.b=1", "c=2"], "debug": True, "resume": True},
         Placement(9), None),
        ("--host a:5,b:4 --no-fault-tolerance", {}, Placement(9, "a:5,b:4", fault_tolerance=False), None),
        ("--requeue 60 --hostfile hosts", {}, Placement(9, hostfile="hosts"), 60.0),
        ("--resume -- --map-by core -x HF -- --help",
         {"resume": True, "for_mpirun": ["--map-by", "core", "-x", "HF", "--", "--help"]}, Placement(9), None),
        ("--", {}, Placement(9), None),
        ("--mpirun=--oversubscribe --mpirun=-q -- --map-by core",
         {"for_mpirun": ["--oversubscribe", "-q", "--map-by", "core"]}, Placement(9), None),
    ],
)  # fmt: skip
def test_launch_passes_on_its_arguments(launched, arguments, program, placement, requeue):
    assert exit_code("launch", "run.yaml", "-n", "9", *arguments.split()) == 0
    assert launched.call_args.args == (Program("run.yaml", **EMPTY | program), placement, requeue)
    own = ["--map-by", "-n", "--", "x"]  # what follows the dashes is a script's
    assert exit_code("launch", "train.py", "-n", "9", "--mpirun=--map-by core", "--", *own) == 0
    script = Program("train.py", [], own, for_mpirun=["--map-by", "core"])
    assert launched.call_args.args == (script, Placement(9), None)


# errors


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (5, 5, ""),
        (UserError("iterations: expected more"), 2, "psgc: iterations: expected more\n"),
        (RunFailed("it broke"), 1, "psgc: it broke\n"),
        (MemoryError("2 GiB"), 1, "psgc: not enough memory: MemoryError: 2 GiB\n"),
        (KeyboardInterrupt(), 130, "psgc: stopped by Ctrl-C\n"),
    ],
)
def test_exit_codes_and_one_line_on_stderr_below_the_traceback_with_debug(launched, capsys, end, code, said):
    launched.side_effect = [end]
    assert exit_code("launch", "run.yaml", "-n", "9") == code
    assert capsys.readouterr() == ("", said)
    launched.side_effect = [end]
    assert exit_code("launch", "run.yaml", "-n", "9", "--debug") == code
    err = capsys.readouterr().err
    assert err.endswith(said)
    assert err.startswith("Traceback (most recent call last):") == isinstance(end, Exception)


def test_a_defect_of_ours_is_not_hidden(launched):
    launched.side_effect = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        main(["launch", "run.yaml", "-n", "9"])


# train


def test_train_passes_on_what_it_was_given(trained):
    assert exit_code("train", "run.yaml", "--set", "seed=1", "--debug") == 0
    exit_code("train", "run.yaml", "--resume")
    first, second = (call.args for call in trained.call_args_list)
    assert first == ("run.yaml", ["seed=1"], True, [], False, None)
    assert second == ("run.yaml", [], False, [], True, None)


@pytest.mark.parametrize("number", STOPPERS)
def test_signals_are_noted_for_the_run_to_end_in_order(trained, number):
    exit_code("train", "run.yaml")
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert trained.call_args.args[3] == [number, number]


@pytest.mark.parametrize(
    ("environment", "cores", "bound_to", "threads"),
    [
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "9"}, 64, 64, 7),
        ({"MPI_LOCALNRANKS": "16"}, 64, 64, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "9"}, 2, 2, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 64, 1, 1),  # bound to one core
        ({}, 128, 4, 4),  # srun --cpus-per-task=4
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "nine"}, 8, 8, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "SLURM_CPUS_ON_NODE": "32"}, 128, 32, 4),  # a part of a node
    ],
)
def test_each_rank_takes_its_share_of_the_cores(trained, monkeypatch, environment, cores, bound_to, threads):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound_to)))
    exit_code("train", "run.yaml")
    assert [trained.environment[name] for name in THREADS] == [str(threads)] * 3


def test_threads_that_the_user_has_chosen_stay(trained, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "500")
    exit_code("train", "run.yaml")
    assert trained.environment["OMP_NUM_THREADS"] == "500"
    assert trained.environment["MKL_NUM_THREADS"] != "500"


# what is loaded when


def python(code):
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def test_nothing_that_reads_thread_limits_is_loaded_before_they_are_set():
    heavy = "{'numpy', 'scipy', 'mpi4py', 'psgc.run.session'}"
    assert python(f"import sys, psgc.cli; print(*({heavy} & set(sys.modules)))") == []


def test_nor_is_it_in_a_run_that_is_started_again():
    heavy = "{'numpy', 'scipy', 'mpi4py', 'psgc.run.session'}"
    code = f"""
import os, sys
from types import SimpleNamespace as Options
from psgc.cli import train
from psgc.run.launched import with_settings

os.environ |= with_settings("problem: {{kind: least_squares}}\\ncoding: {{assignment: cyclic}}\\n")
train.limit_threads = lambda: sys.exit(print("limits", *({heavy} & set(sys.modules))))
train.run(Options(config="run.yaml", overrides=[], check_gradient=False, debug=False, resume=True))
"""
    assert python(code) == ["limits"]


def test_to_import_the_training_is_not_to_start_mpi():
    assert python("import psgc.run.session; from mpi4py import MPI; print(MPI.Is_initialized())") == ["False"]
