"""Reads the directories of finished, killed and running runs."""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from psgc import __version__
from psgc import config as configuration
from psgc.config import Config
from psgc.disk import open_regular
from psgc.errors import UserError
from psgc.plan import MAX_WORKERS
from psgc.record.csv_files import Row, csv_rows
from psgc.record.files import reading
from psgc.record.timeline import Columns, pieces, read_timeline
from psgc.run_rows import COLUMNS, COUNTS, HELD_OUT, OPTIONAL, EvaluationRow, Outcome, WorkerEvent

MAX_CHUNKS = 2**31
FEW = 1 << 22  # workers x iterations that always fit into memory
IDLE = 64  # largest plausible workers x iterations for each entry of the timeline, when most workers are idle
MAX_SUMMARY = 1 << 24  # bytes
FRESH = 15.0  # seconds since run.lock was touched, for a run on another host; it is touched every two seconds
MAX_LOCK = 1000  # bytes


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """The record of a run, finished or not.

    iterations: the columns of iterations.csv (`psgc.run_rows.IterationRow`), counts as int64 and others as float64;
        without losses and held-out figures if there are none
    timeline: the columns of the timeline (`psgc.run_rows.TIMELINE`), and `outcomes`, the names of its outcomes; None
        without a timeline. It may lack iterations, and have iterations without a row.
    """

    path: Path  # the run directory
    config: Config
    iterations: Columns
    timeline: Columns | None
    summary: dict[str, Any] | None  # None until the run has ended
    events: list[WorkerEvent]  # lost.csv, also of workers that a resumed run does not have any more
    workers: int  # how many, as chunks; 0 when unknown
    chunks: int
    evaluated: Sequence[EvaluationRow] = ()  # evaluations.csv

    @property
    def events_of_workers(self) -> list[WorkerEvent]:
        """The events of the present workers."""
        return [event for event in self.events if 0 < event.worker <= self.workers]

    @property
    def goes_on(self) -> bool:
        """Whether the run has not ended, or starts again at once, as far as the record says."""
        return self.summary is None or any(self.summary.get(name) for name in ("evaluating", "starts_again"))

    @cached_property
    def in_timeline(self) -> np.ndarray:
        """Whether the timeline has chunks of each iteration, (iterations,)."""
        found = np.zeros(len(self.iterations["iteration"]), bool)
        for row, _ in self._pieces():
            found[row] = True
        return found

    @property
    def evaluations(self) -> np.ndarray:
        """Which iterations are evaluations without a step, as of psgc.torch, (iterations,) bool. They have no loss."""
        unknown = np.full(len(self.iterations["iteration"]), np.nan)
        return self.config.of_torch & ~np.isfinite(self.iterations.get("loss", unknown))

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric of a script."""
        return {row.name: row.value for row in self.evaluated}

    def seconds_per_chunk(self) -> np.ndarray:
        """The mean time of finished chunks, (iterations in the timeline, workers); nan without any."""
        place = np.cumsum(self.in_timeline) - 1
        total = np.zeros((int(self.in_timeline.sum()), self.workers))
        count = np.zeros(total.shape, np.int32)
        for row, piece in self._pieces():
            done = piece["outcome"] != Outcome.ABANDONED
            where = (place[row[done]], piece["worker"][done] - 1)
            np.add.at(total, where, piece["seconds"][done])
            np.add.at(count, where, 1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def _pieces(self) -> Iterator[tuple[np.ndarray, Columns]]:
        """The entries of the timeline whose iteration has a row, in pieces: (their rows, the entries)."""
        numbers = self.iterations["iteration"]
        for piece in pieces(self.timeline) if self.timeline is not None and len(numbers) else ():
            row = np.searchsorted(numbers, piece["iteration"]).clip(max=len(numbers) - 1)
            known = numbers[row] == piece["iteration"]
            yield row[known], {name: column[known] for name, column in piece.items()}


def read_run(path: str | Path) -> RecordedRun:
    """Read the record of the run in the directory `path`. Raises UserError, also for a file of another version."""
    directory = Path(path)
    _check_directory(directory)
    iterations = _iterations(directory / "iterations.csv")
    config = _config(directory / "config.yaml")
    events = _all(directory / "lost.csv", WorkerEvent)
    evaluated = _all(directory / "evaluations.csv", EvaluationRow)
    summary = _summary(directory / "summary.json")
    timeline, about = read_timeline(directory)
    largest = 0 if timeline is None else int(timeline["worker"].max(initial=0))
    about |= {name: summary[name] for name in ("workers", "chunks")} if summary else {}
    workers = about.get("workers", max([largest, *(event.worker for event in events)]))
    chunks = about.get("chunks", 0)
    if not (0 <= workers <= MAX_WORKERS and 0 <= chunks <= MAX_CHUNKS):
        raise UserError(f"{directory}: damaged: {workers!s:.20} workers and {chunks!s:.20} chunks are no run")
    if largest > workers:
        raise UserError(f"{directory}: damaged: a run of {workers} workers has no worker {largest}")
    run = RecordedRun(directory, config, iterations, timeline, summary, events, workers, chunks, evaluated)
    rows, entries = int(run.in_timeline.sum()), 0 if timeline is None else len(timeline["worker"])
    if workers * rows > max(FEW, IDLE * entries):
        raise UserError(
            f"{directory}: damaged: {workers} workers in {rows} iterations do not go with {entries} chunks in timeline"
        )
    return run


def _check_directory(directory: Path) -> None:
    expected = "expected a run directory, the output of psgc train"
    with reading(directory):
        if not directory.exists():
            raise UserError(f"{directory}: no such directory; {expected}")
        if not directory.is_dir():
            raise UserError(f"{directory}: not a directory; {expected}")
        lacking = [name for name in ("config.yaml", "iterations.csv") if not (directory / name).exists()]
    if lacking:
        raise UserError(f"{directory}: not a run directory, it has no {' and no '.join(lacking)}; {expected}")


def _config(path: Path) -> Config:
    try:
        return configuration.load_written(path)
    except UserError as error:
        raise UserError(f"{error}; psgc {__version__} cannot read it, another version may have written it") from None


def _rows(path: Path, known: Sequence[str]) -> list[dict[str, Any]]:
    """The complete rows of a file with these columns. The file may still grow."""

    def refuse(reason: str) -> None:
        raise UserError(f"{path}: {reason}")

    with reading(path):
        return list(csv_rows(path, refuse, known))


def _iterations(path: Path) -> Columns:
    rows = _rows(path, COLUMNS)
    columns = {}
    for name in COLUMNS:
        values = [row[name] for row in rows]
        if name not in (OPTIONAL if rows else HELD_OUT) or any(value is not None for value in values):
            columns[name] = np.array(values, np.int64 if name in COUNTS else np.float64)  # nan for None
    if (np.diff(columns["iteration"], prepend=-1) <= 0).any():
        raise UserError(f"{path}: damaged: the iterations do not ascend")
    return columns


def _all(path: Path, kind: type[Row]) -> list[Row]:
    return [kind(**row) for row in _rows(path, kind._fields)] if path.exists() else []


def _summary(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with reading(path), open_regular(path) as stream:
        summary = json.loads(stream.read(MAX_SUMMARY))
    for name, kind in {"status": str, "reason": str, "workers": int, "chunks": int}.items():
        if not isinstance(summary, dict) or type(summary.get(name)) is not kind:
            raise UserError(f"{path}: damaged, or of another version of psgc: expected {name}, of type {kind.__name__}")
    return dict(summary)


def is_running(directory: Path) -> bool:
    """Whether the run in a directory is still running, by its run.lock (psgc/run/claim.py).

    It is if the process that the file names runs; on another host, if the process has touched the file lately. This
    does not lock the file, since a run that begins at this moment would then be refused.
    """
    path = directory / "run.lock"
    try:
        with open_regular(path) as stream:
            holder = json.loads(stream.read(MAX_LOCK))
        host, process = str(holder["host"]), int(holder["pid"])
        if host != socket.gethostname():
            return abs(time.time() - path.stat().st_mtime) < FRESH
        os.kill(process, 0)
    except PermissionError:  # a process of another user
        return True
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return False
    return process > 0
