"""Whether `reproducible: true` gives the same bits, whoever computed and summed what: real runs, and a table of hashes.

    python scripts/check_bits.py --cost
    python scripts/check_bits.py [--quick] [--problem numpy|torch] [--dtype float32|float64] [--workers 2 3 5 8] ...

Each combination of workers, schedule, way to sum and fault is a run of its own under mpirun, on the same chunks. The
table has the SHA-256 of the final parameters for each problem and dtype: one, if all runs have the same bits. --quick
has a few of them. A fault is a worker that is killed, one that is stopped for longer than the timeout and is back, or
the death of rank 0 ("takeover"). The exit code is 1 when there are several hashes, or a run fails.

--cost has the seconds of an iteration with `reproducible: true` over those without it, and so the bytes in and out of
rank 0: 4 workers, in turns.
"""

import argparse
import csv
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from benching import python_path, train

from psgc.data import write_dense
from psgc.machine import THREADS

CHUNKS, ROWS = 120, 1200
WAYS: dict[str, dict[str, Any]] = {
    "per_chunk": {"transfer": "per_chunk", "aggregation": "server"},
    "combined": {"transfer": "combined", "aggregation": "server"},
    "allreduce": {"aggregation": "allreduce"},
}
SCHEDULES = ("uncoded", "skipping", "dynamic")
TIMEOUT = 1.0  # seconds until a stopped worker is lost
FAULTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "killed": {"kind": "kill", "rank": 1, "iteration": 2},
    "back": {"kind": "stop", "rank": 2, "iteration": 2, "seconds": 2.5 * TIMEOUT},
    "takeover": {"kind": "kill", "rank": 0, "iteration": 2, "step": "begin"},
}
COSTS: dict[str, dict[str, Any]] = {  # by what is said of it
    "8 chunks a worker": {"coding.chunks_per_worker": 8},
    "7 chunks a worker": {"coding.chunks_per_worker": 7},
    "8 chunks a worker, one is 5 times slower": {
        "coding.chunks_per_worker": 8,
        "stragglers": "{kind: slow, seconds: {all: 0.01, 1: 0.05}}",
    },
    "8 chunks a worker, which take no time": {"coding.chunks_per_worker": 8, "stragglers": "{kind: none}"},
}
COST_RUNS, COST_WORKERS = 3, 4  # of each kind
LARGE = {"problem": {"kind": "mlp", "hidden": 20_000}, "iterations": 12}  # 0.5 million parameters


@dataclass(frozen=True)
class Combination:
    """One run."""

    problem: str
    dtype: str
    workers: int
    schedule: str
    way: str
    fault: str

    def config(self) -> dict[str, Any]:
        """Its settings, beside data.npz."""
        fault, is_torch = FAULTS[self.fault], self.problem == "torch"
        settings: dict[str, Any] = {
            "problem": {"kind": "mlp", "hidden": 16},
            "data": {"path": "data.npz"},
            "optimizer": {"kind": "momentum", "lr": 0.5},
            "iterations": 10,
            "dtype": self.dtype,
            "coding": {"chunks_per_worker": CHUNKS // self.workers, "replication": 2},
        }
        if is_torch:
            settings = {
                "problem": {"torch": "check_bits:torch_problem", "options": {"dtype": self.dtype}},
                "optimizer": {"torch": "AdamW", "lr": 0.01},
                "batch": {"size": ROWS // 5, "epochs": 2},
                "coding": {"chunks": CHUNKS // 5, "replication": 2},
            }
        return settings | {
            **WAYS[self.way],
            "schedule": self.schedule,
            "reproducible": True,
            "stragglers": {"kind": "slow", "seconds": {"all": 0.002 if not is_torch else 0.01}},
            "faults": {"collect_timeout": TIMEOUT, "inject": [fault] if fault else []},
            "checkpoint": {"every": 0},
            "output": "run",
        }

    def prepare(self, folder: Path) -> Path:
        """A folder of its own for the run, which has its settings and the data that is in `folder`."""
        inside = folder / "-".join(map(str, (self.problem, self.dtype, self.workers, *self.names())))
        inside.mkdir()
        (inside / "data.npz").symlink_to(folder / "data.npz")
        (inside / "run.yaml").write_text(yaml.safe_dump(self.config()))
        return inside

    @property
    def command(self) -> list[str]:
        """That runs it, in its folder and with `python_path()`."""
        return [sys.executable, "-m", "psgc", "launch", "run.yaml", "-n", str(self.workers + 1), "--dedicated-server"]

    def run(self, folder: Path) -> tuple[str, bool]:
        """As `outcome`. Raises RuntimeError when it fails."""
        inside = self.prepare(folder)
        environment = {**dict.fromkeys(THREADS, "1"), **os.environ, **python_path()}
        done = subprocess.run(self.command, cwd=inside, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self}: {done.stderr.strip()}")
        return outcome(inside)

    def names(self) -> tuple[str, str, str]:
        return self.schedule, self.way, self.fault


def outcome(folder: Path) -> tuple[str, bool]:
    """Of the run in this folder: the hash of the parameters at the end, and whether a worker was lost."""
    lost = folder / "run" / "lost.csv"
    rows = [*csv.DictReader(lost.read_text().splitlines())] if lost.exists() else []
    return hashlib.sha256(np.load(folder / "run" / "params.npy").tobytes()).hexdigest(), bool(rows)


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, 20))
    write_dense(str(folder / "data.npz"), features, features[:, :4].argmax(axis=1).astype(float))


def cost(folder: Path) -> None:
    """Print the table of what it costs."""
    given = Combination("numpy", "float64", COST_WORKERS, "dynamic", "combined", "none").config() | LARGE
    given["stragglers"] = {"kind": "slow", "seconds": {"all": 0.01}}
    given["faults"] = {}
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    print("| 4 workers | way | seconds | bytes |\n|---|---|---|---|")
    for (said, settings), way in itertools.product(COSTS.items(), ("combined", "allreduce")):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        moved: dict[bool, list[float]] = {False: [], True: []}
        for number, is_so in itertools.product(range(COST_RUNS), (False, True)):
            changed = {**settings, **WAYS[way], "reproducible": str(is_so).lower(), "data.path": folder / "data.npz"}
            done = train(folder / "run.yaml", folder / f"{said}-{way}-{number}-{is_so}", changed, COST_WORKERS)
            if done is None:
                raise RuntimeError(f"{said}, {way}: the run failed")
            seconds[is_so].append(done.median("seconds", 3))
            moved[is_so].append(done.median("bytes", 3))
        ratios = (median(of[True]) / median(of[False]) for of in (seconds, moved))
        print(f"| {said} | {way} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


def torch_problem(dtype: str) -> tuple[Any, Any, Any]:
    """A model with dropout, examples, and the loss (`problem: {torch: ...}`)."""
    import torch
    import torch.nn.functional as F

    def loss(model: Any, batch: Any) -> tuple[Any, int]:
        features, labels = batch
        return F.cross_entropy(model(features), labels, reduction="sum"), len(labels)

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 8, generator=generator, dtype=getattr(torch, dtype))
    torch.manual_seed(3)
    layers = torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 3)
    return torch.nn.Sequential(*layers).to(x.dtype), torch.utils.data.TensorDataset(x, x[:, :3].argmax(1)), loss


def combinations(options: argparse.Namespace) -> Iterator[Combination]:
    """Those that are asked for."""
    everything = itertools.product(
        options.problem or ("numpy", "torch"),
        options.dtype or ("float64", "float32"),
        options.workers,
        options.schedule or SCHEDULES,
        WAYS,
        options.fault or FAULTS,
    )
    for number, one in enumerate(itertools.starmap(Combination, everything)):
        if not options.quick or (number % 7 == 0 and one.workers < 5):
            yield one


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python scripts/check_bits.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of the combinations")
    parser.add_argument("--cost", action="store_true", help="what it costs, in place of hashes")
    parser.add_argument("--problem", nargs="*", choices=["numpy", "torch"])
    parser.add_argument("--dtype", nargs="*", choices=["float32", "float64"])
    parser.add_argument("--schedule", nargs="*", choices=SCHEDULES)
    parser.add_argument("--fault", nargs="*", choices=FAULTS)
    parser.add_argument("--workers", nargs="*", type=int, default=[2, 3, 5, 8])
    options = parser.parse_args(arguments)
    found: dict[tuple[str, str], Counter[str]] = {}
    lost, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        if options.cost:
            cost(Path(folder))
            return 0
        for one in combinations(options):
            try:
                hashed, has_lost = one.run(Path(folder))
            except RuntimeError as error:
                failed[one.problem, one.dtype] += 1
                print(error, flush=True)
                continue
            found.setdefault((one.problem, one.dtype), Counter())[hashed] += 1
            lost[one.problem, one.dtype] += has_lost
            print(one.problem, one.dtype, one.workers, *one.names(), hashed[:16], "lost" * has_lost, flush=True)
    columns = ("problem", "dtype", "runs", "of them lost a worker", "failed", "SHA-256 of the parameters")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for key in dict.fromkeys([*found, *failed]):
        hashes = found.get(key, Counter())
        print(f"| {' | '.join(key)} | {hashes.total()} | {lost[key]} | {failed[key]} | {', '.join(hashes)} |")
    return int(any(failed.values()) or any(len(hashes) > 1 for hashes in found.values()))


if __name__ == "__main__":
    sys.exit(main())
