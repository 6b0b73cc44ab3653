"""The run directory: config.yaml, iterations.csv, lost.csv, the timeline, params.npy, summary.json.

`iterations.csv` grows row by row and is readable at any moment, and so are `timeline.raw` (`psgc.reporting.timeline`)
and `lost.csv`, which is there when a worker was lost; the other files are written whole when the run ends, however it
ends.
"""

import errno
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse

from psgc import coding
from psgc.errors import RunFailed, UserError
from psgc.reporting.csv_files import COLUMNS, LOST_COLUMNS, csv_text, earlier_losses, earlier_rows, whole_rows
from psgc.reporting.pace import Paces
from psgc.reporting.timeline import Timeline, read_timeline
from psgc.terminal import say
from psgc.writing import NO_ROOM, GrowingFile, write_text, write_whole

INLINE_COPIES = 20_000  # chunk copies up to which the bound takes no more than a worker's first chunk, or 5 ms


class Row(Protocol):
    """What the server knows of an iteration; `reports` maps (worker, chunk, which time) to (start, seconds)."""

    iteration: int
    seconds: float
    loss: float | None  # None: the problem has none; an empty field in iterations.csv
    recovered: int
    missing: int
    error_measure: float
    redundant: int
    bytes: int
    bytes_in: int
    lost: int
    reports: dict[tuple[int, int, int], tuple[float, float]]


class Recorder:
    """Keeps the record of a run in `directory`, which is there, and empty unless `resume_at` is given.

    assignment: (chunks, workers), what the workers hold under the schedule; parts: copies that determine a chunk;
    own_chunks: how many chunks each worker would do if nothing were redundant.
    resume_at: go on with the record in `directory` from this iteration on; what it has of later ones is dropped.
    """

    def __init__(
        self,
        directory: Path,
        config_text: str,
        assignment: scipy.sparse.csr_array,
        parts: int,
        own_chunks: Sequence[int],
        resume_at: int | None = None,
    ) -> None:
        self._named = directory
        self._assignment = assignment
        self._parts = parts
        self._paces = Paces(np.asarray(own_chunks))
        self._directory = directory = directory.resolve()  # a user may link it, but nothing in it is a link
        self._timeline = Timeline(directory, assignment.shape[1], assignment.shape[0])
        # one chunk that a worker worked on; called for each of them, so nothing else is done here
        self.chunk: Callable[[int, int, int, float, float, int], None] = self._timeline.add
        if resume_at is not None:
            self._take_timeline(resume_at)
        earlier = [] if resume_at is None else earlier_rows(directory / "iterations.csv", resume_at)
        try:
            (directory / "summary.json").unlink(missing_ok=True)  # the run has not come to its end
            write_text(directory / "config.yaml", config_text)
            rows = csv_text(COLUMNS, *(row.values() for row in earlier))
            self._csv = GrowingFile(directory / "iterations.csv", rows.encode())
            self._timeline.flush()
            self._paces.count(self._timeline.new())
        except OSError as error:
            raise unwritable(self._named, error) from None
        self._earlier = earlier  # rows of iterations.csv from before this part of the run
        self.numbers = array("q", (int(row["iteration"]) for row in earlier))  # of the iterations
        self.seconds = array("d", (float(row["seconds"]) for row in earlier))  # of each iteration
        self.bounds = array("d", (float(row["bound"]) for row in earlier))
        self.uncoded = array("d")  # what each iteration of this part would have taken without redundancy
        self.bytes = sum(int(row["bytes"]) for row in earlier)
        self.final_loss = float(earlier[-1]["loss"]) if earlier and earlier[-1]["loss"] else None
        self.error_measures = array("d", (float(row["error_measure"]) for row in earlier))
        self.actual_errors: list[float] = [float(row["actual_error"]) for row in earlier if int(row["missing"])]
        # iterations whose bound is still to be computed, with who held what and how fast everybody was
        self._late: list[tuple[int, scipy.sparse.csr_array, np.ndarray]] = []
        self.losses: list[dict[str, Any]] = []  # workers lost, in the wrong and returned: the rows of lost.csv
        self._lost_csv: GrowingFile | None = None
        self.lacks_room = False  # for params.npy
        self._saved: np.ndarray | None = None  # the parameters that params.npy holds
        self.not_whole: dict[str, str] = {}  # files that lack something on the disk, and why
        if resume_at is not None:
            self.losses = earlier_losses(directory / "lost.csv")

    def iteration(self, row: Row) -> None:
        """One finished iteration, after its chunks."""
        self._keep("timeline.raw", self._timeline.flush)
        self._paces.count(self._timeline.new())
        speeds = self._paces.seconds_per_chunk(row.reports)
        bound = float("nan")
        if self._assignment.nnz <= INLINE_COPIES:
            bound = coding.clairvoyant_bound(self._held(row), self._parts, speeds)
            bound = bound if math.isfinite(bound) else float("nan")  # approximate, and somebody reported nothing
        self.numbers.append(row.iteration)
        self.seconds.append(row.seconds)
        self.bounds.append(bound)
        self.uncoded.append(self._paces.uncoded_seconds(speeds))
        self.bytes += row.bytes
        self.final_loss = row.loss
        values = {
            "iteration": row.iteration,
            "loss": row.loss,
            "seconds": row.seconds,
            "bound": bound,
            "efficiency": bound / row.seconds,
            "error_measure": row.error_measure,
            "missing": row.missing,
            "actual_error": float("nan") if row.missing else 0.0,
            "recovered": row.recovered,
            "redundant": row.redundant,
            "bytes": row.bytes,
            "bytes_in": row.bytes_in,
            "lost": row.lost,
        }
        if self._assignment.nnz > INLINE_COPIES:
            self._late.append((row.iteration, self._held(row), speeds))
        self.error_measures.append(row.error_measure)
        text = csv_text(_formatted(values)).encode()
        self._keep("iterations.csv", lambda: self._csv.write(text))

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> str:
        """A worker is not there any more, or will not be asked again; returns the line to show."""
        self._lost_row(iteration, worker, host, "lost", reason)
        return f"worker {worker} on {host} lost in iteration {iteration}: {reason}"

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> str:
        """A worker sent something that the others' copies contradict; returns the line to show."""
        self._lost_row(iteration, worker, host, "wrong", reason)
        return f"worker {worker} on {host} in the wrong in iteration {iteration}: {reason}"

    def returned(self, worker: int, iteration: int) -> str:
        """A lost worker takes part again; returns the line to show."""
        self._lost_row(iteration, worker, "", "returned", "")
        return f"worker {worker} is back in iteration {iteration}"

    def _lost_row(self, *values: Any) -> None:
        self.losses.append(dict(zip(LOST_COLUMNS, values, strict=True)))
        self._keep("lost.csv", lambda: self._write_lost_row(values))

    def _write_lost_row(self, values: Iterable[Any]) -> None:
        if self._lost_csv is None:
            rows = csv_text(LOST_COLUMNS, *(event.values() for event in self.losses))
            self._lost_csv = GrowingFile(self._directory / "lost.csv", rows.encode())
        else:
            self._lost_csv.write(csv_text(values).encode())

    def failure_text(self, worker: int, text: str) -> str:
        """Keep a worker's text; returns its first line, which names the error, and where the traceback is."""
        lines = text.strip().splitlines() or ["it failed without a reason"]
        if len(lines) == 1:
            return lines[0]
        name = f"worker-{worker}-error.txt"
        try:
            write_text(self._directory / name, text)
        except OSError as error:
            return f"{lines[0]} (no traceback in {self._named / name}: {error.strerror})"
        return f"{lines[0]} (traceback in {self._named / name})"

    def finish(self, params: np.ndarray, summary: dict[str, Any]) -> dict[str, Any]:
        """Write what a finished, failed or interrupted run leaves: params, timeline, summary; returns the summary.

        It says which files lack something (`not_whole`). Where there is no room, the timeline makes some. A run whose
        parameters cannot be written has failed. Raises OSError when the summary cannot be written.
        """
        self._write_params(params)
        self._keep("timeline.raw", self._timeline.finish)
        self._keep("iterations.csv", self._csv.write)
        if self._lost_csv is not None:
            self._keep("lost.csv", self._lost_csv.write)
        try:
            summary = self._write_summary(summary)
        except OSError as error:
            self._drop_timeline(error)
            summary = self._write_summary(summary)
        if not self.not_whole:
            self._csv.close()
            if self._lost_csv is not None:
                self._lost_csv.close()
                self._lost_csv = None
        return summary

    def _write_params(self, params: np.ndarray) -> None:
        def write() -> None:
            path = self._directory / "params.npy"
            write_whole(path, lambda stream: np.save(stream, params, allow_pickle=False))

        if self._saved is params:
            return
        self.not_whole.pop("params.npy", None)
        try:
            try:
                write()
            except OSError as error:
                self._drop_timeline(error)
                write()
            self._saved, self.lacks_room = params, False
        except OSError as error:
            self.lacks_room = error.errno in NO_ROOM
            self.not_whole["params.npy"] = str(error.strerror)

    def _write_summary(self, summary: dict[str, Any]) -> dict[str, Any]:
        if self.not_whole:
            summary = summary | {"not_whole": dict(self.not_whole)}
        if "params.npy" in self.not_whole and summary.get("status") == "done":
            reason = f"params.npy: {self.not_whole['params.npy']}"
            summary |= {"status": "failed", "reason": reason, "exit_code": RunFailed.exit_code}
        # JSON has no nan and no inf, and null says that there is no such number: "nan" and "inf" are text
        finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
        write_text(self._directory / "summary.json", json.dumps(finite, indent=2, allow_nan=False) + "\n")
        return summary

    def drop_timeline(self) -> None:
        """Remove the timeline from the disk, to make room for a checkpoint."""
        if not self._timeline.dropped:
            lost = "makes room for a checkpoint; the record lacks something, the run goes on"
            say(f"psgc: {self._named / 'timeline.raw'} {lost}", error=True)
            self._drop_timeline(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _drop_timeline(self, error: OSError) -> None:
        """Make room; raises `error` when that was not what lacked."""
        if error.errno not in NO_ROOM:
            raise error
        self._timeline.drop()
        self.not_whole["timeline.raw"] = str(error.strerror)

    def complete(self, actual_errors: Mapping[int, float]) -> None:
        """Fill in what was not known during the run, and write iterations.csv anew.

        actual_errors: by iteration; the bounds that were too large to compute during the run are computed here.
        """
        found: dict[int, dict[str, float]] = {i: {"actual_error": error} for i, error in actual_errors.items()}
        self.actual_errors += actual_errors.values()
        for place, (iteration, held, speeds) in enumerate(self._late, start=len(self._earlier)):
            bound = self.bounds[place] = coding.clairvoyant_bound(held, self._parts, speeds)
            found.setdefault(iteration, {}).update(bound=bound, efficiency=bound / self.seconds[place])
        self._late.clear()
        if found:
            self._keep("iterations.csv", lambda: self._fill_in(found))

    def _fill_in(self, found: Mapping[int, Mapping[str, float]]) -> None:
        self._csv.write()  # what did not fit before
        rows = whole_rows(path := self._directory / "iterations.csv", COLUMNS)
        for row in rows:
            row |= {column: f"{value:.9g}" for column, value in found.get(int(row["iteration"]), {}).items()}
        write_text(path, csv_text(COLUMNS, *(row.values() for row in rows)))

    def _keep(self, name: str, write: Callable[[], object]) -> None:
        """Write to the file `name` of the record. A run does not end because something of its record is lost."""
        try:
            write()
        except OSError as error:
            if name not in self.not_whole:
                lost = f"{self._named / name}: {error.strerror}; the record lacks something"
                say(f"psgc: {lost}, the run goes on", error=True)
            self.not_whole[name] = str(error.strerror)
        else:
            self.not_whole.pop(name, None)

    def timeline(self) -> dict[str, np.ndarray]:
        """Every chunk that was worked on; outcome indexes `outcomes`."""
        return self._timeline.columns()

    def _take_timeline(self, resume_at: int) -> None:
        """What the timeline of an earlier part has of iterations before `resume_at`, if it is there and whole."""
        try:
            columns, _ = read_timeline(self._directory)
        except UserError:
            return
        if columns is None:
            return
        names = ("worker", "chunk", "iteration", "start", "seconds", "outcome")
        kept = (columns["iteration"] < resume_at) & (columns["worker"] <= self._assignment.shape[1])
        for entry in zip(*(columns[name][kept].tolist() for name in names), strict=True):
            self.chunk(*entry)

    def _held(self, row: Row) -> scipy.sparse.csr_array:
        """Who could do what in this iteration: the assignment, and when workers are lost also what others took over."""
        if not row.lost or not row.reports:
            return self._assignment
        workers, chunks, _ = np.array(list(row.reports)).T
        done = scipy.sparse.csr_array((np.ones(len(chunks)), (chunks, workers - 1)), shape=self._assignment.shape)
        return coding.from_matrix((self._assignment + done > 0).astype(np.int8))


def _formatted(row: dict[str, Any]) -> list[Any]:
    values = (row[column] for column in COLUMNS)
    return [f"{value:.9g}" if isinstance(value, float) else value for value in values]


def unwritable(directory: Path, error: OSError) -> UserError:
    """What is said when nothing can be written in the run directory."""
    where = error.filename or directory
    return UserError(f"output: {where}: {error.strerror}; a directory that can be written is needed")
