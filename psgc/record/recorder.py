"""The recorder of a run: it writes the run directory.

iterations.csv, evaluations.csv, lost.csv and the timeline grow row by row and can be read at any moment. The other
files are written at once: config.yaml at the start, params.npy and summary.json when the run ends or fails.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse

from psgc.disk import NO_ROOM, GrowingFile, write_text, write_whole
from psgc.errors import RunFailed, UserError
from psgc.record.csv_files import RestoreRecord, RowFile, csv_text, earlier, earlier_rows, row_text
from psgc.record.files import json_text
from psgc.record.measures import slow_workers
from psgc.record.tally import BoundSampler, Tally, seconds_per_chunk
from psgc.record.timeline import ENTRY, Columns, TimelineWriter, pieces, read_timeline, recorded_every, remove_timeline
from psgc.run_rows import COLUMNS, TIMELINE, EvaluationRow, IterationRow, Outcome, WorkerEvent
from psgc.terminal import say

BEST, BEST_FIGURES = "best.npy", "best.json"  # the latter is written after the former


class Recorder:
    """Keeps the record of a run in a directory. Raises UserError.

    directory: the run directory; empty unless `resume_at` is given
    assignment: (chunks, workers), 0/1 matrix: the chunks that each worker holds under the schedule
    parts: number of copies that determine a chunk
    own_chunks: (workers,), number of chunks of each worker without redundancy
    iterations: largest number of iterations of the whole run
    resume_at: continue the record from this iteration; later rows are dropped
    took: seconds of the last iterations before `resume_at`, by iteration. After the death of rank 0 these may have no
        row; they get a row in which all else is unknown.
    is_restored: as of `RestoreRecord`
    """

    def __init__(
        self,
        directory: Path,
        config_text: str,
        assignment: scipy.sparse.csr_array,
        parts: int,
        own_chunks: Sequence[int],
        iterations: int,
        resume_at: int | None = None,
        took: Mapping[int, float] | None = None,
        is_restored: bool = False,
    ) -> None:
        self._named = directory
        self._directory = directory = directory.resolve()  # a user may link it, but nothing in it is a link
        self._num_chunks, self._workers = assignment.shape
        self._bounds = BoundSampler(assignment, parts)
        self.tally = Tally(np.asarray(own_chunks), self._num_chunks)
        self.events: list[WorkerEvent] = []  # the rows of lost.csv
        self.timeline_every = recorded_every(iterations, assignment.nnz)
        self.lacks_room = False  # the disk has no room for params.npy or summary.json
        self._saved: np.ndarray | None = None  # the parameters that params.npy holds
        self.not_whole: dict[str, str] = {}  # incomplete files, and why
        try:
            self.restores = RestoreRecord(directory, resume_at, is_restored)
            self._start(resume_at, took)
            # after iterations.csv, which shows that a run was here
            self._making_room(lambda: write_text(directory / "config.yaml", config_text))
            # last, since a run that cannot begin leaves them: they would say that the run has ended
            for name in ("summary.json", "params.npy"):
                (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self._named, error) from None
        # record one chunk; called for each chunk of each worker, so it is the writer's method itself
        self.chunk: Callable[[int, int, int, float, float, int], None] = self._timeline.add

    def _start(self, resume_at: int | None, took: Mapping[int, float] | None) -> None:
        """Begin the files that grow, with the rows of the run before `resume_at`."""
        path, text, timeline = self._directory / "iterations.csv", csv_text(COLUMNS), None
        lost, evaluations = self._directory / "lost.csv", self._directory / "evaluations.csv"
        evaluated: list[EvaluationRow] = []
        if resume_at is not None:
            for row in _with_missing(earlier_rows(path, resume_at), resume_at, took):
                self.tally.row(row)
                text += row_text(row)
            self.events = [event.resumed(resume_at) if took is None else event for event in earlier(lost, WorkerEvent)]
            evaluated = [found for found in earlier(evaluations, EvaluationRow) if found.iteration < resume_at]
            try:
                timeline, _ = read_timeline(self._directory)
            except UserError:
                timeline = None
        self._lost_csv = RowFile(lost, WorkerEvent._fields, self.events)
        self._evaluations = RowFile(evaluations, EvaluationRow._fields, evaluated)
        self._evaluated = max((found.iteration for found in evaluated), default=-1)

        seen: set[int] = set()  # iterations
        for entries in self._kept(timeline, resume_at):
            self.tally.count(entries)
            seen.update(np.unique(entries["iteration"]).tolist())
        if self.timeline_every > 1 and seen:
            self.tally.scale(len(self.tally.seconds) / len(seen))

        def begin(timeline: Columns | None) -> None:
            if resume_at is not None and evaluations.exists():
                self._evaluations.begin()
            self._csv = GrowingFile(path, text.encode())
            about = self._directory, self._workers, self._num_chunks, self.timeline_every
            self._timeline = TimelineWriter(*about, self._kept(timeline, resume_at))

        def lacks() -> int:
            """The error of `begin` for which room can be made, or 0."""
            try:
                begin(timeline)
            except OSError as error:
                if resume_at is None or error.errno not in (*NO_ROOM, errno.EFBIG):
                    raise
                return error.errno
            return 0

        if (lacking := lacks()) in NO_ROOM:
            (self._directory / "params.npy").unlink(missing_ok=True)  # it is written again at the end
            lacking = lacks()
        if lacking:  # here, since the error has references to the timeline: while it is mapped, its file takes room
            timeline = None
            remove_timeline(self._directory)
            begin(None)
            self._lacks("timeline.raw", OSError(lacking, os.strerror(lacking)))
            self._timeline.drop()  # what comes now needs the room
        if resume_at is not None and took is None:  # after a takeover, lost workers are still lost
            if any(event.is_undone for event in self.events):  # for a rank that takes over, which reads it
                self._keep("lost.csv", self._lost_csv.begin)
            self._all_are_back(resume_at)

    def _kept(self, timeline: Columns | None, end: int | None) -> Iterator[np.ndarray]:
        """The entries of the timeline of the run before that stay: those before the iteration `end`."""
        for piece in pieces(timeline) if timeline is not None else ():
            kept = (piece["iteration"] < end) & (piece["worker"] <= self._workers)
            entries = np.zeros(int(kept.sum()), ENTRY)
            for name in TIMELINE:
                entries[name] = piece[name][kept]
            yield entries

    def _all_are_back(self, iteration: int) -> None:
        """Record that lost workers have returned: all workers take part in a resumed run."""
        away = {}
        for event in self.events:
            if event.event != "wrong":
                away[event.worker] = event.event == "lost" and 0 < event.worker <= self._workers
        for worker in sorted(worker for worker, is_away in away.items() if is_away):
            self.event(WorkerEvent(iteration, worker, "", "returned", ""))

    def iteration(self, row: IterationRow) -> dict[str, float]:
        """Record a finished iteration, after its chunks. Fills in the bound, the efficiency and the error in `row`.

        Returns the values for loggers that are not in the row (`psgc.record.measures`).
        """
        entries = self._timeline.take()
        self._keep("timeline.raw", lambda: self._timeline.write(entries))
        mine = entries[entries["iteration"] == row.iteration]
        done = mine[mine["outcome"] != Outcome.ABANDONED]
        pace = seconds_per_chunk(done, self._workers)
        # an evaluation takes time that the times of the chunks do not have
        row.bound = math.nan if row.is_evaluated else self._bounds.bound(row, done, pace)
        row.efficiency = row.bound / row.seconds
        row.actual_error = math.nan if row.missing else 0.0
        self.tally.count(entries)
        self.tally.row(row)
        self.tally.iteration(row, mine, pace)
        text = row_text(row).encode()
        self._keep("iterations.csv", lambda: self._csv.write(text))
        self._keep("restores.csv", lambda: self.restores.stepped(row.iteration))
        return {
            "lost_workers": row.lost,
            "slow_workers": slow_workers(pace),
            "iterations": row.iteration + 1,
            "chunks": int(self.tally.chunks[Outcome.USED]),
            "redundant_chunks": self.tally.redundant,
            "bytes": self.tally.bytes,
            "restores": len(self.restores.rows),
            "takeovers": sum(event.event == "lost" and not event.worker for event in self.events),
        }

    def event(self, event: WorkerEvent) -> None:
        """Record that a worker is lost, has returned, or has sent a copy that differs from the copies of the others."""
        self.events.append(event)
        self._keep("lost.csv", lambda: self._lost_csv.write(event))

    def evaluated(self, rows: Sequence[EvaluationRow]) -> None:
        """Record evaluations, in order. Those that are recorded already are left out."""
        new = [row for row in rows if row.iteration > self._evaluated]
        if new:
            self._evaluated = new[-1].iteration
            self._keep("evaluations.csv", lambda: self._evaluations.write(*new))

    def failure_text(self, worker: int, text: str) -> str:
        """Save the text of a worker's error. Returns its first line, with the file of the traceback."""
        lines = text.strip().splitlines() or ["it failed without a reason"]
        if len(lines) == 1:
            return lines[0]
        name = f"worker-{worker}-error.txt"
        try:
            write_text(self._directory / name, text)
        except OSError as error:
            return f"{lines[0]} (no traceback in {self._named / name}: {error.strerror})"
        return f"{lines[0]} (traceback in {self._named / name})"

    def complete(self, actual_errors: Mapping[int, float]) -> None:
        """Fill in the actual errors, by iteration. They are known only after the run."""

        def write(stream: IO[bytes]) -> None:
            self._csv.write()  # rows that did not fit on the disk before
            stream.write(csv_text(COLUMNS).encode())
            for row in earlier_rows(path):
                row.actual_error = actual_errors.get(row.iteration, row.actual_error)
                stream.write(row_text(row).encode())

        path = self._directory / "iterations.csv"
        self.tally.actual_errors.extend(actual_errors.values())
        if actual_errors:
            self._keep("iterations.csv", lambda: write_whole(path, write))

    def finish(self, params: np.ndarray | None, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the parameters, if any, the timeline and the summary. Returns the summary with `not_whole`.

        On a full disk the timeline is removed for the other two files. If the parameters cannot be written, the run
        has failed. May be called again. Raises OSError when the summary cannot be written.
        """
        self.lacks_room = False
        if params is not None:
            self._write_params(params)
        entries = self._timeline.take()
        self.tally.count(entries)
        self._keep("timeline.raw", lambda: self._timeline.finish(entries))
        self._keep("iterations.csv", self._csv.write)
        self._keep("restores.csv", self.restores.write)
        self._keep("lost.csv", self._lost_csv.write)
        self._keep("evaluations.csv", self._evaluations.write)
        self._making_room(lambda: self._write_summary(summary))
        if not self.not_whole:
            for file in (self._csv, self._lost_csv, self._evaluations):
                file.close()
        return self._completed(summary)

    def _write_params(self, params: np.ndarray) -> None:
        path = self._directory / "params.npy"
        if self._saved is params:
            return
        self.not_whole.pop("params.npy", None)
        try:
            self._making_room(lambda: write_whole(path, lambda stream: np.save(stream, params, allow_pickle=False)))
            self._saved = params
        except OSError as error:
            self.not_whole["params.npy"] = str(error.strerror)

    def _write_summary(self, summary: dict[str, Any]) -> None:
        write_text(self._directory / "summary.json", json_text(self._completed(summary), indent=2))

    def _completed(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The summary with the files that are incomplete."""
        if self.not_whole:
            summary = summary | {"not_whole": dict(self.not_whole)}
        if "params.npy" in self.not_whole and summary.get("status") == "done":
            reason = f"params.npy: {self.not_whole['params.npy']}"
            summary |= {"status": "failed", "reason": reason, "exit_code": RunFailed.exit_code}
        return summary

    def keep_best(self, params: np.ndarray, figures: Mapping[str, float]) -> None:
        """Write the best parameters so far (`evaluate.keep_best`), and then their figures."""

        def write() -> None:
            write_whole(self._directory / BEST, lambda stream: np.save(stream, params, allow_pickle=False))
            write_text(self._directory / BEST_FIGURES, json.dumps(figures) + "\n")

        self._keep(BEST, write)

    def drop_best(self) -> None:
        """Remove the best parameters: they are wrong."""
        for name in (BEST, BEST_FIGURES):
            (self._directory / name).unlink(missing_ok=True)

    def drop_timeline(self) -> None:
        """Remove the timeline from the disk, to make room for a checkpoint."""
        if not self._timeline.is_dropped:
            text = "is removed to make room for a checkpoint; the record is incomplete, the run goes on"
            say(f"psgc: {self._named / 'timeline.raw'} {text}", error=True)
            self._drop_timeline()

    def _drop_timeline(self) -> None:
        self._timeline.drop()
        self.not_whole["timeline.raw"] = os.strerror(errno.ENOSPC)

    def _making_room(self, write: Callable[[], object]) -> None:
        """Write a file that matters more than the timeline. On a full disk, remove the timeline and try again."""
        try:
            write()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._drop_timeline()
            try:
                write()
            except OSError as again:
                self.lacks_room = again.errno in NO_ROOM
                raise

    def _keep(self, name: str, write: Callable[[], object]) -> None:
        """Write to the file `name` of the record. On an error, say that the record is incomplete, and continue."""
        try:
            write()
        except OSError as error:
            self._lacks(name, error)
        else:
            self.not_whole.pop(name, None)

    def _lacks(self, name: str, error: OSError) -> None:
        if name not in self.not_whole:
            text = f"{self._named / name}: {error.strerror}; the record is incomplete, the run goes on"
            say(f"psgc: {text}", error=True)
        self.not_whole[name] = str(error.strerror)


def _with_missing(rows: Iterable[IterationRow], end: int, took: Mapping[int, float] | None) -> Iterator[IterationRow]:
    """The rows, and then a row for each missing iteration before `end`. If `took` is None, no row is added."""
    last = -1
    for row in rows:
        last = row.iteration
        yield row
    if took is None:
        return
    for iteration in range(last + 1, end):
        yield IterationRow(iteration, seconds=took.get(iteration, 0.0))


def unwritable(directory: Path, error: OSError) -> UserError:
    """The error when nothing can be written in the run directory."""
    where = error.filename or directory
    return UserError(f"output: {where}: {error.strerror}; expected a directory that can be written")
