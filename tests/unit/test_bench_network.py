"""The table of scripts/bench_network.py, and what it has the ranks do."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.config import load
from psgc.data import Chunk
from psgc.errors import RunFailed

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import bench_network
import cpu_quotas
import network_ranks
import network_runs
from bench_network import Case
from network_runs import Measured

sys.path.pop(0)


def test_milliseconds_are_compared_with_the_better_allreduce_of_workers_of_whom_nobody_is_slow():
    quiet, slow, other = Case(100_000, "none"), Case(100_000, "link"), Case(100_000, "processor")
    rows = {
        (quiet, "mpi4py"): Measured(0.4),
        (quiet, "gloo"): Measured(0.2),
        (slow, "mpi4py"): Measured(0.5),
        (slow, "gloo"): Measured(0.1),
        (other, "mpi4py"): Measured(0.01),
        (other, "gloo"): Measured(0.02),
    }
    assert bench_network.table(rows).splitlines() == [
        "| d | workers | mpi4py `Allreduce` | gloo `all_reduce` |",
        "|---|---|---|---|",
        "| 100,000 | none slow | 400 ms (2.00) | 200 ms (1.00) |",
        "| 100,000 | one link at a fifth | 500 ms (2.50) | 100 ms (0.50) |",
        "| 100,000 | one processor at a fifth, chunks | 10 ms | 20 ms |",
    ]


def test_the_gradients_of_all_chunks_add_up_to_one():
    problem = network_ranks.Constant(3, 0.0, "")
    chunks = [Chunk(0, None, None, rows / 8) for rows in (3, 5)]
    rng = np.random.default_rng(0)
    total = sum(problem.gradient(np.zeros(3, np.float32), chunk, rng) for chunk in chunks)
    np.testing.assert_array_equal(total, np.ones(3, np.float32))
    assert total.dtype == np.float32


def test_psgc_runs_as_its_row_says_with_one_chunk_a_worker_unless_there_is_something_to_compute(tmp_path):
    for name, program in network_runs.PROGRAMS.items():
        if not program.library:
            network_runs.training(program.settings, {"seconds": 0.0}, 5, 9, 8, "a:9", tmp_path)
            words = [f"{key}={value}" for key, value in program.settings.items()]
            config = load(str(tmp_path / "run.yaml"), words)
            shown = "allreduce" if config.aggregation == "allreduce" else config.transfer
            assert name == f"{shown}-{config.coding.parts}"
            assert program.text == f"psgc, `{shown}`, parts {config.coding.parts}"

    for seconds, chunks in ((0.0, 1), (0.002, network_runs.CHUNKS)):
        work = {"dim": 7, "seconds": seconds, "groups": ""}
        command = network_runs.training({"coding.parts": 2}, work, 5, 9, 8, "server:1,a:8", tmp_path)
        config = json.loads((tmp_path / "run.yaml").read_text())
        assert config["coding"]["chunks_per_worker"] == chunks
        assert config["problem"]["options"] == work
        assert command[command.index("-n") :] == ["-n", "9", "--host", "server:1,a:8", "--set", "coding.parts=2"]


def test_a_wrong_sum_is_no_measurement():
    network_runs.check_params(np.full(3, -4, np.float32), 4)
    with pytest.raises(RunFailed, match="adds up wrongly: parameters -4"):
        network_runs.check_params(np.array([-4, -4, -3.99], np.float32), 4)


@pytest.mark.parametrize(
    ("file", "text", "folder", "settings"),
    [
        ("cpu/cpu.cfs_quota_us", "-1", "cpu", {"cpu.cfs_period_us": "25000", "cpu.cfs_quota_us": "5000"}),
        ("cgroup.subtree_control", "memory cpu io", "", {"cpu.max": "5000 25000"}),
    ],
)
def test_quotas_of_both_versions_of_cgroups(tmp_path, file, text, folder, settings):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    quotas = cpu_quotas.CpuQuotas("run", {}, tmp_path)
    assert quotas.folder == tmp_path / folder / "run"
    (group := quotas.folder / "a").mkdir(parents=True)
    quotas.change("a", 0.2)
    assert {path.name: path.read_text() for path in group.iterdir()} == settings
    quotas.change("a", 0.001)
    assert str(cpu_quotas.SMALLEST) in " ".join(path.read_text() for path in group.iterdir()).split()
