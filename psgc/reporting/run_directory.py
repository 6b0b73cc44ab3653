"""The reader of run directories: whole ones, those of runs that were killed, and those that still run.

Whoever looks at what a run has left (`psgc report`, `psgc replay`) reads it here.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psgc import __version__
from psgc import config as configuration
from psgc.config import Config
from psgc.errors import UserError
from psgc.plan import MAX_WORKERS
from psgc.regular_files import open_regular
from psgc.reporting.csv_files import COLUMNS, LOST_COLUMNS, csv_rows
from psgc.reporting.timeline import ABANDONED, LONGEST, Columns, read_timeline

NEEDED = (
    "iteration", "loss", "seconds", "bound", "efficiency", "error_measure", "recovered", "redundant", "bytes", "lost",
)  # fmt: skip
OPTIONAL = ("missing", "actual_error", "bytes_in")  # runs of older versions do not have them
MAX_CHUNKS = 2**31
MAX_SUMMARY = 1 << 26  # bytes
FEW = 1 << 22  # workers x iterations that fit into memory anyhow
IDLE = 64  # workers x iterations for each entry of the timeline, in a run in which only few of the workers do anything
MOST = {"seconds": LONGEST, "bound": LONGEST, "error_measure": 1.0}
COUNTS = ("iteration", "recovered", "redundant", "bytes", "bytes_in", "lost", "missing")


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What a run has left in its directory, at its end or on the way.

    config: its settings; iterations: the columns of iterations.csv by name, one entry an iteration that was recorded,
    counts as int64 and all else as float64 (nan: not known); those of OPTIONAL may not be among them, and the loss is
    not when the problem has none.
    timeline: every chunk that was worked on, by column: worker (1..workers), chunk, iteration, start and seconds,
    outcome (an index of `outcomes`, the last entry of the dictionary); None when there is none. It may lack iterations
    (after `--resume`), and have some that have no row yet.
    summary: summary.json, None while the run has not come to its end; losses: the rows of lost.csv;
    workers, chunks: how many there are, 0 when nothing says so.
    """

    path: Path
    config: Config
    iterations: Columns
    timeline: Columns | None
    summary: dict[str, Any] | None
    losses: list[dict[str, Any]]
    workers: int
    chunks: int

    def seconds_per_chunk(self) -> np.ndarray:
        """The mean time of the chunks that a worker has done in an iteration, (iterations, workers); nan for none."""
        total = np.zeros((len(self.iterations["iteration"]), self.workers))
        count = np.zeros_like(total)
        if self.timeline is not None:
            row, recorded = self.rows_of(self.timeline["iteration"])
            done = recorded & (self.timeline["outcome"] != ABANDONED)
            place = (row[done], self.timeline["worker"][done] - 1)
            np.add.at(total, place, self.timeline["seconds"][done])
            np.add.at(count, place, 1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def rows_of(self, iterations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of `self.iterations` are those of these iterations, and whether there is one for each."""
        numbers = self.iterations["iteration"]
        if not len(numbers):
            return np.zeros(iterations.shape, int), np.zeros(iterations.shape, bool)
        row = np.searchsorted(numbers, iterations).clip(max=len(numbers) - 1)
        return row, numbers[row] == iterations


def read_run(path: str | Path) -> RecordedRun:
    """What the run in the directory `path` has left so far.

    Raises UserError, one line, when it is no run directory, when another version of psgc wrote it in another way, or
    when a file in it is damaged.
    """
    directory = Path(path)
    _check_directory(directory)
    iterations = _iterations(directory / "iterations.csv")
    config = _config(directory / "config.yaml")
    losses = _losses(directory / "lost.csv")
    summary = _summary(directory / "summary.json")
    timeline, about = read_timeline(directory)
    seen = [0, *(event["worker"] for event in losses)]
    if timeline is not None:
        seen.extend(timeline["worker"].max(initial=0, keepdims=True).tolist())
    about |= {name: summary[name] for name in ("workers", "chunks")} if summary else {}
    workers, chunks = about.get("workers", max(seen)), about.get("chunks", 0)
    if not (0 <= workers <= MAX_WORKERS and 0 <= chunks <= MAX_CHUNKS):
        raise UserError(f"{directory}: damaged: {workers!s:.20} workers and {chunks!s:.20} chunks are no run")
    if max(seen) > workers:
        raise UserError(f"{directory}: damaged: a run of {workers} workers has no worker {max(seen)}")
    rows, entries = len(iterations["iteration"]), 0 if timeline is None else len(timeline["worker"])
    if timeline is not None and workers * rows > max(FEW, IDLE * entries):
        raise UserError(
            f"{directory}: damaged: {workers} workers in {rows} iterations do not go with {entries} chunks in timeline"
        )
    return RecordedRun(directory, config, iterations, timeline, summary, losses, workers, chunks)


def _check_directory(directory: Path) -> None:
    expected = "expected a run directory, the output of psgc train"
    try:
        if not directory.exists():
            raise UserError(f"{directory}: no such directory; {expected}")
        if not directory.is_dir():
            raise UserError(f"{directory}: not a directory; {expected}")
        lacking = [name for name in ("config.yaml", "iterations.csv") if not (directory / name).exists()]
    except OSError as error:
        raise UserError(f"{directory}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if lacking:
        raise UserError(f"{directory}: not a run directory, it has no {' and no '.join(lacking)}; {expected}")


def _config(path: Path) -> Config:
    try:
        return configuration.load(path)
    except UserError as error:
        raise UserError(f"{error}; psgc {__version__} cannot read it, another version may have written it") from None


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the whole rows of a file that may still grow."""
    try:
        header, *rows = csv_rows(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except csv.Error as error:
        raise UserError(f"{path}: damaged: {error}") from None
    except ValueError:
        raise UserError(f"{path}: empty, expected a line with the names of the columns") from None
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}: damaged: row {number} has {len(row)} values, expected {len(header)}")
    return header, rows


def _iterations(path: Path) -> Columns:
    header, rows = _csv(path)
    known = dict.fromkeys((*NEEDED, *OPTIONAL, *COLUMNS))
    wrong = [f"no {name!r}" for name in NEEDED if name not in header]
    wrong += [f"{name[:40]!r}" for name in header if name not in known]
    wrong += [f"{name!r} twice" for name in known if header.count(name) > 1]
    if wrong:
        raise UserError(
            f"{path}: written by another version of psgc: its columns have {', '.join(wrong[:8])}; "
            f"expected {', '.join(NEEDED)}, and perhaps {', '.join(OPTIONAL)}"
        )
    columns = {}
    for place, name in enumerate(header):
        if name == "loss" and rows and not any(row[place] for row in rows):  # the problem has none
            continue
        values = [_number(path, number, name, row[place], name in COUNTS) for number, row in enumerate(rows, start=2)]
        columns[name] = np.array(values, np.int64 if name in COUNTS else np.float64)
    if (np.diff(columns["iteration"], prepend=-1) <= 0).any():
        raise UserError(f"{path}: damaged: the iterations do not ascend")
    return columns


def _number(path: Path, row: int, column: str, text: str, whole: bool) -> float:
    if whole:
        if text.isdecimal() and len(text) < 19:
            return int(text)
        raise UserError(f"{path}: damaged: row {row}: {column}: expected a whole number, got {text[:40]!r}")
    try:
        value = float(text or "nan") if column == "loss" else float(text)  # empty: from before the problem had one
    except ValueError:
        raise UserError(f"{path}: damaged: row {row}: {column}: expected a number, got {text[:40]!r}") from None
    unknown = column == "bound" and not np.isfinite(value)
    if column in MOST and not (0 <= value <= MOST[column] or unknown):
        raise UserError(f"{path}: damaged: row {row}: {column}: expected 0 to {MOST[column]:g}, got {text[:40]!r}")
    return value


def _losses(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    header, rows = _csv(path)
    if tuple(header) != LOST_COLUMNS:
        raise UserError(f"{path}: written by another version of psgc: expected the columns {', '.join(LOST_COLUMNS)}")
    losses: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=2):
        event: dict[str, Any] = dict(zip(LOST_COLUMNS, row, strict=True))
        for name in ("iteration", "worker"):
            event[name] = int(_number(path, number, name, event[name], whole=True))
        losses.append(event)
    return losses


def _summary(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        with open_regular(path) as stream:
            content = stream.read(MAX_SUMMARY + 1)
        if len(content) > MAX_SUMMARY:
            raise UserError(f"{path}: damaged: longer than {MAX_SUMMARY} bytes")
        summary = json.loads(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged: not JSON") from None
    for name, kind in {"status": str, "reason": str, "workers": int, "chunks": int}.items():
        if not isinstance(summary, dict) or type(summary.get(name)) is not kind:
            raise UserError(f"{path}: damaged, or of another version of psgc: expected {name}, of type {kind.__name__}")
    return dict(summary)
