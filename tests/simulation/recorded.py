"""Runs recorded by the simulator itself, whose workers' speeds are known."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from psgc.config import Config, TorchConfig
from psgc.plan import even_plan, make_plan
from psgc.run_rows import Outcome, WorkerEvent
from psgc.schedules import SCHEDULES
from psgc.simulation.virtual import Passes, Simulated, VirtualCluster
from psgc.tools.run_directory import RecordedRun

BASE = {
    "problem": {"python": "some:Model"},
    "optimizer": {"kind": "sgd", "lr": 1.0},
    "iterations": 1,
    "transfer": "per_chunk",
    "stragglers": {"kind": "slow", "factor": {"all": 1.0}},
    "output": "run",
}


def settings(schedule: str = "dynamic", **coding: Any) -> Config:
    return Config(**BASE, schedule=schedule, coding=coding)


def torch_settings(schedule: str = "dynamic", **coding: Any) -> Config:
    torch = {"problem": {"torch": "some:build"}, "optimizer": {"torch": "SGD"}, "batch": {"size": 64, "epochs": 1}}
    rest = {name: BASE[name] for name in ("transfer", "stragglers", "output")}
    return TorchConfig(**torch, **rest, schedule=schedule, coding=coding)


def cluster(config: Config, workers: int, **more: Any) -> VirtualCluster:
    if isinstance(config, TorchConfig):
        plan = even_plan(config.coding, config.schedule, workers, config.coding.chunks, config.seed)
    else:
        plan = make_plan(config.coding, config.schedule, workers, config.seed)
    costs = more.get("costs")
    rules = SCHEDULES[config.schedule](plan.queues, plan.backups, plan.holders(), plan.parts, costs)
    return VirtualCluster(plan.holders(), plan.queues, plan.parts, rules, **more)


def by_rank(row: Sequence[float]) -> dict[int, float]:
    return dict(enumerate(row, start=1))


def messages(trial: Simulated, workers: int) -> int:
    """The parameters to each worker, and a report of each pass."""
    return workers + trial.passes


def record(config: Config, seconds: Sequence[Sequence[float]], message: float = 0.0, **more: Any) -> RecordedRun:
    """The record of a run whose workers took so many seconds per chunk, (iterations, workers).

    message: seconds that an iteration takes longer for each message, `per_chunk`.
    """
    workers = len(seconds[0])
    watched = cluster(config, workers, **more)
    passes, costs = more.get("passes", Passes()), more.get("costs")
    is_torch = isinstance(config, TorchConfig)
    chunks = config.coding.chunks if is_torch else config.coding.chunks_per_worker * workers
    entries, took = [], []
    for iteration, row in enumerate(seconds):
        trial = watched.recover(by_rank(row))
        took.append(trial.time + message * messages(trial, workers))
        for (rank, begun), of in groupby(watched.begun, key=lambda begun: begun[::2]):
            piece = [chunk for _, chunk, _ in of]
            work = sum(1.0 if costs is None else costs[chunk] for chunk in piece)
            whole = row[rank - 1] * (passes.cost + work)
            spent = (min(whole, took[-1] - begun) if more.get("breaks_off", True) else whole) / len(piece)
            for place, chunk in enumerate(piece):
                is_done = begun + whole + passes.pause <= took[-1]
                outcome = Outcome.USED if watched.used(rank, chunk) else Outcome.LATE if is_done else Outcome.ABANDONED
                entries.append((rank, chunk, iteration, begun + place * spent, spent, outcome))
    return recorded_run(config, entries, took, workers, chunks)


def recorded_run(
    config: Config,
    entries: Sequence[tuple[int, int, int, float, float, int]],
    took: Sequence[float],
    workers: int,
    chunks: int,
    losses: Sequence[tuple[int, int, str]] = (),
) -> RecordedRun:
    """A record from (worker, chunk, iteration, start, seconds, outcome), seconds per iteration, and (iteration, worker,
    event) of losses."""
    names, kinds = ("worker", "chunk", "iteration", "start", "seconds", "outcome"), (int, int, int, float, float, int)
    columns = zip(*entries, strict=True)
    timeline = {name: np.array(column, kind) for name, column, kind in zip(names, columns, kinds, strict=True)}
    number = np.arange(len(took))
    iterations = {
        "iteration": number,
        "seconds": np.array(took),
        "recovered": np.full(len(took), chunks),
        "loss": np.ones(len(took)),
        "bytes": np.zeros(len(took), int),
        "bytes_in": np.zeros(len(took), int),
    }
    events = [WorkerEvent(iteration, worker, "", event, "") for iteration, worker, event in losses]
    return RecordedRun(Path("run"), config, iterations, timeline, None, events, workers, chunks)
