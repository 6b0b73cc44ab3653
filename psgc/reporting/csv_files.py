"""iterations.csv and lost.csv: the text of their rows, and the rows of a file, whatever is in it."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from psgc.regular_files import open_regular
from psgc.run_rows import COLUMNS, COUNTS, EARLIER_COLUMNS, MOST, OPTIONAL, IterationRow, WorkerEvent

LONGEST = 1 << 20  # bytes of a line


def csv_text(*rows: Iterable[Any]) -> str:
    """The rows as they stand in a file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def row_text(row: IterationRow) -> str:
    """The line of iterations.csv with nine digits of each number."""
    values = (getattr(row, column) for column in COLUMNS)
    return csv_text([f"{value:.9g}" if isinstance(value, float) else value for value in values])


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows of a file, except a last one that is not written to its end. Raises OSError, csv.Error."""
    return csv.reader(_lines(path))


def number(column: str, text: str) -> float:
    """The value of a field in this column. Raises ValueError that says what is expected."""
    if column in COUNTS or column == "worker":
        if text.isdecimal() and len(text) < 19:
            return int(text)
        raise ValueError(f"expected a whole number, got {text[:40]!r}")
    try:
        value = float(text or "nan") if column in OPTIONAL else float(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text[:40]!r}") from None
    is_unknown = column == "bound" and not math.isfinite(value)
    if column in MOST and not (0 <= value <= MOST[column] or is_unknown):
        raise ValueError(f"expected 0 to {MOST[column]:g}, got {text[:40]!r}")
    return value


def earlier_rows(path: Path, end: float = math.inf) -> Iterator[IterationRow]:
    """The rows of an iterations.csv, which may be damaged, before the iteration `end`."""
    last = -1
    for values in _whole_rows(path, COLUMNS, EARLIER_COLUMNS):
        try:
            fields: Any = {column: number(column, text) for column, text in values.items()}
        except ValueError:
            continue
        if last < fields["iteration"] < end:
            last = fields["iteration"]
            yield IterationRow(**fields | {name: None for name in OPTIONAL if not values.get(name)})


def earlier_events(path: Path) -> list[WorkerEvent]:
    """The rows of a lost.csv, which may be damaged."""
    rows = _whole_rows(path, WorkerEvent._fields)
    whole = [row for row in rows if row["iteration"].isdecimal() and row["worker"].isdecimal()]
    return [WorkerEvent(int(row.pop("iteration")), int(row.pop("worker")), **row) for row in whole]


def _whole_rows(path: Path, *known: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a file that has one of these lists of columns; none when it is missing or cannot be read."""
    try:
        rows = csv_rows(path)
        columns = tuple(next(rows, ()))
        if columns in known:
            yield from (dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns))
    except (OSError, csv.Error):
        return


def _lines(path: Path) -> Iterator[str]:
    with open_regular(path) as stream:
        while (line := stream.readline(LONGEST)).endswith(b"\n"):
            yield line.decode(errors="replace")
        if len(line) == LONGEST:
            raise csv.Error(f"a line is longer than {LONGEST} bytes")
