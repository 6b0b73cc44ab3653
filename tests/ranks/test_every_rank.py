"""Every process is a worker, and the first one rank 0 as well: results, and who computes."""

import json
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import psgc, run, sets
from tests.ranks.test_torch import trained

PROCESSES, STEPS, CLOSE = 3, 12, 1e-12


@pytest.mark.parametrize(
    ("processes", "how"),
    [
        (3, "aggregation=server transfer=per_chunk"),
        (3, "aggregation=server transfer=combined coding.parts=2"),
        (3, "aggregation=allreduce"),
        (1, "coding.replication=1"),
    ],
)
def test_all_processes_compute_what_a_plain_loop_does(tmp_path: Path, processes: int, how: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.random((60, 5))
    write_dense(str(tmp_path / "data.npz"), X, X @ np.arange(5.0))
    (tmp_path / "run.yaml").write_text(
        "problem: {kind: least_squares}\ndata: {path: data.npz}\noptimizer: {kind: sgd, lr: 0.1}\n"
        f"iterations: {STEPS}\ncoding: {{chunks_per_worker: 2}}\nschedule: uncoded\noutput: out\n"
    )
    settings = sets(*how.split())
    run(psgc("launch", "run.yaml", "-n", str(processes), *settings), tmp_path, code=0)
    A, w = np.c_[X, np.ones(60)], np.zeros(6)
    for _ in range(STEPS):
        w -= 0.1 * A.T @ (A @ w - X @ np.arange(5.0)) / 60
    assert np.abs(np.load(tmp_path / "out/params.npy") - w).max() < CLOSE
    with np.load(tmp_path / "out/timeline.npz") as timeline:
        assert {*timeline["worker"].tolist()} == {*range(1, processes + 1)}
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["workers"] == processes
    assert summary["replicas"] == {"iteration": STEPS, "equal": [*range(1, processes + 1)]}


@pytest.mark.parametrize("how", [{"aggregation": "allreduce"}, {"transfer": "per_chunk"}])
def test_all_processes_compute_in_the_calls_of_a_script(tmp_path: Path, how: dict[str, str]) -> None:
    """The first one makes the calls of rank 0, too: its evaluation, its rows, its checkpoint."""
    alone, _ = trained(tmp_path, 0, reproducible=True)
    given = {"schedule": "uncoded", "output": "out", "reproducible": True, **how}
    ended, _ = trained(tmp_path, PROCESSES, **given)
    assert ended.keys() == {0, 1, 2}
    assert {digest for digest, *_ in ended.values()} == {alone[0][0]}
    with np.load(tmp_path / "out/timeline.npz") as timeline:
        assert {*timeline["worker"].tolist()} == {1, 2, 3}


def test_a_model_in_bfloat16_has_the_same_bits_with_two_and_with_eight_workers(tmp_path: Path) -> None:
    given = {"dtype": "bfloat16", "reproducible": True, "epochs": 1}
    found = [trained(tmp_path, ranks, **given)[0][0] for ranks in (2, 8)]
    assert found[0][0] == found[1][0]
