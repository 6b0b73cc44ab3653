"""The run directory: config.yaml, iterations.csv, timeline.npz, params.npy, summary.json (design section 5).

`iterations.csv` grows row by row and is readable at any moment; the other files are written whole when the run ends,
however it ends.
"""

import csv
import io
import json
import math
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse

from psgc import coding
from psgc.errors import UserError
from psgc.reporting.files import write_text, write_whole

COLUMNS = (
    "iteration",
    "loss",
    "seconds",
    "bound",
    "efficiency",
    "error_measure",
    "recovered",
    "redundant",
    "bytes",
    "lost",
)
INLINE_COPIES = 20_000  # chunk copies up to which the bound is a matter of a millisecond or so


class Row(Protocol):
    """What the server knows of an iteration; `reports` maps (worker, chunk) to (start, seconds)."""

    iteration: int
    seconds: float
    loss: float
    recovered: int
    redundant: int
    bytes: int
    reports: dict[tuple[int, int], tuple[float, float]]


class Recorder:
    """Keeps the record of a run in `directory`.

    assignment: (chunks, workers), what the workers hold under the schedule; parts: copies that determine a chunk;
    own_chunks: how many chunks each worker would do if nothing were redundant.
    """

    def __init__(
        self,
        directory: Path,
        config_text: str,
        assignment: scipy.sparse.csr_array,
        parts: int,
        own_chunks: Sequence[int],
    ) -> None:
        self._directory = directory
        self._assignment = assignment
        self._parts = parts
        self._own_chunks = np.asarray(own_chunks)
        _make_room(directory)
        write_text(directory / "config.yaml", config_text)
        self._csv = (directory / "iterations.csv").open("w", newline="", buffering=1, encoding="utf-8")
        self._writer = csv.writer(self._csv)
        self._writer.writerow(COLUMNS)
        self._worker, self._chunk, self._iteration, self._fate = array("i"), array("i"), array("i"), array("b")
        self._start, self._seconds = array("d"), array("d")
        workers = assignment.shape[1]
        self._finished_seconds, self._finished = np.zeros(workers), np.zeros(workers)
        self._abandoned = np.zeros(workers)  # longest time after which a worker abandoned a chunk
        self.seconds = array("d")  # of each iteration
        self.bounds = array("d")
        self.uncoded = array("d")  # what each iteration would have taken without redundancy
        self.bytes = 0
        self.final_loss = float("nan")
        self._late: list[
            tuple[dict[str, Any], np.ndarray]
        ] = []  # rows whose bound is still to be computed, with speeds

    def chunk(self, worker: int, chunk: int, iteration: int, start: float, seconds: float, fate: int) -> None:
        """One chunk that a worker worked on; start: seconds after the worker had the iteration's parameters."""
        self._worker.append(worker)
        self._chunk.append(chunk)
        self._iteration.append(iteration)
        self._start.append(start)
        self._seconds.append(seconds)
        self._fate.append(fate)
        if fate in (0, 1):  # used or late: done
            self._finished_seconds[worker - 1] += seconds
            self._finished[worker - 1] += 1
        else:
            self._abandoned[worker - 1] = max(self._abandoned[worker - 1], seconds)

    def iteration(self, row: Row) -> None:
        """One finished iteration, after its chunks."""
        speeds = self._seconds_per_chunk(row)
        bound = float("nan")
        if self._assignment.nnz <= INLINE_COPIES:
            bound = coding.clairvoyant_bound(self._assignment, self._parts, speeds)
        self.seconds.append(row.seconds)
        self.bounds.append(bound)
        self.uncoded.append(self._uncoded_seconds(speeds))
        self.bytes += row.bytes
        self.final_loss = row.loss
        values = {
            "iteration": row.iteration,
            "loss": row.loss,
            "seconds": row.seconds,
            "bound": bound,
            "efficiency": bound / row.seconds,
            "error_measure": 0,
            "recovered": row.recovered,
            "redundant": row.redundant,
            "bytes": row.bytes,
            "lost": 0,
        }
        if self._assignment.nnz > INLINE_COPIES:
            self._late.append((values, speeds))
        self._writer.writerow(_formatted(values))

    def failure_text(self, worker: int, text: str) -> str:
        """Keep a worker's text; returns its first line, which names the error, and where the traceback is."""
        lines = text.strip().splitlines() or ["it failed without a reason"]
        if len(lines) == 1:
            return lines[0]
        path = self._directory / f"worker-{worker}-error.txt"
        write_text(path, text)
        return f"{lines[0]} (traceback in {path})"

    def finish(self, params: np.ndarray, summary: dict[str, Any]) -> None:
        """Write what a finished, failed or interrupted run leaves: params, timeline, summary."""
        write_whole(self._directory / "params.npy", lambda stream: np.save(stream, params, allow_pickle=False))
        write_whole(
            self._directory / "timeline.npz", lambda stream: np.savez(stream, allow_pickle=False, **self.timeline())
        )
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
        write_text(self._directory / "summary.json", json.dumps(finite, indent=2, allow_nan=False) + "\n")
        self._csv.close()

    def complete_bounds(self) -> None:
        """Compute the bounds that were too large to compute during the run, and write iterations.csv anew."""
        if not self._late:
            return
        self._csv.close()
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for place, (values, speeds) in enumerate(self._late):
            self.bounds[place] = coding.clairvoyant_bound(self._assignment, self._parts, speeds)
            values |= {"bound": self.bounds[place], "efficiency": self.bounds[place] / values["seconds"]}
            writer.writerow(_formatted(values))
        write_text(self._directory / "iterations.csv", text.getvalue())
        self._late.clear()

    def timeline(self) -> dict[str, np.ndarray]:
        """Every chunk that was worked on; fate indexes `fates`."""
        return {
            "worker": np.array(self._worker, np.int32),
            "chunk": np.array(self._chunk, np.int32),
            "iteration": np.array(self._iteration, np.int32),
            "start": np.array(self._start),
            "seconds": np.array(self._seconds),
            "fate": np.array(self._fate, np.int8),
            "fates": np.array(["used", "late", "abandoned", "lost"]),
        }

    def _seconds_per_chunk(self, row: Row) -> np.ndarray:
        # A worker that finished nothing by T had more than T seconds per chunk, so infinity changes no bound below T.
        total, count = np.zeros(len(self._finished)), np.zeros(len(self._finished))
        for (worker, _), (_, seconds) in row.reports.items():
            total[worker - 1] += seconds
            count[worker - 1] += 1
        speeds = np.full(len(count), np.inf)
        np.divide(total, count, out=speeds, where=count > 0)
        return speeds

    def _uncoded_seconds(self, speeds: np.ndarray) -> float:
        # the slowest worker's own chunks at its speed: this iteration's, else its mean, else the longest it abandoned
        mean = np.divide(self._finished_seconds, self._finished, out=self._abandoned.copy(), where=self._finished > 0)
        return float((self._own_chunks * np.where(np.isfinite(speeds), speeds, mean)).max())


def _formatted(row: dict[str, Any]) -> list[Any]:
    values = (row[column] for column in COLUMNS)
    return [f"{value:.9g}" if isinstance(value, float) else value for value in values]


def _make_room(directory: Path) -> None:
    """Make the run directory; an earlier run of the same name is kept under a number, other files are never moved."""
    try:
        if directory.exists() and any(directory.iterdir()):
            if not directory.name or not (directory / "iterations.csv").exists():
                raise UserError(
                    f"output: {directory}: holds other files, which stay where they are; give the run its own directory"
                )
            number = 1
            while directory.with_name(f"{directory.name}.{number}").exists():
                number += 1
            directory.rename(directory.with_name(f"{directory.name}.{number}"))
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"output: {directory}: {error.strerror}; a directory that can be written is needed") from None
