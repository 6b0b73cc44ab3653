"""iterations.csv and lost.csv: files that grow row by row, and are read row by row, whatever is in them."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from psgc.regular_files import open_regular

COLUMNS = (
    "iteration",
    "loss",
    "seconds",
    "bound",
    "efficiency",
    "error_measure",
    "missing",
    "actual_error",
    "recovered",
    "redundant",
    "bytes",
    "bytes_in",
    "lost",
)
LOST_COLUMNS = ("iteration", "worker", "host", "event", "reason")
LONGEST = 1 << 20  # bytes of a line


def csv_rows(path: Path) -> list[list[str]]:
    """The rows of a file, without what a process has not written to the end of a line. Raises OSError, csv.Error."""
    return list(csv.reader(_lines(path)))


def whole_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows that have all of `columns`; none when the file is not there, cannot be read, or has other columns."""
    try:
        rows = csv_rows(path)
    except (OSError, csv.Error):
        return []
    if not rows or tuple(rows[0]) != tuple(columns):
        return []
    return [dict(zip(columns, row, strict=True)) for row in rows[1:] if len(row) == len(columns)]


def csv_text(*rows: Iterable[Any]) -> str:
    """The rows as they stand in a file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def earlier_rows(path: Path, resume_at: int) -> list[dict[str, str]]:
    """What an iterations.csv, perhaps damaged, has of iterations before `resume_at`."""
    kept: list[dict[str, str]] = []
    for row in whole_rows(path, COLUMNS):
        try:
            numbers = {column: float(value) for column, value in row.items() if value or column != "loss"}
            int(row["bytes"]), int(row["missing"])
        except ValueError:
            continue
        if (int(kept[-1]["iteration"]) if kept else -1) < numbers["iteration"] < resume_at:
            kept.append(row)
    return kept


def earlier_losses(path: Path) -> list[dict[str, Any]]:
    """What a lost.csv, perhaps damaged, has."""
    rows = whole_rows(path, LOST_COLUMNS)
    whole = [row for row in rows if row["iteration"].isdecimal() and row["worker"].isdecimal()]
    return [{**row, "iteration": int(row["iteration"]), "worker": int(row["worker"])} for row in whole]


def _lines(path: Path) -> Iterator[str]:
    with open_regular(path) as stream:
        while (line := stream.readline(LONGEST)).endswith(b"\n"):
            yield line.decode(errors="replace")
        if len(line) == LONGEST:
            raise csv.Error(f"a line is longer than {LONGEST} bytes")
