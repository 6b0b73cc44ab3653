"""Random faults from outside, drawn from a seed: what comes of a run, and beside it of checkpoint-and-restart.

    python scripts/chaos.py [--seeds 20] [--restore] [--beside] [--rate 20] [--kinds kill stop pause slow] ...

A run of 8 workers has 1,000 iterations, whose chunks are emulated: they sleep, 50 ms a worker in each iteration. Faults
come as a Poisson process, `--rate` a minute, to a worker drawn at random:

    kill    SIGKILL
    stop    SIGSTOP for so long that the worker is lost (twice faults.collect_timeout), then SIGCONT
    pause   SIGSTOP for 0.1 to 1 s
    slow    SIGSTOP and SIGCONT in turns for 5 s: a fifth of the speed

Without --restore two workers are left alive in any case. With it the run is started again (`faults.restore`) when a
worker has been gone for --after seconds. --rank-zero has faults come to rank 0 as well.

The table says, for each seed:

    T*/T      of the whole time, restarts and all: the sum of the clairvoyant bounds T* of the iterations, which follow
              from what each worker did in them, over the seconds from the first step to the end
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
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import yaml

from psgc.data import write_dense
from psgc.processes import die_with_parent
from psgc.record.csv_files import earlier_rows

KINDS = ("kill", "stop", "pause", "slow")
WEIGHTS = {"kill": 1, "stop": 1, "pause": 4, "slow": 2}  # how often each comes, relative to the others
COLLECT_TIMEOUT = 2.0
SLOW_FOR, TURN, SHARE = 5.0, 0.05, 0.2  # seconds; of each turn a slow worker runs for this share
CLOSE = 1e-10
PATIENCE = 120.0  # seconds without a row, after which a run hangs
LEFT_ALIVE = 2
TOKEN = "PSGC_CHAOS"
HERE = Path(__file__).parent
COLUMNS = (
    *("program", "seed", "end", "steps", "T*/T", "time"),
    *("faults", "killed", "starts", "repeated", "lost", "off", "wrong", "hung", "left"),
)


@dataclass(frozen=True)
class Fault:
    """at: seconds after the first step; seconds: how long it lasts."""

    at: float
    kind: str
    rank: int
    seconds: float = 0.0


def draw(seed: int, rate: float, ranks: Sequence[int], kinds: Sequence[str], most_killed: float) -> Iterator[Fault]:
    """Faults without an end, `rate` a minute. most_killed: of all."""
    rng = random.Random(seed)
    at, killed = 0.0, 0
    while True:
        at += rng.expovariate(rate / 60)
        kind = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        rank, pause = rng.choice(ranks), rng.uniform(0.1, 1.0)
        killed += kind == "kill"
        if kind == "kill" and killed > most_killed:
            continue
        yield Fault(at, kind, rank, {"kill": 0.0, "stop": 2 * COLLECT_TIMEOUT, "pause": pause, "slow": SLOW_FOR}[kind])


@dataclass
class Chaos:
    """Has faults come to the processes of a program, which it finds by their token.

    away: seconds in which ranks were dead or stopped, added up; dead: since when, by rank.
    """

    token: str
    faults: Iterator[Fault]
    is_over: threading.Event = field(default_factory=threading.Event)
    done: list[Fault] = field(default_factory=list)
    away: float = 0.0
    dead: dict[int, float] = field(default_factory=dict)

    def run(self) -> None:
        """Until `is_over`. One fault at a time comes to a rank; they do not wait for each other."""
        began, under_way = time.monotonic(), {}
        for fault in self.faults:
            if self.is_over.wait(max(0.0, began + fault.at - time.monotonic())):
                break
            self.see_the_living()
            pid = processes(self.token).get(fault.rank)
            if pid is None or ((before := under_way.get(fault.rank)) and before.is_alive()):
                continue
            self.done.append(fault)
            under_way[fault.rank] = thread = threading.Thread(target=self._happen, args=(fault, pid))
            thread.start()
        for thread in under_way.values():
            thread.join()
        self.see_the_living(is_end=True)

    def see_the_living(self, is_end: bool = False) -> None:
        """Ranks that were killed and run again, after a restart, are away no more."""
        living, now = processes(self.token), time.monotonic()
        for rank in [rank for rank in self.dead if is_end or rank in living]:
            self.away += now - self.dead.pop(rank)

    def _happen(self, fault: Fault, pid: int) -> None:
        began = time.monotonic()
        end = began + fault.seconds
        with suppress(ProcessLookupError):
            if fault.kind == "kill":
                os.kill(pid, signal.SIGKILL)
                self.dead[fault.rank] = began
                return
            stopped, running = (TURN * (1 - SHARE), TURN * SHARE) if fault.kind == "slow" else (fault.seconds, 0.0)
            while time.monotonic() < end and not self.is_over.is_set():
                os.kill(pid, signal.SIGSTOP)
                self.is_over.wait(stopped)
                os.kill(pid, signal.SIGCONT)
                self.away += stopped
                time.sleep(running)


def processes(token: str) -> dict[int, int]:
    """The living ranks of a program, rank to pid; others of its processes have the negative of their pid as rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            environ = (entry / "environ").read_bytes().split(b"\0")
            if f"{TOKEN}={token}".encode() not in environ or (entry / "stat").read_text().rpartition(")")[2][1] == "Z":
                continue
            ranks = [int(word.partition(b"=")[2]) for word in environ if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
            found[ranks[0] if ranks else -int(entry.name)] = int(entry.name)
    return found


@dataclass(frozen=True)
class Setting:
    """Of all runs. seconds: of a worker in an iteration."""

    folder: Path
    workers: int
    iterations: int
    seconds: float
    chunks: int  # of each worker
    aggregation: str
    after: float | None  # None: without restores

    def config(self, output: str) -> Path:
        """The YAML of a run."""
        path = self.folder / f"{output}.yaml"
        restore = None if self.after is None else {"lost": 1, "after": self.after, "per_hour": 10_000}
        settings = {
            "problem": {"kind": "least_squares"},
            "data": {"path": str(self.folder / "data.npz")},
            "optimizer": {"kind": "momentum", "lr": 0.5},
            "iterations": self.iterations,
            "coding": {"chunks_per_worker": self.chunks, "replication": min(3, self.workers)},
            "aggregation": self.aggregation,
            "transfer": "combined",
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
    setting: Setting, output: str, command: Sequence[str], faults: Iterator[Fault], starts_again: bool
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
    chaos = Chaos(token, faults)
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
                time.sleep(0.05)
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
    rows = [*earlier_rows(directory / "iterations.csv")]
    bounds = [row.bound for row in rows if np.isfinite(row.bound)]
    if bounds:
        found.bound = float(np.mean(bounds)) * found.steps / found.took
    counted = sum(row.recovered for row in rows) * setting.seconds / setting.chunks
    found.time = counted / (setting.workers * found.took - found.away)
    if rows:
        found.lost = 1 - counted / (len(rows) * setting.workers * setting.seconds)
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
    )
    rng = np.random.default_rng(0)
    write_dense(str(setting.folder / "data.npz"), rng.normal(size=(1024, 100)) / 10, rng.normal(size=1024))
    print(_in_columns(COLUMNS))
    results: list[Found] = []
    reference = None

    def run(output: str, words: Sequence[str], faults: Iterator[Fault], starts_again: bool = False) -> None:
        found = disturbed(setting, output, [*words, str(setting.config(output))], faults, starts_again)
        judge(setting, output, found, reference)
        results.append(found)
        print(found.line, flush=True)

    psgc = [sys.executable, "-m", "psgc", "launch", "-n", str(setting.workers + 1)]
    mpirun = shutil.which("mpirun") or str(Path(sys.executable).with_name("mpirun"))
    loop = [mpirun, "-n", str(setting.workers), "--oversubscribe", "--bind-to", "none"]
    loop += [sys.executable, str(HERE / "chaos_loop.py")]
    torchft = [sys.executable, str(HERE / "chaos_torchft.py"), "-n", str(setting.workers)]
    run("psgc_-1", psgc, iter(()))
    if results[0].end != "0":
        sys.exit(f"chaos: the undisturbed run has failed, see {setting.folder / 'psgc_-1.log'}")
    reference = np.load(setting.folder / "psgc_-1/params.npy")
    most_killed = inf if options.restore else setting.workers - LEFT_ALIVE
    for seed in range(options.first, options.first + options.seeds):
        ranks = range(0 if options.rank_zero else 1, setting.workers + 1)
        run(f"psgc_{seed}", psgc, draw(seed, options.rate, ranks, options.kinds, most_killed))
        if options.beside:
            drawn = partial(draw, seed, options.rate, range(setting.workers), options.kinds, inf)
            run(f"restart_{seed}", loop, drawn(), starts_again=True)
            if importlib.util.find_spec("torchft"):
                run(f"torchft_{seed}", torchft, drawn())
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
    add("--chunks", type=int, default=4, help="of each worker")
    add("--aggregation", choices=("server", "allreduce"), default="allreduce")
    add("--restore", action="store_true", help="start the run again when workers are gone")
    add("--after", type=float, default=2.0, help="seconds, of faults.restore")
    add("--rank-zero", action="store_true", help="faults come to rank 0 as well")
    add("--beside", action="store_true", help="checkpoint-and-restart, and torchft, with the same faults")
    add("--output", type=Path, default=Path("runs/chaos"), help="folder for all of it")
    ours = [found for found in experiment(parser.parse_args()) if found.program == "psgc" and found.seed >= 0]
    goodput = np.mean([found.bound for found in ours]) if ours else float("nan")
    bad = {name: sum(getattr(found, name) for found in ours) for name in ("wrong", "hung", "left")}
    bad["failed"] = sum(found.end not in ("0", "hung") for found in ours)
    print(f"psgc: {len(ours)} runs, T*/T {goodput:.3f} in the mean", *(f"{bad[name]} {name}" for name in bad), sep=", ")
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main())
