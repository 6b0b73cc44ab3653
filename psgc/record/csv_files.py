"""iterations.csv and lost.csv: the text of their rows, and the rows of a file, whatever is in it."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from psgc.disk import open_regular
from psgc.run_rows import COLUMNS, COUNTS, MOST, OPTIONAL, IterationRow, WorkerEvent

LONGEST = 1 << 20  # bytes of a line
TEXTS = ("host", "event", "reason")  # columns that are not of numbers


def csv_text(*rows: Iterable[Any]) -> str:
    """The rows as they stand in a file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def row_text(row: IterationRow) -> str:
    """The line of iterations.csv with nine digits of each number."""
    values = (getattr(row, column) for column in COLUMNS)
    return csv_text([f"{value:.9g}" if isinstance(value, float) else value for value in values])


def csv_rows(path: Path, refuse: Callable[[str], object], known: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file with these columns, except a last one that is not written to its end.

    refuse: called with what is wrong with the file or with a row; when it returns, that is left out.
    Raises OSError, csv.Error.
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
    """The rows of an iterations.csv, which may be damaged, before the iteration `end`."""
    last = -1
    with suppress(OSError, csv.Error):
        for row in csv_rows(path, lambda _: None, COLUMNS):
            if last < row["iteration"] < end:
                last = row["iteration"]
                yield IterationRow(**row)


def earlier_events(path: Path) -> list[WorkerEvent]:
    """The rows of a lost.csv, which may be damaged."""
    try:
        return [WorkerEvent(**row) for row in csv_rows(path, lambda _: None, WorkerEvent._fields)]
    except (OSError, csv.Error):
        return []


def _value(column: str, text: str) -> float | str | None:
    """The value of a field in this column, None for one that may be empty and is. Raises ValueError."""
    if column in OPTIONAL and not text:
        return None
    if column in TEXTS:
        return text
    if column in COUNTS or column in ("worker", "repeated"):
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
