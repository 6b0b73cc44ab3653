"""Random faults from outside, drawn from a seed: what comes of a run, and beside it of checkpoint-and-restart.

    python scripts/chaos.py [--seeds 20] [--restore] [--beside] [--rate 20] [--kinds kill stop pause slow] ...

A run of 8 workers has 1,000 iterations, whose chunks are emulated: they sleep, 50 ms a worker in each iteration. Faults
come as a Poisson process, `--rate` a minute, to a worker drawn at random:

    kill    SIGKILL
    stop    SIGSTOP for so long that the worker is lost (twice faults.collect_timeout), then SIGCONT
    pause   SIGSTOP for 0.1 to 1 s
    slow    SIGSTOP and SIGCONT in turns for 5 s: a fifth of the speed
    link    the link of a host is down for as long as a stop lasts; with --hosts, which needs root

Without --restore two workers are left alive in any case. With it the run is started again (`faults.restore`) when
--lost workers have been gone for --after seconds. --rank-zero has faults come to rank 0 as well.

The table says, for each seed:

    T*/T      of the whole time, restarts and all: the sum of the clairvoyant bounds T* of the iterations, which follow
              from what each worker did in them, over the seconds from the end of the first step to the end of the run
    time      of the workers' time: the seconds of chunks that counted, over those in which workers were not dead or
              stopped
    starts    1, and how often the run was started again; repeated: steps that were made twice
    wrong     whether the final parameters differ from those of the undisturbed run by more than rounding (1e-10)
    lost      the share of the examples that no gradient has
    off       how far the final parameters are from those of the undisturbed run, at most
    hung      whether the run had to be killed, since it had made no step for two minutes; left: how many of its
              processes outlived it

With --beside the same faults come to a loop of Allreduce (scripts/chaos_loop.py) that writes a checkpoint every 50
iterations and is started again when a rank has died, and to torchft (scripts/chaos_torchft.py), where it is installed,
whose processes are started again one by one.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import yaml
from chaos_faults import COLLECT_TIMEOUT, KINDS, LINK, TOKEN, Chaos, Cluster, Fault, draw, processes
from hosts import Hosts

from psgc.data import write_dense
from psgc.processes import die_with_parent
from psgc.record.csv_files import earlier_rows

CLOSE = 1e-10
PATIENCE = 120.0  # seconds without a row, after which a run hangs
LEFT_ALIVE = 2
HERE = Path(__file__).parent
COLUMNS = (
    *("program", "seed", "end", "steps", "T*/T", "time"),
    *("faults", "killed", "starts", "repeated", "lost", "off", "wrong", "hung", "left"),
)


@dataclass(frozen=True)
class Setting:
    """Of all runs. seconds: of a worker in an iteration."""

    folder: Path
    workers: int
    iterations: int
    seconds: float
    chunks: int  # of each worker
    aggregation: str
    after: float | None  # seconds of faults.restore, None: without restores
    lost: int  # workers, of faults.restore

    def config(self, output: str) -> Path:
        """The YAML of a run."""
        path = self.folder / f"{output}.yaml"
        restore = None if self.after is None else {"lost": self.lost, "after": self.after, "per_hour": 10_000}
        settings = {
            "problem": {"kind": "least_squares"},
            "data": {"path": str(self.folder / "data.npz")},
            "optimizer": {"kind": "momentum", "lr": 0.5},
            "iterations": self.iterations,
            "coding": {"chunks_per_worker": self.chunks, "replication": min(3, self.workers)},
            "aggregation": self.aggregation,
            "stragglers": {"kind": "slow", "seconds": {"all": self.seconds / self.chunks}},
            "faults": {"collect_timeout": COLLECT_TIMEOUT, "restore": restore},
            "output": str(self.folder / output),
        }
        path.write_text(yaml.safe_dump(settings))
        return path


@dataclass
class Found:
    """What came of a run. took: seconds from its first step; away: of workers, added up."""

    program: str
    seed: int
    end: str
    steps: int
    took: float
    away: float
    faults: int
    killed: int
    starts: int
    hung: int
    left: int
    bound: float = float("nan")  # T*/T
    time: float = float("nan")
    repeated: int = 0
    lost: float = 0.0
    off: float = 0.0
    wrong: int = 0

    @property
    def line(self) -> str:
        """Of the table."""
        seed = "-" if self.seed < 0 else str(self.seed)
        shares = [f"{self.bound:.3f}", f"{self.time:.3f}"]
        counts = [str(count) for count in (self.faults, self.killed, self.starts, self.repeated)]
        result = [f"{self.lost:.1%}", f"{self.off:.0e}", str(self.wrong), str(self.hung), str(self.left)]
        return _in_columns([self.program, seed, self.end, str(self.steps), *shares, *counts, *result])


def disturbed(
    setting: Setting,
    output: str,
    command: Sequence[str],
    faults: Iterator[Fault],
    starts_again: bool,
    cluster: Cluster | None = None,
) -> Found:
    """Run a program to its end, with these faults from its first step on.

    output: its name, and the seed; starts_again: when it fails, with the same command.
    """
    token, directory = uuid.uuid4().hex, setting.folder / output
    shutil.rmtree(directory, ignore_errors=True)
    environ = {**os.environ, TOKEN: token, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environ |= {"OMPI_MCA_btl": "^ofi", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    rows = directory / "iterations.csv"
    starts, hung, began, written, last = 0, False, 0.0, 0, time.monotonic()
    fewest = LEFT_ALIVE + 1 if setting.after is None and not starts_again else 0
    chaos = Chaos(token, faults, cluster.cut if cluster else None, fewest)
    environ |= cluster.hosts.environment if cluster else {}
    thread = threading.Thread(target=chaos.run)
    with (setting.folder / f"{output}.log").open("w") as log:
        while True:
            starts += 1
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
            while process.poll() is None and not (hung := time.monotonic() > last + PATIENCE):
                time.sleep(0.01)
                if rows.exists() and written != (size := rows.stat().st_size):
                    written, last = size, time.monotonic()
                if not began and rows.exists() and rows.read_bytes().count(b"\n") > 1:
                    began = time.monotonic()
                    thread.start()
            if hung or not starts_again or process.returncode == 0:
                break
    took = time.monotonic() - began
    chaos.is_over.set()
    if began:
        thread.join()
    time.sleep(0.0 if hung else 2.0)
    left = processes(token)
    for pid in left.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    program, _, seed = output.rpartition("_")
    killed = sum(fault.kind == "kill" for fault in chaos.done)
    ended = "hung" if hung else str(process.returncode)
    counts = {"faults": len(chaos.done), "killed": killed, "starts": starts, "hung": int(hung)}
    steps = len([*earlier_rows(rows)])
    return Found(program, int(seed), ended, steps, took, chaos.away, left=0 if hung else len(left), **counts)


def judge(setting: Setting, output: str, found: Found, reference: np.ndarray | None) -> None:
    """Add what the files of the run say."""
    directory, summary = setting.folder / output, {}
    # of the last iterations before a takeover the new rank 0 knows only the seconds
    rows = [row for row in earlier_rows(directory / "iterations.csv") if row.recovered]
    steps = found.steps - 1  # `took` begins with the first row, at the end of its step
    bounds = [row.bound for row in rows if np.isfinite(row.bound)]
    if bounds:
        found.bound = float(np.mean(bounds)) * steps / found.took
    if rows:
        counted = float(np.mean([row.recovered for row in rows])) / (setting.workers * setting.chunks)
        found.lost = 1 - counted
        worked = counted * steps * setting.workers * setting.seconds
        found.time = worked / (setting.workers * found.took - found.away)
    with suppress(OSError, ValueError):
        summary = json.loads((directory / "summary.json").read_text())
    restores = summary.get("restores", ())
    found.starts += len(restores)
    found.repeated = summary.get("repeated", 0) + sum(restored["repeated"] for restored in restores)
    if reference is not None and found.end == "0":
        found.off = float(np.abs(np.load(directory / "params.npy") - reference).max())
        found.wrong = int(not found.off <= CLOSE)


def _in_columns(texts: Sequence[str]) -> str:
    return "  ".join(f"{text:>{max(5, len(name))}}" for name, text in zip(COLUMNS, texts, strict=True))


def experiment(options: argparse.Namespace) -> list[Found]:
    """All runs, the undisturbed one first."""
    options.output.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        *(options.output, options.workers, options.iterations, options.seconds, options.chunks, options.aggregation),
        after=options.after if options.restore else None,
        lost=options.lost,
    )
    rng = np.random.default_rng(0)
    write_dense(str(setting.folder / "data.npz"), rng.normal(size=(1024, 100)) / 10, rng.normal(size=1024))
    print(_in_columns(COLUMNS))
    results: list[Found] = []
    reference = None

    def run(
        output: str,
        words: Sequence[str],
        faults: Iterator[Fault],
        starts_again: bool = False,
        cluster: Cluster | None = None,
    ) -> None:
        found = disturbed(setting, output, [*words, str(setting.config(output))], faults, starts_again, cluster)
        judge(setting, output, found, reference)
        results.append(found)
        print(found.line, flush=True)

    psgc = [sys.executable, "-m", "psgc", "launch", "-n", str(setting.workers + 1), "--dedicated-server"]
    mpirun = shutil.which("mpirun") or str(Path(sys.executable).with_name("mpirun"))
    loop = [mpirun, "-n", str(setting.workers), "--oversubscribe", "--bind-to", "none"]
    loop += [sys.executable, str(HERE / "chaos_loop.py")]
    torchft = [sys.executable, str(HERE / "chaos_torchft.py"), "-n", str(setting.workers)]
    if options.undisturbed is None:
        run("psgc_-1", psgc, iter(()))
        if results[0].end != "0":
            sys.exit(f"chaos: the undisturbed run has failed, see {setting.folder / 'psgc_-1.log'}")
    reference = np.load(options.undisturbed or setting.folder / "psgc_-1/params.npy")
    most_killed = inf if options.restore else setting.workers - LEFT_ALIVE
    for seed in range(options.first, options.first + options.seeds):
        ranks = range(0 if options.rank_zero else 1, setting.workers + 1)
        kinds = (*options.kinds, LINK) if options.hosts else options.kinds
        drawn = draw(seed, options.rate, ranks, kinds, most_killed)
        if options.hosts:
            with Hosts(*(f"host{number}" for number in range(options.hosts))) as hosts:
                cluster = Cluster(hosts, -(-(setting.workers + 1) // options.hosts))
                run(f"psgc_{seed}", cluster.command(psgc, setting.workers + 1), drawn, cluster=cluster)
        else:
            run(f"psgc_{seed}", psgc, drawn)
        if options.beside:
            same = partial(draw, seed, options.rate, range(setting.workers), options.kinds, inf)
            run(f"restart_{seed}", loop, same(), starts_again=True)
            if importlib.util.find_spec("torchft"):
                run(f"torchft_{seed}", torchft, same())
    (setting.folder / "chaos.json").write_text(json.dumps([vars(found) for found in results], indent=1) + "\n")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=20, help="how many runs")
    add("--first", type=int, default=0, help="the first seed")
    add("--rate", type=float, default=20.0, help="faults a minute")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of faults")
    add("--workers", type=int, default=8)
    add("--iterations", type=int, default=1000)
    add("--seconds", type=float, default=0.05, help="of a worker in an iteration")
    add("--chunks", type=int, default=8, help="of each worker; the default is that of a YAML")
    add("--aggregation", choices=("auto", "server", "allreduce"), default="auto")
    add("--restore", action="store_true", help="start the run again when workers are gone")
    add("--after", type=float, default=2.0, help="seconds, of faults.restore")
    add("--lost", type=int, default=1, help="workers, of faults.restore")
    add("--hosts", type=int, default=0, help="so many, of network namespaces (root); link is one of the faults")
    add("--rank-zero", action="store_true", help="faults come to rank 0 as well")
    add("--beside", action="store_true", help="checkpoint-and-restart, and torchft, with the same faults")
    add("--undisturbed", type=Path, help="params.npy of such a run with as many iterations, in place of one more")
    add("--output", type=Path, default=Path("runs/chaos"), help="folder for all of it")
    ours = [found for found in experiment(parser.parse_args()) if found.program == "psgc" and found.seed >= 0]
    goodput = np.mean([found.bound for found in ours]) if ours else float("nan")
    bad = {name: sum(getattr(found, name) for found in ours) for name in ("wrong", "hung", "left")}
    bad["failed"] = sum(found.end not in ("0", "hung") for found in ours)
    print(f"psgc: {len(ours)} runs, T*/T {goodput:.3f} in the mean", *(f"{bad[name]} {name}" for name in bad), sep=", ")
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main())
