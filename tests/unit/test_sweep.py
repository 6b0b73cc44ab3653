"""`psgc sweep`: which runs it makes, what it does when one fails or it is stopped, and what it refuses. No mpirun."""

import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from psgc.config import load
from psgc.errors import UserError
from psgc.launching.mpirun import Placement
from tests.unit.recorded_runs import record

RUN = """\
problem: {kind: logistic}
data: {path: train.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 3
coding: {replication: 2, chunks_per_worker: 2}
output: runs/a
"""
LR = ("run.yaml", "-n", "3", "--set", "optimizer.lr=0.1,0.3")


class Launch:
    """Takes the place of psgc.launching.launch.launch: leaves a run directory of `ends`, by number of the run."""

    def __init__(self):
        self.calls, self.ends = [], {}

    def __call__(self, program, placement, *, heard, hints):
        assert (program.path, hints) == ("run.yaml", False)
        config = load(program.path, program.overrides)
        self.calls.append((config, placement, program))
        end = self.ends.get(len(self.calls), 0)
        if isinstance(end, BaseException):
            raise end
        if end > 128:
            heard.stopped_by = signal.Signals(end - 128)
        elif end == 0:
            if not Path(config.output).exists():
                record(Path(config.output), workers=placement.ranks, chunks_per_worker=2, iterations=3)
            Path(config.output, "config.yaml").write_text(config.to_yaml())
        return end


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    Path("train.npz").touch()
    fake = Launch()
    monkeypatch.setattr("psgc.cli.sweep.launch", fake)
    return fake


@pytest.fixture
def sweep(launch, psgc_command):
    return partial(psgc_command, "sweep")


def test_every_combination_is_a_run_and_the_table_comes_last(sweep, launch):
    given = ["--set", "coding.replication=1,2", "--set", "stragglers={kind: slow, factor: {1: 2, 2: 3}}"]
    code, out, err = sweep(*LR, *given, "--no-fault-tolerance", "--", "--map-by", "core")
    assert (code, err) == (0, "")
    configs = [config for config, _, _ in launch.calls]
    assert [(c.optimizer.lr, c.coding.replication) for c in configs] == [(0.1, 1), (0.1, 2), (0.3, 1), (0.3, 2)]
    assert configs[1].output == "runs/a/1_optimizer.lr=0.1_coding.replication=2"
    assert {c.stragglers.factor[2] for c in configs} == {3}
    for _, placement, program in launch.calls:
        assert placement == Placement(3, fault_tolerance=False)
        assert (program.for_mpirun, program.resume) == (["--map-by", "core"], False)
    assert f"run 2 of 4: optimizer.lr=0.1 coding.replication=2, in {configs[1].output}\n" in out
    table = out.partition("\n\n")[2].splitlines()
    assert table[0] == "in runs/a/"
    assert table[2].split()[:4] == ["run", "lr", "replication", "status"]
    assert len(table) == 9
    assert table[-1] == "the runs are in runs/a; psgc report RUN_DIR says more about one"


def test_a_failed_run_does_not_end_the_sweep(sweep, launch, monkeypatch):
    monkeypatch.setenv("HERE", "runs")
    launch.ends = {1: 1}
    code, out, err = sweep(*LR, "--set", "output=$HERE/a")
    assert code == 1
    assert len(launch.calls) == 2
    first, missing, last = err.splitlines()
    assert first == "psgc sweep: run 1 of 2: optimizer.lr=0.1 failed"
    assert missing.startswith("psgc compare: runs/a/0_optimizer.lr=0.1: no such directory")
    again = "psgc sweep run.yaml -n 3 --set optimizer.lr=0.1,0.3 --set 'output=$HERE/a' --resume"
    assert last == f"psgc sweep: 1 of 2 runs failed; to go on with them: {again}"
    assert "runs/a/1_optimizer.lr=0.3" in out.splitlines()[-3]


def test_runs_of_which_none_has_a_directory_have_no_table(sweep, launch):
    launch.ends = {1: 2, 2: 2}
    code, out, err = sweep(*LR)
    again = "psgc sweep run.yaml -n 3 --set optimizer.lr=0.1,0.3 --resume"
    assert (code, err.splitlines()[2:]) == (1, [f"psgc sweep: 2 of 2 runs failed; to go on with them: {again}"])
    assert [line.partition(":")[0] for line in out.splitlines()] == ["run 1 of 2", "run 2 of 2"]


def test_a_run_that_cannot_start_does_not_end_the_sweep(sweep, launch):
    launch.ends = {2: UserError("mpirun --version: no answer in 20 s, expected a working MPI")}
    code, out, err = sweep("run.yaml", "-n", "3", "--set", "optimizer.lr=0.1,0.3,0.9")
    assert (code, len(launch.calls)) == (1, 3)
    lines = err.splitlines()
    assert lines[0] == "psgc: mpirun --version: no answer in 20 s, expected a working MPI"
    assert lines[1] == "psgc sweep: run 2 of 3: optimizer.lr=0.3 failed"
    assert lines[-1].startswith("psgc sweep: 1 of 3 runs failed; to go on with them: ")
    assert "runs/a/2_optimizer.lr=0.9" in out


def test_what_keeps_the_first_run_from_starting_ends_the_sweep_at_once(sweep, launch):
    """There is no mpirun, for example."""
    launch.ends = dict.fromkeys((1, 2), UserError("no mpirun on the PATH"))
    code, _, err = sweep(*LR)
    assert (code, err, len(launch.calls)) == (2, "psgc: no mpirun on the PATH\n", 1)


@pytest.mark.parametrize("end", [130, KeyboardInterrupt()])
def test_ctrl_c_ends_the_whole_and_says_how_to_go_on(sweep, launch, end):
    launch.ends = {1: end}
    code, _, err = sweep(*LR, "--", "-q")
    assert (code, len(launch.calls)) == (130, 1)
    again = "psgc sweep run.yaml -n 3 --set optimizer.lr=0.1,0.3 --resume -- -q"
    assert err == f"psgc sweep: stopped by Ctrl-C (SIGINT) in run 1 of 2; to go on: {again}\n"


def test_resume_leaves_out_what_is_done(sweep, launch):
    launch.ends = {2: 1}
    sweep(*LR)
    launch.calls, launch.ends = [], {}
    code, out, _ = sweep(*LR, "--resume")
    assert code == 0
    assert out.startswith("run 1 of 2: optimizer.lr=0.1: done already, runs/a/0_optimizer.lr=0.1\n")
    ((config, _, program),) = launch.calls
    assert (config.optimizer.lr, program.resume) == (0.3, True)
    sweep(*LR, "--resume", "--set", "iterations=9")  # longer than they were
    assert len(launch.calls) == 3


def test_resume_makes_runs_longer_that_were_to_have_fewer_epochs(sweep, launch):
    Path("run.yaml").write_text(RUN.replace("iterations: 3\n", "batch: {size: 4, epochs: 1}\n"))
    sweep(*LR)
    assert sweep(*LR, "--resume")[1].count("done already") == len(launch.calls) == 2
    _, out, _ = sweep(*LR, "--resume", "--set", "batch.epochs=2")
    assert [config.batch.epochs for config, _, _ in launch.calls] == [1, 1, 2, 2]
    assert "done already" not in out


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("seed=3", "seed"),
        ("optimizer.weight_decay=0.1", "optimizer.weight_decay"),
        ("dtype=float32", "dtype"),
        ("recovery={mode: approximate, max_error: 0.3, deadline: 0.1}", "recovery.mode"),
        ("iterations=2", "number of iterations"),
        ("batch=8", "batch"),
    ],
)
@pytest.mark.parametrize("is_done", [True, False])
def test_resume_makes_runs_again_that_were_made_with_other_settings(sweep, launch, setting, key, is_done):
    sweep(*LR)
    if not is_done:
        for summary in Path("runs/a").glob("*/summary.json"):
            summary.unlink()
    _, out, _ = sweep(*LR, "--resume", "--set", setting)
    assert out.startswith(f"run 1 of 2: optimizer.lr=0.1: runs/a/0_optimizer.lr=0.1 was made with another {key}; it is")
    assert [program.resume for _, _, program in launch.calls] == [False] * 4
    if is_done:
        assert sweep(*LR, "--resume", "--set", setting, "--set", "schedule=uncoded")[1].count("done already") == 2


def test_a_run_that_goes_on_may_find_its_data_elsewhere(sweep, launch):
    """In another job $TMPDIR is another directory."""
    sweep(*LR)
    for summary in Path("runs/a").glob("*/summary.json"):
        summary.unlink()
    Path("copy.npz").touch()
    sweep(*LR, "--resume", "--set", "data.path=copy.npz")
    assert [program.resume for _, _, program in launch.calls] == [False, False, True, True]


@pytest.mark.parametrize("key", ["batch=4", "reproducible=true"])
def test_resume_makes_runs_again_whose_rows_or_bits_would_be_others_with_so_many_chunks(sweep, launch, key):
    given = ("run.yaml", "--set", "optimizer.lr=0.1,0.3", "--set", key, "--set")
    sweep(*given, "coding={chunks_per_worker: 2}", "-n", "3")
    for number, *same in ((2, "3"), (1, "6"), (2, "4", "--dedicated-server")):
        again = f"coding={{chunks_per_worker: {number}}}", "-n", *same, "--set", "schedule=uncoded"
        assert sweep(*given, *again, "--resume")[1].count("done already") == 2
    for number, workers in ((1, "3"), (2, "4")):
        _, out, _ = sweep(*given, f"coding={{chunks_per_worker: {number}}}", "-n", workers, "--resume")
        assert out.count("was made with another number of chunks; it is made again") == 2


def test_resume_makes_runs_again_whose_assignment_has_other_chunks_now(sweep, launch):
    given = (*LR, "--set", "batch=4", "--set", "coding={assignment: {kind: file, path: a.npy}}", "--resume")
    for chunks, done in ((6, 0), (6, 2), (9, 0)):
        np.save("a.npy", np.ones((chunks, 3)))
        assert sweep(*given)[1].count("done already") == done


def test_the_exact_gradient_of_all_rows_is_that_of_any_number_of_workers(sweep, launch):
    given = ("run.yaml", "--set", "optimizer.lr=0.1,0.3")
    sweep(*given, "-n", "3")
    assert sweep(*given, "-n", "4", "--resume")[1].count("done already") == 2


def test_resume_makes_torch_runs_again_whose_chunks_would_draw_other_random_numbers(sweep, launch):
    Path("net.py").touch()
    torch = "problem: {torch: 'net:build'}\noptimizer: {torch: SGD, lr: 0.1}\nbatch: {size: 4, epochs: 1}\n"
    Path("run.yaml").write_text(f"{torch}output: runs/a\n")
    sweep(*LR)
    assert sweep(*LR, "--resume", "--set", "coding.replication=2")[1].count("done already") == len(launch.calls) == 2
    _, out, _ = sweep(*LR, "--resume", "--set", "coding.chunks=12")
    assert out.count("was made with another coding.chunks; it is made again") == 2


def test_a_key_that_only_the_varied_settings_give_or_correct(sweep, launch):
    """What counts are the settings of the runs, not those of the YAML alone."""
    Path("run.yaml").write_text(RUN.replace("optimizer: {kind: sgd, lr: 0.1}", "optimizer: {kind: sgd}"))
    assert sweep(*LR)[0] == 0
    Path("run.yaml").write_text(RUN.replace("replication: 2", "parts: 3, replication: 2"))
    assert sweep("run.yaml", "-n", "4", "--set", "coding.parts=1,2")[0] == 0
    assert len(launch.calls) == 4


def test_a_setting_of_all_runs_that_a_value_would_replace_is_refused(sweep, launch):
    values = "optimizer={kind: sgd, lr: 0.1},{kind: adam, lr: 0.001}"
    code, _, err = sweep("run.yaml", "-n", "3", "--set", "optimizer.clip_norm=1.0", "--set", values)
    assert (code, launch.calls) == (2, [])
    assert err == (
        f"psgc: --set {values}: optimizer: each value replaces optimizer.clip_norm as well; "
        "write that into each value\n"
    )


@pytest.mark.parametrize("place", [1, 2])
def test_a_signal_that_comes_when_a_run_is_done_stops_those_that_are_to_come(sweep, launch, monkeypatch, place):
    def launched(*arguments, heard, **named):
        code = launch(*arguments, heard=heard, **named)
        heard.stopped_by = signal.SIGTERM if len(launch.calls) == place else None
        return code

    monkeypatch.setattr("psgc.cli.sweep.launch", launched)
    code, out, err = sweep(*LR)
    assert len(launch.calls) == place
    if place == 2:  # there are none
        assert (code, err) == (0, "")
        assert "the runs are in runs/a" in out
    else:
        assert code == 143
        assert err.startswith("psgc sweep: stopped by SIGTERM in run 1 of 2; to go on: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["t.py", "-n", "3", "--set", "a=1,2"], "sweep: for runs of a YAML file, t.py is a script"),
        (["run.yaml", "-n", "3", "--set", "seed=1"], "--set: expected one with several values, such as "),
        (["run.yaml", "-n", "3", "--set", "log=[1, 2]"], "--set: expected one with several values, such as "),
        ([*LR, "--set", "optimizer.lr=1,2"], "--set optimizer.lr=1,2: optimizer.lr: given twice"),
        ([*LR, "--set", "output=a,b"], "--set output=a,b: output: each run of a sweep has its own"),
        ([*LR, "--set", "seed=1,x"], "--set seed=x: expected a whole number"),
        ([*LR, "--set", "seed=1,,2"], "--set seed=1,,2: expected a whole number"),
        ([*LR, "--set", "coding.replication=2,4"], "optimizer.lr=0.1 coding.replication=4 output=runs/a/1_"),
        ([*LR, "--set", "data.path=nowhere"], "optimizer.lr=0.1 output=runs/a/0_optimizer.lr=0.1: data.path: no"),
        (["run.yaml", "-n", "0", "--set", "seed=1,2"], "-n 0: expected a whole number >= 1"),
        ([*LR, "--", "-np", "4"], "-np: the number of ranks cannot be given among mpirun's own options"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_first_run(sweep, launch, arguments, said):
    code, out, err = sweep(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"psgc: {said}")
    assert launch.calls == []
