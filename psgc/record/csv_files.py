"""iterations.csv, evaluations.csv, lost.csv, restores.csv: writing their rows, and reading those of damaged files."""

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from psgc.disk import GrowingFile, open_regular, write_text
from psgc.run_rows import COLUMNS, COUNTS, HELD_OUT, MOST, OPTIONAL, EvaluationRow, IterationRow, WorkerEvent

RESTORED = "PSGC_RESTORED"  # the number of ranks before, and the directory of the run that `psgc launch` starts again
LONGEST = 1 << 20  # bytes of a line
TEXTS = ("host", "event", "reason", "name")  # columns of text; all others are numbers
WHOLE = (*COUNTS, "worker", "repeated", "epoch")  # columns of whole numbers
Row = TypeVar("Row", EvaluationRow, WorkerEvent, "Restored")


def csv_text(*rows: Iterable[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def row_text(row: IterationRow) -> str:
    """One line of iterations.csv, with nine digits of each number, and all of the held-out figures.

    A resumed run compares its own held-out figures with these. Of rounded ones an equal one might be better.
    """
    values = ((column, getattr(row, column)) for column in COLUMNS)
    return csv_text(
        [f"{value:.9g}" if isinstance(value, float) and column not in HELD_OUT else value for column, value in values]
    )


def csv_rows(path: Path, refuse: Callable[[str], object], known: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file, without an incomplete last row. Raises OSError, csv.Error.

    refuse: is called with a message about a bad file or row; if it returns, the file or the row is left out
    known: the columns that the file must have
    """
    rows = csv.reader(_lines(path))
    columns = tuple(next(rows, ()))
    if not columns:
        refuse("empty, expected a line with the names of the columns")
    elif columns != known:
        refuse(f"written by another version of psgc: expected the columns {', '.join(known)}")
    for line, row in enumerate(rows if columns == known else (), start=2):
        if len(row) != len(columns):
            refuse(f"damaged: row {line} has {len(row)} values, expected {len(columns)}")
            continue
        try:
            yield {column: _value(column, text) for column, text in zip(columns, row, strict=True)}
        except ValueError as error:
            refuse(f"damaged: row {line}: {error}")


def earlier_rows(path: Path, end: float = math.inf) -> Iterator[IterationRow]:
    """The rows of an iterations.csv before the iteration `end`. Damaged rows are left out."""
    last = -1
    with suppress(OSError, csv.Error):
        for row in csv_rows(path, lambda _: None, COLUMNS):
            if last < row["iteration"] < end:
                last = row["iteration"]
                yield IterationRow(**row)


def earlier(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of another file, each as a `kind`. Damaged rows are left out."""
    try:
        return [kind(**row) for row in csv_rows(path, lambda _: None, kind._fields)]
    except (OSError, csv.Error):
        return []


class RowFile:
    """Writes a file that is there from its first row on.

    columns: its columns
    rows: those that it begins with, after a resumption
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]] = ()) -> None:
        self._path, self._before, self._new = path, csv_text(columns, *rows).encode(), b""
        self._file: GrowingFile | None = None

    def begin(self) -> None:
        """Replace the file of the run before, now and not with the first row. Raises OSError."""
        self._file = GrowingFile(self._path, self._before)

    def write(self, *rows: Iterable[Any]) -> None:
        """Write these rows, after those that could not be written before. Raises OSError."""
        text = csv_text(*rows).encode()
        if self._file is not None:
            self._file.write(text)
            return
        self._new += text
        if self._new:
            self._file, self._new = GrowingFile(self._path, self._before + self._new), b""

    def close(self) -> None:
        """Close the file. Rows may still follow: they open it again."""
        if self._file is not None:
            with self._file.reader() as stream:
                self._before = stream.read()
            self._file.close()
            self._file = None


class Restored(NamedTuple):
    """A row of restores.csv: `psgc launch` started the run again with all workers.

    iteration: the first iteration after the restart
    seconds: time from the last step before the restart to the first step after it
    repeated: number of steps that were made before the restart and made again
    """

    iteration: int
    seconds: float
    repeated: int


def started_again(ranks: int, directory: Path) -> dict[str, str]:
    """The variable that tells processes which run they are to go on with, and how many ranks it had."""
    return {RESTORED: f"{ranks} {directory.absolute()}"}


def restored() -> bool:
    """Whether `psgc launch` has started these processes to go on with a run, and they do not yet (`ranks_before`)."""
    return bool(os.environ.get(RESTORED))


def ranks_before(directory: Path, was_done: bool = False) -> int:
    """The number of ranks before `psgc launch` started the run in `directory` again; 0 if it did not.

    On rank 0, once for each run that goes on from a checkpoint. Earlier runs of the same script were done (`was_done`),
    with the same ranks, and the script passes over them. Later runs are new.
    """
    ranks, _, named = os.environ.get(RESTORED, "0").partition(" ")
    is_named = bool(named) and _is_same(Path(named), directory)
    if is_named:
        del os.environ[RESTORED]
    return int(ranks) if is_named or was_done else 0


def _is_same(directory: Path, other: Path) -> bool:
    """Whether both are the same directory, maybe by a link."""
    try:
        return directory.samefile(other)
    except OSError:  # one of them is not there
        return False


class RestoreRecord:
    """Writes restores.csv. Create it before iterations.csv is written anew.

    resume_at: the first iteration of a resumed run; None for a new run
    is_restored: whether `psgc launch` has started the run again
    """

    def __init__(self, directory: Path, resume_at: int | None, is_restored: bool) -> None:
        self._path, self._record = directory / "restores.csv", directory / "iterations.csv"
        self.rows: list[Restored] = []
        self._last_step: float | None = None
        self._is_whole = True  # whether the file has all rows
        if resume_at is None:
            return
        self.rows = earlier(self._path, Restored)
        if is_restored:
            with suppress(OSError):
                self._last_step = self._record.stat().st_mtime  # a row is written right after its step
                self._repeated = sum(row.iteration >= resume_at for row in earlier_rows(self._record))

    def stepped(self, iteration: int) -> None:
        """Call when the row of this iteration is written. Raises OSError when the file cannot be written."""
        if self._last_step is not None:
            # both times are by the clock of the file system, which may be another host's
            seconds, self._last_step = self._record.stat().st_mtime - self._last_step, None
            self.rows.append(Restored(iteration, round(max(0.0, seconds), 3), self._repeated))
            self._is_whole = False
        self.write()

    def write(self) -> None:
        """Write the row that could not be written before, if any. Raises OSError."""
        if not self._is_whole:
            write_text(self._path, csv_text(Restored._fields, *self.rows))
            self._is_whole = True


def _value(column: str, text: str) -> float | str | None:
    """The value of a field in this column; None for an empty field of an optional column. Raises ValueError."""
    if column in OPTIONAL and not text:
        return None
    if column in TEXTS:
        return text
    if column in WHOLE:
        if text.isdecimal() and len(text) < 19:
            return int(text)
        raise ValueError(f"{column}: expected a whole number, got {text[:40]!r}")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{column}: expected a number, got {text[:40]!r}") from None
    is_unknown = column == "bound" and not math.isfinite(value)
    if column in MOST and not (0 <= value <= MOST[column] or is_unknown):
        raise ValueError(f"{column}: expected 0 to {MOST[column]:g}, got {text[:40]!r}")
    return value


def _lines(path: Path) -> Iterator[str]:
    with open_regular(path) as stream:
        while (line := stream.readline(LONGEST)).endswith(b"\n"):
            yield line.decode(errors="replace")
        if len(line) == LONGEST:
            raise csv.Error(f"a line is longer than {LONGEST} bytes")
