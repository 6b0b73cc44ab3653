"""The faults that a run has to survive: each as data, with what has to come of it.

A run gets some of them, each in an iteration and on workers of its own. What it left is then held against the run
without any: the parameters, who was lost when and why, and what that cost.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import yaml

from psgc.data import write_dense
from psgc.server.failure_detector import PATIENCE

TRANSFERS = ("per_chunk", "combined", "allreduce")  # the last one is combined, with that aggregation
CLOSE = 1e-10  # largest difference of a parameter: the rounding of sums in another order
KEEPING = ("combined", "allreduce")  # transfers with which workers keep what they have committed
WITHHOLDING = ("after_commit", "summing", "passing_on")  # a worker that stops here has not delivered all it owes
DIED = "its process died"
SILENT = "(faults.collect_timeout)"  # it was not heard, or nothing reached it: what rank 0 sees first
BUSY = 10.0  # seconds that this machine may be at other things
FEATURES = 25_000  # 200 kB a vector: every rank owns a slice, and MPI asks the receiver before it sends one
ROWS = 240


@dataclass(frozen=True)
class Case:
    """A fault and its outcome.

    kind, step: as in faults.inject; workers: how many it befalls at once; seconds: for those that end, in units of
    collect_timeout; reason: how the reason in lost.csv begins, or what is in it.
    """

    name: str
    kind: str
    step: str = "gradient"
    reason: str = SILENT
    workers: int = 1
    seconds: float | None = None
    transfers: tuple[str, ...] = TRANSFERS

    @property
    def at_once(self) -> bool:
        """Whether it is noticed without any waiting."""
        return self.kind in ("kill", "raise")

    @property
    def of_owners(self) -> bool:
        """Whether it befalls a worker that sums slices for others."""
        return self.transfers == ("allreduce",)

    @property
    def returns(self) -> bool:
        return self.seconds is not None

    @property
    def withholds(self) -> bool:
        """Whether others wait for what the worker has committed, or summed, and does not deliver."""
        return self.step in WITHHOLDING and not self.at_once


CASES = (
    Case("SIGKILL when an iteration begins", "kill", "begin", DIED),
    Case("SIGKILL in a gradient", "kill", "gradient", DIED),
    Case("SIGKILL of two at once", "kill", "gradient", DIED, workers=2),
    Case("SIGKILL before a report", "kill", "before_report", DIED),
    Case("SIGKILL between report and commit", "kill", "after_report", DIED),
    Case("SIGKILL between commit and collect", "kill", "after_commit", DIED, transfers=KEEPING),
    Case("SIGKILL while sending", "kill", "sending", DIED),
    Case("SIGKILL of an owner while summing", "kill", "summing", DIED, transfers=("allreduce",)),
    Case("SIGKILL of two owners while summing", "kill", "summing", DIED, workers=2, transfers=("allreduce",)),
    Case("SIGKILL of an owner, sum sent to one", "kill", "passing_on", DIED, transfers=("allreduce",)),
    Case("SIGKILL of an owner, sum sent to all", "kill", "passed_on", DIED, transfers=("allreduce",)),
    Case("exception in a gradient", "raise", reason="RuntimeError: a fault on purpose"),
    Case("SIGSTOP then SIGCONT", "stop", seconds=2.0),
    Case("interpreter lock held", "hold", seconds=2.0),
    Case("SIGSTOP", "stop"),
    Case("SIGSTOP between commit and collect", "stop", "after_commit", transfers=KEEPING),
    Case("SIGSTOP of an owner while summing", "stop", "summing", transfers=("allreduce",)),
    Case("SIGSTOP of an owner, sum sent to one", "stop", "passing_on", transfers=("allreduce",)),
    Case("os._exit(3)", "exit"),
    Case("gradient that never returns", "hang", reason="its gradient does not return"),
)
OF_RANK_0 = (
    Case("SIGKILL of rank 0 when an iteration begins", "kill", "begin", DIED),
    Case("SIGKILL of rank 0 while summing", "kill", "summing", DIED, transfers=KEEPING),
    Case("SIGKILL of rank 0, sum sent to one", "kill", "passing_on", DIED),
    Case("SIGKILL of rank 0, sum sent to all", "kill", "passed_on", DIED),
    Case("SIGKILL of rank 0 before its step", "kill", "stepping", DIED),
    Case("SIGSTOP of rank 0", "stop", "begin", DIED),
)


@dataclass(frozen=True)
class Settings:
    """Of a run: every chunk takes `chunk_seconds`, the rest is as in the run's YAML."""

    transfer: str
    parts: int
    iterations: int
    chunk_seconds: float
    chunks_per_worker: int
    replication: int
    collect_timeout: float
    chunk_timeout: float | None = None


@dataclass(frozen=True)
class Planned:
    """A case in a run: when, and on which workers."""

    case: Case
    iteration: int
    ranks: tuple[int, ...]


def cases(transfer: str) -> list[Case]:
    """Those that there are with this transfer."""
    return [case for case in CASES if transfer in case.transfers]


def plan(cases: Iterable[Case], first: int, gap: int = 1, rank: int = 1) -> list[Planned]:
    """Each case in an iteration and on workers of its own, from these on."""
    planned = []
    for case in cases:
        planned.append(Planned(case, first, tuple(range(rank, rank + case.workers))))
        first, rank = first + gap, rank + case.workers
    return planned


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    write_dense(str(folder / "data.npz"), rng.normal(size=(ROWS, FEATURES)) / FEATURES**0.5, rng.normal(size=ROWS))


def config_text(settings: Settings, planned: Sequence[Planned], output: str) -> str:
    """The YAML of a run."""
    return yaml.safe_dump(
        {
            "problem": {"kind": "least_squares"},
            "data": {"path": "data.npz"},
            "optimizer": {"kind": "momentum", "lr": 0.5},
            "iterations": settings.iterations,
            "coding": {
                "chunks_per_worker": settings.chunks_per_worker,
                "replication": settings.replication,
                "parts": settings.parts,
            },
            "aggregation": "allreduce" if settings.transfer == "allreduce" else "server",
            "transfer": "auto" if settings.transfer == "allreduce" else settings.transfer,
            "checkpoint": {"every": 5},
            "stragglers": {"kind": "slow", "seconds": {"all": settings.chunk_seconds}},
            "faults": {
                "collect_timeout": settings.collect_timeout,
                "chunk_timeout": settings.chunk_timeout,
                "inject": [fault for p in planned for fault in _injections(p, settings.collect_timeout)],
            },
            "output": output,
        },
        sort_keys=False,
    )


def _injections(planned: Planned, collect_timeout: float) -> Iterator[dict[str, object]]:
    case = planned.case
    for rank in planned.ranks:
        fault = {"kind": case.kind, "rank": rank, "iteration": planned.iteration, "step": case.step}
        yield fault | ({} if case.seconds is None else {"seconds": case.seconds * collect_timeout})


class Outcome:
    """What a run left in its run directory. `iterations`: the seconds of each; `waited`: what of them its slow
    chunks do not explain; `numbers`: of iterations.
    """

    def __init__(self, directory: Path) -> None:
        self.summary = json.loads((directory / "summary.json").read_text())
        self.params = np.load(directory / "params.npy")
        rows = _rows(directory / "iterations.csv")
        self.numbers = [int(row["iteration"]) for row in rows]
        self.iterations = [float(row["seconds"]) for row in rows]
        bounds = [float(row["bound"]) for row in rows]  # nan in some short iterations
        self.waited = np.nan_to_num(np.subtract(self.iterations, bounds)).tolist()
        self.events = [
            (row["event"], int(row["worker"]), int(row["iteration"]), row["reason"])
            for row in _rows(directory / "lost.csv")
        ]

    def lost(self, ranks: Iterable[int]) -> list[tuple[int, str]]:
        """When these workers were lost, and why."""
        return [
            (iteration, reason) for event, rank, iteration, reason in self.events if event == "lost" if rank in ranks
        ]

    def time_lost(self, planned: Planned) -> tuple[float, float]:
        """Seconds of the slowest iteration from the fault to the one after it was noticed, and the median before.

        In the one after, the server makes the order of the chunks anew.
        """
        noticed = max((iteration for iteration, _ in self.lost(planned.ranks)), default=planned.iteration)
        return max(self.iterations[planned.iteration : noticed + 2]), median(self.iterations[1 : planned.iteration])


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def complaints(planned: Sequence[Planned], settings: Settings, outcome: Outcome, undisturbed: np.ndarray) -> list[str]:
    """What is not as it has to be, but for the time: nothing in a run that survived all its faults."""
    found = []
    if (outcome.summary["status"], len(outcome.iterations)) != ("done", settings.iterations):
        found.append(f"the run is not done: {outcome.summary['status']}, {len(outcome.iterations)} iterations")
    if not (difference := np.abs(outcome.params - undisturbed).max()) <= CLOSE:
        found.append(f"a parameter differs by {difference:.1e}")
    befallen = {rank for p in planned for rank in p.ranks}
    if settings.transfer == "allreduce":
        gone = {rank for p in planned for rank in p.ranks if not p.case.returns}
        live = [worker for worker in range(1, outcome.summary["workers"] + 1) if worker not in gone]
        if (replicas := outcome.summary["replicas"]) != {"iteration": settings.iterations, "equal": live}:
            found.append(f"the parameters of workers {live} are not known to be equal: {replicas}")
    found += [f"nothing befell its worker: {event}" for event in outcome.events if event[1] not in befallen]
    for p in planned:
        for rank in p.ranks:
            found += [f"{p.case.name}, worker {rank}: {what}" for what in _wrong_record(p, rank, settings, outcome)]
    return found


def _wrong_record(planned: Planned, rank: int, settings: Settings, outcome: Outcome) -> Iterator[str]:
    case = planned.case
    events = [event for event, who, _, _ in outcome.events if who == rank]
    if events != ["lost", "returned"][: 2 if case.returns else 1]:
        yield f"its record is {events}"
    for iteration, reason in outcome.lost([rank]):
        if case.reason not in reason:
            yield f"lost because: {reason}"
        until = sum(outcome.iterations[planned.iteration : iteration])  # when that iteration began
        latest = BUSY if case.at_once else settings.collect_timeout + BUSY
        if case.kind == "hang" and settings.chunk_timeout is None:  # it grows with the slowest chunk so far
            latest = max(settings.collect_timeout, PATIENCE * max(outcome.iterations)) + BUSY
        if not (planned.iteration <= iteration and until <= latest):
            yield f"lost in iteration {iteration}, {until:.1f} s after the fault in {planned.iteration}"
