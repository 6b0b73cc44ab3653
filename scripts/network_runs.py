"""One run for scripts/bench_network.py: a program that adds up vectors, on hosts of given links and processors."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benching import overrides, python_path, read
from cpu_quotas import CpuQuotas
from hosts import Hosts
from network_ranks import TOLERANCE

from psgc.data import write_dense
from psgc.errors import RunFailed
from psgc.launching.mpirun import Placement, launch_command
from psgc.machine import THREADS, usable_cores

MEGABITS = 200.0  # per second, of a link in each direction
FIFTH = 0.2  # what a slow worker has of that, or of its processor time
CHUNKS, CHUNK_SECONDS = 8, 0.01  # of a worker, where there is something to compute
FOR_WORKERS = 0.8  # of the cores, where workers have quotas; the rest is the server's
SERVER, SLOW = "server", "worker2"
LIMIT = 300  # seconds that a run may take
OUTPUT = "out"
FOREIGN = ("PMIX_", "PRTE_", "OMPI_COMM", "SLURM_")  # variables of an mpirun or job around this one


@dataclass(frozen=True)
class Program:
    """text: as in the table; library: what the loop of network_ranks.py calls; steps: whether it makes a step as well.
    Without a library it is psgc with these settings, and across links with a dedicated server."""

    text: str
    library: str = ""
    steps: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def _psgc(parts: int, aggregation: str) -> Program:
    shown = "combined" if aggregation == "server" else aggregation
    settings = {"aggregation": aggregation, "transfer": "combined", "coding.parts": parts}
    return Program(f"psgc, `{shown}`, parts {parts}", settings=settings)


PROGRAMS = {
    "mpi4py": Program("mpi4py `Allreduce`", "mpi4py"),
    "mpi4py-step": Program("mpi4py `Allreduce`, then a step", "mpi4py", steps=True),
    "gloo": Program("gloo `all_reduce`", "gloo"),
    "combined-1": _psgc(1, "server"),
    "combined-2": _psgc(2, "server"),
    "allreduce-1": _psgc(1, "allreduce"),
    "allreduce-2": _psgc(2, "allreduce"),
}


@dataclass(frozen=True)
class Situation:
    """text: as in the table; undisturbed: the key of the same situation with nobody slow; workers: how many.

    hosts: on which they are, the server with the first ones; 0: everybody has a host of its own.
    """

    text: str
    undisturbed: str = "none"
    computes: bool = False
    slow_link: bool = False
    slow_processor: bool = False
    hosts: int = 0
    workers: int = 8

    @property
    def one_host(self) -> bool:
        """Whether nothing crosses a link."""
        return self.hosts == 1

    def places(self, with_server: bool) -> dict[str, int]:
        """By host how many ranks it has, in their order."""
        if not self.hosts:
            return ({SERVER: 1} if with_server else {}) | {f"worker{n}": 1 for n in range(1, self.workers + 1)}
        places = {f"host{n}": self.workers // self.hosts for n in range(1, self.hosts + 1)}
        places["host1"] += with_server
        return places


SITUATIONS = {
    "none": Situation("none slow"),
    "link": Situation("one link at a fifth", slow_link=True),
    "chunks": Situation("none slow, chunks", "chunks", computes=True),
    "processor": Situation("one processor at a fifth, chunks", "chunks", computes=True, slow_processor=True),
    "4x2": Situation("4 hosts of 2", "4x2", hosts=4),
    "2x4": Situation("2 hosts of 4", "2x4", hosts=2),
    "memory": Situation("4 on one host", "memory", hosts=1, workers=4),
    "memory8": Situation("8 on one host", "memory8", hosts=1),
}


@dataclass(frozen=True)
class Measured:
    """seconds: median of the iterations; busiest, mean: bytes per iteration of the hosts' links, 0 for one host."""

    seconds: float
    busiest: float = 0.0
    mean: float = 0.0


def measure(program: Program, situation: Situation, dim: int, iterations: int) -> Measured:
    """One run, on hosts that exist for it alone. The first iteration comes on top and does not count.

    Raises UserError: no such hosts, links or quotas here; RunFailed: the run takes more than LIMIT seconds, ends with
    an error, or adds up wrongly.
    """
    placed = situation.places(with_server=not program.library and not situation.one_host)
    workers, ranks = [name for name in placed if name != SERVER], sum(placed.values())
    work = {"dim": dim, "seconds": 0.0, "groups": ""}
    with ExitStack() as stack:
        if situation.computes:
            shares = processors(workers, situation.slow_processor, usable_cores())
            quotas = stack.enter_context(CpuQuotas(f"psgc-bench-{os.getpid()}", shares))
            work |= {"seconds": max(shares.values()) * CHUNK_SECONDS, "groups": str(quotas.folder)}
        hosts = stack.enter_context(Hosts(*placed))
        if not situation.one_host:
            for name, megabits in links([*placed], situation.slow_link).items():
                hosts.limit(name, megabits)
        places = ",".join(f"{name}:{count}" for name, count in placed.items())
        environ = environment(hosts)
        folder = Path(hosts.folder, "run")
        folder.mkdir()
        if program.library:
            command, additions = loop(program, work, iterations + 1, ranks, places, environ, folder)
        else:
            about = iterations + 1, ranks, situation.workers, places, folder
            command, additions = training(program.settings, work, *about), {}
        run_on(hosts, command, environ | additions, folder)
        carried = list(hosts.link_bytes().values())
        run = read(folder / OUTPUT)
        if not program.library:
            check_params(np.load(folder / OUTPUT / "params.npy"), iterations + 1)
    if situation.one_host:
        return Measured(run.median("seconds"))
    return Measured(run.median("seconds"), max(carried) / len(run.rows), sum(carried) / len(carried) / len(run.rows))


def links(names: Sequence[str], slow: bool) -> dict[str, float]:
    """Mbit/s of each host's link; slow: whether that of SLOW has a fifth."""
    return {name: MEGABITS * (FIFTH if slow and name == SLOW else 1) for name in names}


def processors(workers: Sequence[str], slow: bool, cores: int) -> dict[str, float]:
    """Each worker's share of a core, of a machine with so many; slow: whether SLOW has a fifth of the others'."""
    share = min(1.0, FOR_WORKERS * cores / len(workers))
    return {name: share * (FIFTH if slow and name == SLOW else 1) for name in workers}


def environment(hosts: Hosts) -> dict[str, str]:
    """Of every run: what mpirun needs to start on these hosts, one BLAS thread a rank, Python's path to this folder."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return found | hosts.environment | dict.fromkeys(THREADS, "1") | python_path()


def loop(
    program: Program,
    work: Mapping[str, Any],
    iterations: int,
    ranks: int,
    places: str,
    environ: Mapping[str, str],
    folder: Path,
) -> tuple[list[str], dict[str, str]]:
    """The command of the Allreduce loop, and what to add to `environ` for it. A rank does all its chunks in one go."""
    options = {**work, "seconds": CHUNKS * work["seconds"], "library": program.library, "steps": program.steps}
    options |= {"iterations": iterations}
    arguments = [str(folder / OUTPUT), json.dumps(options)]
    where = Placement(ranks, host=places, fault_tolerance=False)
    command, additions = launch_command(where, arguments, environ, module="network_ranks")
    # on fewer cores than ranks nobody may spin while others have work to do
    return command, additions | {"OMPI_MCA_mpi_yield_when_idle": "1"}


def training(
    settings: Mapping[str, Any],
    work: Mapping[str, Any],
    iterations: int,
    ranks: int,
    workers: int,
    places: str,
    folder: Path,
) -> list[str]:
    """The command of psgc, whose YAML and data are written to `folder`. Without computing a worker has one chunk."""
    chunks = CHUNKS if work["seconds"] else 1
    rows = chunks * workers
    write_dense(str(folder / "data.npz"), np.zeros((rows, 1)), np.zeros(rows))
    config = {
        "problem": {"python": "network_ranks:Constant", "options": dict(work)},
        "data": {"path": str(folder / "data.npz")},
        "optimizer": {"kind": "sgd", "lr": 1.0},
        "iterations": iterations,
        "coding": {"chunks_per_worker": chunks, "replication": min(3, workers)},
        "dtype": "float32",
        "trial": False,
        "faults": {"collect_timeout": LIMIT},
        "checkpoint": {"every": 0},
        "dedicated_server": workers < ranks,
        "output": str(folder / OUTPUT),
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-P", "-m", "psgc", "launch", str(folder / "run.yaml"), "-n", str(ranks)]
    return [*command, "--host", places, *overrides(settings)]


def run_on(hosts: Hosts, command: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
    """Run a command on the first host. Raises RunFailed when it fails or takes more than LIMIT seconds."""
    errors = folder / "stderr"
    with errors.open("wb") as stream:
        try:
            code = subprocess.run(
                hosts.command(hosts.names[0], command), cwd=folder, env=environ, timeout=LIMIT,
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RunFailed(f"the run took more than {LIMIT} s") from None
    if code:
        said = errors.read_text(errors="replace").strip()
        raise RunFailed(f"the run failed with exit code {code}: {' '.join(said.split())[:500]}")


def check_params(params: np.ndarray, iterations: int) -> None:
    """Raises RunFailed unless every step has taken 1, the sum of the gradients, from every parameter."""
    if not np.allclose(params, -iterations, rtol=TOLERANCE):
        raise RunFailed(f"psgc adds up wrongly: parameters {params.min()} to {params.max()}, not {-iterations}")
