"""What the benchmarks that train have in common: runs of psgc under mpirun, emulated chunk times, the machine."""

import csv
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psgc import schedules
from psgc.launching.mpirun import Placement, find_mpirun, launch_command
from psgc.machine import usable_cores
from psgc.record.files import write_output_text

WORKERS, SLOW = 8, 3
OF_THE_PAPER = {"transfer": "per_chunk", "aggregation": "server"}  # rank 0 gets the gradient of each chunk
SCHEDULES = tuple(name for name, schedule in schedules.SCHEDULES.items() if schedule.tried_by_default)


@dataclass(frozen=True)
class Run:
    """What a run has left. rows: those of iterations.csv, numbers by column, nan where a column is empty;
    summary: summary.json, {} without one."""

    rows: list[dict[str, float]]
    summary: dict[str, Any]

    def seconds(self, first: int = 1) -> np.ndarray:
        """Of each iteration from `first` on; iteration 0 starts while the ranks are still being set up."""
        return np.array([row["seconds"] for row in self.rows[first:]])

    def median(self, column: str, first: int = 1) -> float:
        return statistics.median(row[column] for row in self.rows[first:])


def train(config: Path, output: Path, settings: Mapping[str, Any], workers: int = WORKERS) -> Run | None:
    """One run of psgc with a dedicated server and so many workers; None when it fails."""
    command = [sys.executable, "-m", "psgc", "launch", str(config), "-n", str(workers + 1), "--dedicated-server"]
    command += overrides({**settings, "output": output})
    done = subprocess.run(command, env=os.environ | python_path(), stdout=subprocess.DEVNULL)
    return read(output) if done.returncode == 0 else None


def train_with_allreduce(
    config: Path,
    output: Path,
    settings: Mapping[str, Any],
    workers: int = WORKERS,
    environment: Mapping[str, str] | None = None,
) -> Run | None:
    """One run of scripts/allreduce_loop.py on so many ranks; None when it ends early."""
    # on fewer cores than ranks nobody may spin while others have work to do
    environ = {"OMPI_MCA_mpi_yield_when_idle": "1"} | os.environ | (environment or {}) | python_path()
    arguments = [str(config), *overrides({**settings, "output": output})]
    command, additions = launch_command(
        Placement(workers, fault_tolerance=False), arguments, environ, module="allreduce_loop"
    )
    done = subprocess.run(command, env=environ | additions, capture_output=True, text=True)
    if done.returncode == 0:
        return read(output)
    print(done.stderr.partition("\n")[0], file=sys.stderr)
    return None


def python_path() -> dict[str, str]:
    """The environment variable with which ranks find what lies beside this file."""
    folders = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Arguments of psgc that change these settings."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def read(output: Path) -> Run:
    with (output / "iterations.csv").open() as text:
        rows = [{column: float(value or "nan") for column, value in row.items()} for row in csv.DictReader(text)]
    summary = output / "summary.json"
    return Run(rows, json.loads(summary.read_text()) if summary.exists() else {})


def equal(chunk: float) -> str:
    """The setting `stragglers` with which every chunk takes `chunk` seconds."""
    return f"{{kind: slow, seconds: {{all: {chunk}}}}}"


def one_slow(chunk: float, factor: float) -> str:
    """The same with one worker, of rank SLOW, that takes `factor` times as long."""
    return f"{{kind: slow, seconds: {{all: {chunk}, {SLOW}: {chunk * factor}}}}}"


def traced(trace: Path, chunk: float) -> tuple[str, np.ndarray]:
    """The same with recorded times, scaled so that a chunk takes `chunk` seconds in the median.

    Also these times, (rounds, WORKERS) seconds per chunk.
    """
    rounds = np.load(trace, allow_pickle=False).astype(float)[:, :WORKERS]
    scale = chunk / float(np.median(rounds))
    return f"{{kind: trace, path: {trace.resolve()}, scale: {scale}}}", scale * rounds


def publish(text: str, out: Path) -> None:
    """Write a table, below what ran where, to a file and to the screen."""
    text = f"{machine()}:\n\n    {shlex.join(['python', *sys.argv])}\n\n{text}"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_output_text(out, text)
    print(f"\n{text}")


def machine() -> str:
    """Cores, processor, MPI and Python, in words."""
    mpi = find_mpirun(os.environ)
    return f"{usable_cores()} cores ({_processor()}), {mpi.family} {mpi.version}, Python {platform.python_version()}"


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    lines: Sequence[str] = cpuinfo.read_text().splitlines() if cpuinfo.exists() else ()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
