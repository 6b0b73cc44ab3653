"""The timeline of a run: every chunk that a worker worked on, and its outcome.

During the run the timeline grows in `timeline.raw`: a line of JSON, then entries of 29 bytes. So a killed run has a
timeline as well. When the run ends, `timeline.npz` replaces it. Both files are memory-mapped when they are read, so a
timeline may be larger than the memory.
"""

import errno
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from psgc.data.npz import map_npz
from psgc.disk import GrowingFile, open_regular, write_whole
from psgc.record.files import reading
from psgc.run_rows import OUTCOMES, TIMELINE

MOST_BYTES = 1_000_000_000  # of a timeline; if it would be larger, some iterations are left out
MOST_WAITING = 1 << 26  # bytes that are kept in memory while the disk is full
FORMAT = 1  # version of the format of timeline.raw
ENTRY = np.dtype([(name, field.dtype) for name, field in TIMELINE.items()])
_pack = struct.Struct("<iiiddb").pack  # one ENTRY
LONGEST_HEAD = 1000  # bytes of the first line of timeline.raw
PIECE = 1 << 18  # entries that are read at a time
SAME = 1e-9  # seconds by which the recorded times of the chunks of one pass may differ

Columns = dict[str, np.ndarray]


def recorded_every(iterations: int, copies: int) -> int:
    """The interval, in iterations, at which one is recorded, so that the timeline does not exceed `MOST_BYTES`.

    copies: number of chunks that all workers may compute in an iteration
    """
    return max(1, math.ceil(iterations * copies * ENTRY.itemsize / MOST_BYTES))


def passes(columns: Columns | np.ndarray) -> Columns:
    """The passes of an iteration, from its chunks. Chunks of one pass took the same time, with no pause between.

    Returns `worker`, `start`, `end` and `outcome`: (passes,); `order`: (chunks,), sorted by worker and start;
    `begins`: (passes,), the places in `order` at which the passes begin.

    >>> chunks = {"worker": [1, 1, 2, 1], "start": [0.0, 0.5, 0.5, 1.1], "seconds": [0.5] * 4, "outcome": [0] * 4}
    >>> found = passes({name: np.array(values) for name, values in chunks.items()})
    >>> found["worker"].tolist(), found["start"].tolist(), found["end"].tolist()
    ([1, 1, 2], [0.0, 1.1, 0.5], [1.0, 1.6, 1.0])
    """
    order = np.lexsort((columns["start"], columns["worker"]))
    start, seconds, worker, outcome = (columns[name][order] for name in ("start", "seconds", "worker", "outcome"))
    end = start + seconds
    follows = (np.diff(worker) == 0) & (np.diff(outcome) == 0)
    follows &= (np.abs(start[1:] - end[:-1]) < SAME) & (np.abs(np.diff(seconds)) < SAME)
    first = np.concatenate([[True], ~follows])[: len(order)]
    last = np.concatenate([~follows, [True]])[: len(order)]
    found = {"worker": worker[first], "start": start[first], "end": end[last], "outcome": outcome[first]}
    return found | {"order": order, "begins": np.flatnonzero(first)}


class TimelineWriter:
    """Writes the timeline of the run in `directory`. Only the newest iteration is in memory. Raises OSError.

    every: record only iterations that are a multiple of this
    before: the entries with which it begins, all of them; then it replaces the timeline of the run before, as a whole
    """

    def __init__(
        self, directory: Path, workers: int, chunks: int, every: int = 1, before: Iterable[np.ndarray] = ()
    ) -> None:
        self._directory = directory
        self._every = every
        self._new = bytearray()
        head = json.dumps({"format": FORMAT, "workers": workers, "chunks": chunks}).encode() + b"\n"
        self._raw = GrowingFile(directory / "timeline.raw", head, (entries.tobytes() for entries in before))
        self._is_finished = False
        self.gave_up = False  # nothing more is recorded, because the disk is full
        self.is_dropped = False

    def add(self, worker: int, chunk: int, iteration: int, start: float, seconds: float, outcome: int) -> None:
        """Add one chunk that a worker worked on. start: seconds after the worker had the iteration's parameters."""
        self._new += _pack(worker, chunk, iteration, start, seconds, outcome)

    def take(self) -> np.ndarray:
        """The entries since the last call, as an array of `ENTRY`."""
        new, self._new = self._new, bytearray()
        return np.frombuffer(new, ENTRY)

    def write(self, entries: np.ndarray) -> None:
        """Write these entries to timeline.raw. Raises OSError; entries that did not fit are written the next time."""
        if self._every > 1:
            entries = entries[entries["iteration"] % self._every == 0]
        if self.gave_up:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            self._raw.write(entries.tobytes())
        except OSError:
            self.gave_up = self._raw.waiting > MOST_WAITING
            raise

    def finish(self, entries: np.ndarray) -> None:
        """Write the last entries to timeline.raw and turn it into timeline.npz, or keep timeline.raw on a full disk.

        Raises OSError when entries are missing.
        """
        if self._is_finished and not self.is_dropped:
            return
        self.write(entries)
        path = self._directory / "timeline.npz"
        with suppress(OSError), self._raw.reader() as stream:
            start = len(stream.readline())
            columns: Any = _map(stream, start, (os.fstat(stream.fileno()).st_size - start) // ENTRY.itemsize)
            write_whole(path, lambda stream: np.savez(stream, allow_pickle=False, **columns))
            self._is_finished = True
            self._raw.close()
            remove_timeline(self._directory, ["timeline.raw"])

    def drop(self) -> None:
        """Remove the timeline, to make room for files that matter more."""
        self.gave_up = self.is_dropped = True
        self._raw.close()
        remove_timeline(self._directory)


def remove_timeline(directory: Path, names: Sequence[str] = ("timeline.raw", "timeline.npz")) -> None:
    for name in names:
        with suppress(OSError):
            (directory / name).unlink(missing_ok=True)


def read_timeline(directory: Path) -> tuple[Columns | None, dict[str, int]]:
    """The mapped columns of the timeline in `directory`, or None, and the numbers `workers` and `chunks`, if known.

    timeline.raw is read up to its first damaged entry. Raises UserError for a damaged timeline or another version.
    """
    path = directory / "timeline.raw"
    if path.exists():  # the run has not ended, or was resumed
        with reading(path):
            return _map_raw(path)
    path = directory / "timeline.npz"
    if not path.exists():
        return None, {}
    with reading(path):
        columns = {name: np.asarray(array) for name, array in map_npz(str(path), ours=True).items()}
        if lacking := {*TIMELINE, "outcomes"} - set(columns):
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        _check(columns)
        return {name: columns[name] for name in (*TIMELINE, "outcomes")}, {}


def pieces(columns: Columns) -> Iterator[Columns]:
    """The timeline `PIECE` entries at a time."""
    for start in range(0, len(columns["worker"]), PIECE):
        yield {name: columns[name][start : start + PIECE] for name in TIMELINE}


def _map_raw(path: Path) -> tuple[Columns, dict[str, int]]:
    with open_regular(path) as stream:
        about = json.loads(stream.readline(LONGEST_HEAD))
        if about.pop("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        about = {name: int(about[name]) for name in ("workers", "chunks")}
        start, count = stream.tell(), 0
        while content := stream.read(PIECE * ENTRY.itemsize):
            valid = _valid(np.frombuffer(content, ENTRY, len(content) // ENTRY.itemsize))
            count += len(valid) if valid.all() else int(valid.argmin())
            if not valid.all():
                if not count:
                    raise ValueError("its first entry is damaged")
                break
        return _map(stream, start, count), about


def _map(stream: IO[bytes], start: int, count: int) -> Columns:
    """The columns of `count` entries in a file, from the byte `start`."""
    entries: Any = np.memmap(stream, ENTRY, "r", start, (count,)) if count else np.zeros(0, ENTRY)
    return {name: np.asarray(entries[name]) for name in TIMELINE} | {"outcomes": np.array(OUTCOMES)}


def _valid(entries: np.ndarray | Columns) -> np.ndarray:
    """Which entries a run can have left."""
    valid = np.ones(len(entries["worker"]), bool)
    for name, field in TIMELINE.items():
        valid &= (entries[name] >= field.least) & (entries[name] < field.end)
    return valid


def _check(columns: Columns) -> None:
    """Raises ValueError for columns that no run can have written."""
    if tuple(columns["outcomes"].reshape(-1).tolist()) != OUTCOMES:
        raise ValueError(f"expected the outcomes {', '.join(OUTCOMES)}")
    if len({columns[name].shape for name in TIMELINE}) != 1 or columns["worker"].ndim != 1:
        raise ValueError("its columns are not of one length")
    for name in TIMELINE:
        if columns[name].dtype.kind not in ("f" if name in ("start", "seconds") else "iu"):
            raise ValueError(f"{name} is of {columns[name].dtype}")
    for piece in pieces(columns):
        if not (valid := _valid(piece)).all():
            entry = {name: column[valid.argmin()].item() for name, column in piece.items()}
            raise ValueError(f"no run has the entry {entry}")
