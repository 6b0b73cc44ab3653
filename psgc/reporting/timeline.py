"""The timeline of a run: every chunk that a worker worked on, and what became of it.

While the run goes it grows in `timeline.raw`, iteration by iteration, so that a run that is killed has one as well: a
line of JSON, then entries of 29 bytes. When the run ends, `timeline.npz` takes its place.
"""

import errno
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from psgc.data.npz import map_npz
from psgc.errors import UserError, one_line
from psgc.regular_files import open_regular
from psgc.writing import GrowingFile, write_whole

OUTCOMES = ("used", "late", "abandoned", "lost")  # in the order of psgc.server.observer.Outcome
ABANDONED = OUTCOMES.index("abandoned")  # the only ones that were not done
FORMAT = 1  # of timeline.raw
LONGEST = 1e9  # seconds: more than a run can have taken
_ENTRY = np.dtype(
    [("worker", "<i4"), ("chunk", "<i4"), ("iteration", "<i4"), ("start", "<f8"), ("seconds", "<f8"), ("outcome", "i1")]
)
_pack = struct.Struct("<iiiddb").pack  # one _ENTRY
COLUMNS = _ENTRY.names or ()
RANGES = {
    "worker": (1, np.inf),
    "chunk": (0, np.inf),
    "iteration": (0, np.inf),
    "start": (0, LONGEST),
    "seconds": (0, LONGEST),
    "outcome": (0, len(OUTCOMES)),
}  # the least value, and the first that is too large
LONGEST_HEAD = 1000  # bytes of the first line of timeline.raw
OLD_NAMES = {"fate": "outcome", "fates": "outcomes"}  # that columns of timeline.npz had once
PIECE = 1 << 18  # entries that are looked at together

Columns = dict[str, np.ndarray]


class Timeline:
    """The timeline of the run in `directory`, with so many workers and chunks, as it is made."""

    def __init__(self, directory: Path, workers: int, chunks: int) -> None:
        self._directory = directory
        self._head = json.dumps({"format": FORMAT, "workers": workers, "chunks": chunks}).encode() + b"\n"
        self._entries = bytearray()
        self._taken = self._written = 0  # bytes of them that `new` has given, and that timeline.raw has been given
        self._raw: GrowingFile | None = None
        self.dropped = False

    def add(self, worker: int, chunk: int, iteration: int, start: float, seconds: float, outcome: int) -> None:
        """One chunk that a worker worked on; start: seconds after the worker had the iteration's parameters."""
        self._entries += _pack(worker, chunk, iteration, start, seconds, outcome)

    def new(self) -> np.ndarray:
        """The entries since this was called last, as an array of `COLUMNS`."""
        entries = np.frombuffer(bytes(self._entries[self._taken :]), _ENTRY)
        self._taken = len(self._entries)
        return entries

    def flush(self) -> None:
        """Have all so far in timeline.raw. Raises OSError; what did not fit follows next time."""
        if self.dropped:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._raw is None:
            self._raw = GrowingFile(self._directory / "timeline.raw", self._head)
        new = bytes(self._entries[self._written :])
        self._written = len(self._entries)
        self._raw.write(new)

    def columns(self) -> Columns:
        """The entries by column, and `outcomes`, the names that `outcome` is an index of."""
        return _columns(np.frombuffer(bytes(self._entries), _ENTRY))

    def finish(self) -> None:
        """Write timeline.npz, or where it does not fit, all of timeline.raw. Raises OSError."""
        columns: Any = self.columns()
        path = self._directory / "timeline.npz"
        try:
            write_whole(path, lambda stream: np.savez(stream, allow_pickle=False, **columns))
        except OSError:
            self.flush()
            return
        self._remove_raw()

    def drop(self) -> None:
        """Remove what is on the disk, to make room for what counts more; `finish` may still succeed."""
        self.dropped = True
        self._remove_raw()
        with suppress(OSError):
            (self._directory / "timeline.npz").unlink(missing_ok=True)

    def _remove_raw(self) -> None:
        if self._raw is not None:
            self._raw.close()
        with suppress(OSError):
            (self._directory / "timeline.raw").unlink(missing_ok=True)


def read_timeline(directory: Path) -> tuple[Columns | None, dict[str, int]]:
    """The columns of the timeline in `directory`, None when it has none, and what is known of `workers` and `chunks`.

    Nothing is held in memory that the file does not hold on the disk. Of timeline.raw what is before the first entry
    that is not whole counts. Raises UserError when it is damaged or of another version.
    """
    path = directory / "timeline.raw"
    if path.exists():  # then the run has not come to its end, or goes on after an earlier one
        with _refusing(path):
            return _read_raw(path)
    path = directory / "timeline.npz"
    if not path.exists():
        return None, {}
    with _refusing(path):
        found = map_npz(str(path), ours=True)
        columns = {OLD_NAMES.get(name, name): np.asarray(array) for name, array in found.items()}
        if lacking := {*COLUMNS, "outcomes"} - set(columns):
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        _check(columns)
        return {name: columns[name] for name in (*COLUMNS, "outcomes")}, {}


def _read_raw(path: Path) -> tuple[Columns, dict[str, int]]:
    with open_regular(path) as stream:
        about = json.loads(stream.readline(LONGEST_HEAD))
        if about.pop("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        about = {name: int(about[name]) for name in ("workers", "chunks")}
        pieces = [np.zeros(0, _ENTRY)]
        while content := stream.read(PIECE * _ENTRY.itemsize):
            entries = np.frombuffer(content[: len(content) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
            valid = _valid(entries)
            whole = len(entries) if valid.all() else int(valid.argmin())
            pieces.append(entries[:whole])
            if whole < len(entries):
                if not sum(map(len, pieces)):
                    raise ValueError("its first entry is none")
                break
    return _columns(np.concatenate(pieces)), about


def _columns(entries: np.ndarray) -> Columns:
    return {name: entries[name].copy() for name in COLUMNS} | {"outcomes": np.array(OUTCOMES)}


def _valid(entries: np.ndarray) -> np.ndarray:
    """Which entries a run can have left."""
    valid = np.ones(len(entries), bool)
    for name, (least, most) in RANGES.items():
        valid &= (entries[name] >= least) & (entries[name] < most)
    return valid


def _check(columns: Columns) -> None:
    """Raises ValueError for what no run can have left."""
    if columns["outcomes"].shape != (len(OUTCOMES),) or tuple(columns["outcomes"].tolist()) != OUTCOMES:
        raise ValueError(f"expected the outcomes {', '.join(OUTCOMES)}")
    if len({columns[name].shape for name in COLUMNS}) != 1 or columns["worker"].ndim != 1:
        raise ValueError("its columns are not of one length")
    for name in COLUMNS:
        if columns[name].dtype.kind not in ("f" if name in ("start", "seconds") else "iu"):
            raise ValueError(f"{name} is of {columns[name].dtype}")
    for start in range(0, len(columns["worker"]), PIECE):
        for name, (least, most) in RANGES.items():
            piece = columns[name][start : start + PIECE]
            if not (piece.min() >= least and piece.max() < most):
                raise ValueError(f"{name} holds {piece.min()} to {piece.max()}")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns whatever a parser says about the file at `path` into one UserError."""
    try:
        yield
    except Exception as error:  # NumPy, zipfile and json raise many kinds
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read: {error.strerror.lower()}") from None
        raise UserError(f"{path}: damaged, or of another version of psgc ({one_line(error)})") from None
