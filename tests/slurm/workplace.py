"""A run in its own folder whose speed the tests control, and the jobs that run it."""

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
ITERATIONS = 150
# mpirun itself fails in about one start of 170, with exit code 213 and this text. Such a job is started once more.
FAILED_START = "listener thread failed to start"
MODEL = """\
import os, pathlib, time
import numpy as np

class Model:
    dim = 6

    def initial_params(self):
        return np.zeros(6)

    def gradient(self, params, chunk, rng):
        rank, restarts = (os.environ.get(name, "0") for name in ("OMPI_COMM_WORLD_RANK", "SLURM_RESTART_COUNT"))
        where = pathlib.Path("where", rank)
        if not where.exists():
            names = ("SLURMD_NODENAME", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            where.write_text(" ".join([*(os.environ[name] for name in names), str(os.getpid())]))
        if pathlib.Path("slow").exists():
            time.sleep(0.1)
        return chunk.weight * (params - np.cos(chunk.index + np.arange(6)))
"""
RUN = {
    "problem": {"python": "model:Model"},
    "optimizer": {"kind": "adam", "lr": 0.05},
    "iterations": ITERATIONS,
    "coding": {"chunks_per_worker": 4, "replication": 2},
    "transfer": "per_chunk",
    "checkpoint": {"every": 3},
    "dedicated_server": True,
    "output": "out",
}


class Workplace:
    """A folder with run.yaml for jobs. While `slow` lies there, an iteration takes 0.4 s, else very little."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.started_again: set[str] = set()  # jobs
        (folder / "model.py").write_text(MODEL)
        (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
        (folder / "where").mkdir()

    def psgc_submit(
        self, *arguments: str, nodes: int = 2, program: str = "run.yaml"
    ) -> subprocess.CompletedProcess[str]:
        """Two ranks on each node."""
        command = [sys.executable, "-m", "psgc", "submit", program, "--nodes", str(nodes), "--ranks-per-node", "2"]
        environ = {"PYTHONPATH": str(ROOT), "OMPI_MCA_btl_tcp_if_include": "lo"}
        arguments = ("--time", "10:00", *arguments)
        return self.cluster.client(*command, *arguments, cwd=self.folder, env=environ)

    def submit(self, *arguments: str, nodes: int = 2, slow: bool = False, program: str = "run.yaml") -> str:
        """The number of a new job."""
        if slow:
            (self.folder / "slow").touch()
        finished = self.psgc_submit("--go", *arguments, nodes=nodes, program=program)
        assert finished.returncode == 0, finished.stderr
        return re.match(r"job (\d+):", finished.stdout)[1]

    def hurry(self) -> None:
        (self.folder / "slow").unlink()

    def end(self, job: str, state: str = "COMPLETED", restarts: int = 0, log: str | None = None) -> str:
        """Wait for the end of a job, and check how it ended. Returns its log."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        found = self.cluster.wait_for(job, ends, 90)
        if self._start_again():
            found = self.cluster.wait_for(job, ends, 90)
        said = (self.folder / (log or f"run-{job}.log")).read_text()
        assert (found["JobState"], self.restarts(job)) == (state, restarts), f"{found}\n{said}"
        return said

    def restarts(self, job: str) -> int:
        """How often the job was put back into the queue, without what `_start_again` did."""
        return int(self.cluster.job(job)["Restarts"]) - (job in self.started_again)

    def _start_again(self) -> bool:
        """Requeue each job that mpirun failed to start, once. Whether there was one."""
        failed = [
            job
            for log in self.folder.glob("run-*.log")
            if (job := log.stem.removeprefix("run-")) not in self.started_again
            and FAILED_START in log.read_text()
            and self.cluster.job(job)["JobState"] == "FAILED"
        ]
        for job in failed:
            self.started_again.add(job)
            self.cluster.client("scontrol", "requeue", job)
            self.cluster.wait_for(job, ("RUNNING",), 60)
        return bool(failed)

    def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._start_again()
            logs = [path.read_text() for path in self.folder.glob("*.log")]
            assert time.monotonic() < deadline, "\n".join(["waited in vain", *logs, self.cluster.logs()])
            time.sleep(0.1)

    def checkpoints(self, output: str = "out") -> list[int]:
        """Their iterations, rising."""
        return sorted(int(path.name.split("-")[0]) for path in (self.folder / output).glob("checkpoints/*.safetensors"))

    def params(self, output: str = "out") -> bytes:
        return (self.folder / output / "params.npy").read_bytes()

    def summary(self, output: str = "out") -> dict[str, object]:
        return json.loads((self.folder / output / "summary.json").read_text())

    def iterations(self, output: str = "out") -> list[int]:
        """What iterations.csv has rows of."""
        with (self.folder / output / "iterations.csv").open(newline="") as stream:
            return [int(row["iteration"]) for row in csv.DictReader(stream)]

    def pid(self, rank: int) -> int:
        """Of a worker that has begun."""
        path = self.folder / "where" / str(rank)
        self.until(lambda: path.exists() and path.read_text())
        return int(path.read_text().split()[-1])
