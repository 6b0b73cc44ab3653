"""The table of scripts/bench_torch.py, what it trains, and how it slows processes down without quotas."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import bench_torch
import torch_tasks
from bench_torch import DDP, NOT_INSTALLED, PSGC, SETTINGS, TORCHFT, Row
from stop_and_go import StopAndGo

from psgc.data.epochs import rows_of
from psgc.errors import RunFailed

sys.path.pop(0)


def test_the_table_is_relative_to_ddp_with_nobody_slow():
    rows = {
        ("perceptron", DDP): Row(0.2, (2.0, 1.0)),
        ("perceptron", PSGC): Row(0.21, (2.0, 1.00001)),
        ("perceptron-slow", DDP): Row(1.0, (2.0,)),
        ("perceptron-killed", DDP): Row("ends"),
        ("defaults", TORCHFT): Row(NOT_INSTALLED),
        ("transformer", PSGC): Row(0.5, (3.0,)),
        ("small", DDP): Row(0.002, (3.0,)),
        ("small-workers", PSGC): Row(0.003, (3.0,)),
    }
    assert [bench_torch.line(rows, *key) for key in rows] == [
        "| perceptron, none slow | DDP, gloo | 200 ms | 1.00 | 1.00000 |",
        "| perceptron, none slow | psgc | 210 ms | 1.05 | 1.00001 |",
        "| perceptron, one 5 x slower | DDP, gloo | 1000 ms | 5.00 | 2.00000 |",
        "| perceptron, one killed | DDP, gloo | ends |  |  |",
        "| defaults, none slow | torchft, gloo | not installed: pip install torchft==0.2.0 |  |  |",
        "| transformer, none slow | psgc | 500 ms |  | 3.00000 |",
        "| small, one process | torch | 2 ms | 1.00 | 3.00000 |",
        "| small, 4 workers | psgc | 3 ms | 1.50 | 3.00000 |",
    ]
    assert "slow processors: CPU quotas." in bench_torch.report(rows, "CPU quotas")


@pytest.mark.parametrize("loss", [1.0002, float("nan")])
@pytest.mark.parametrize(
    ("name", "program"), [("perceptron", PSGC), ("perceptron", TORCHFT), ("perceptron-killed", PSGC)]
)
def test_a_loss_that_differs_is_named_with_its_step(name, program, loss):
    rows = {("perceptron", DDP): Row(0.2, (2.0, 1.0, 0.5)), ("perceptron", PSGC): Row(0.2, (2.0, 1.00009))}
    assert bench_torch.disagreeing(rows) == ""
    rows |= {
        (name, DDP): Row("ends") if name != "perceptron" else Row(0.2, (2.0, 1.0)),
        (name, program): Row(0.2, (2.0, loss)),
    }
    assert bench_torch.disagreeing(rows) == f"{SETTINGS[name].text}, step 1: 1.0 (DDP, gloo), {loss!r} ({program})"


def test_where_torchft_is_not_installed_its_row_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    row = bench_torch.measure(SETTINGS["perceptron"], TORCHFT, 4, 64, quotas=False)
    assert row == Row("not installed: pip install torchft==0.2.0")


def test_a_run_that_hangs_after_a_failure_is_ended(monkeypatch):
    commands = ["import sys; sys.exit(3)", "import time; time.sleep(60)"]
    processes = [subprocess.Popen([sys.executable, "-c", command]) for command in commands]
    monkeypatch.setattr(bench_torch, "AFTER_FAILURE", 0.3)
    assert bench_torch.wait(processes) == [3, -15]
    monkeypatch.setattr(bench_torch, "LIMIT", 0.3)
    hanging = subprocess.Popen([sys.executable, "-c", commands[1]])
    try:
        with pytest.raises(RunFailed, match="more than 0"):
            bench_torch.wait([hanging])
    finally:
        bench_torch.kill_all([hanging])
    assert hanging.returncode == -15


# what is trained


def test_the_perceptron():
    task = torch_tasks.perceptron(1, 64)
    assert sum(param.numel() for param in task.model.parameters()) == 669_706
    total, count = task.loss(task.model, task.collate(list(range(8))))
    assert (count, task.count(range(8))) == (8, 8)
    assert 10 < float(total.detach()) < 30


def test_padding_and_micro_batches_do_not_change_the_transformers_loss(monkeypatch):
    monkeypatch.setattr(torch_tasks, "functions", lambda number: ["def f(): pass\n" * 5, "x = 1\n", "äb" * 2000, "y"])
    task = torch_tasks.transformer(1)
    rows = range(4)
    with torch.no_grad():
        together = task.loss(task.model, task.collate([task.dataset[row] for row in rows]))
        alone = [task.loss(task.model, task.collate([task.dataset[row]])) for row in rows]
    assert together[1] == sum(count for _, count in alone) == task.count(rows) == 70 + 6 + 2048 + 1
    assert float(together[0]) == pytest.approx(sum(float(total) for total, _ in alone), rel=1e-5)


# turns


def state_of(process):
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_is_stopped_for_the_rest_of_the_time_and_nobody_stays_stopped():
    ended = subprocess.Popen(["true"])  # which is left alone
    ended.wait()
    with StopAndGo({"a": 0.2, "b": 0.5}) as groups:
        (groups.folder / "b/cgroup.procs").write_text(str(ended.pid))
        sleeper = subprocess.Popen(["sleep", "60"])
        (groups.folder / "a/cgroup.procs").write_text(str(sleeper.pid))
        for _ in range(3):  # on a busy machine turns may be late
            states = []
            for _ in range(60):
                time.sleep(0.01)
                states.append(state_of(sleeper))
            if 24 <= states.count("T") < 60:
                break
    try:
        assert state_of(sleeper) != "T"
    finally:
        sleeper.kill()
        sleeper.wait()
    assert 24 <= states.count("T") < 60
    assert not groups.folder.exists()


def test_without_torch_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["bench_torch.py"])
    assert bench_torch.main() == 2
    assert capsys.readouterr().err == "bench_torch: PyTorch is not installed: pip install '.[torch]'\n"


@pytest.mark.faults
def test_two_ranks_of_ddp(tmp_path, monkeypatch):
    """A real run of the side that psgc is compared with: its loss is that of one process over the same examples."""
    monkeypatch.setitem(os.environ, "PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    setting = bench_torch.Setting("perceptron", "", None, workers=2)
    row = bench_torch.measure(setting, DDP, bench_torch.WARM + 1, 64, quotas=False)
    assert len(row.losses) == bench_torch.WARM + 1
    task = torch_tasks.perceptron(1, 64)
    optimizer, size = task.optimizer(task.model.parameters()), task.batch
    for step, expected in enumerate(row.losses[:2]):
        rows = rows_of(0, 0, len(task.dataset), step * size, (step + 1) * size).tolist()
        total, count = task.loss(task.model, task.collate(rows))
        assert expected == pytest.approx(float(total.detach()) / count, rel=1e-5)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
