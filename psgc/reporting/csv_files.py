"""Files that grow row by row, as their readers see them: row by row, whatever is in them."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from psgc.regular_files import open_regular

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


def _lines(path: Path) -> Iterator[str]:
    with open_regular(path) as stream:
        while (line := stream.readline(LONGEST)).endswith(b"\n"):
            yield line.decode(errors="replace")
        if len(line) == LONGEST:
            raise csv.Error(f"a line is longer than {LONGEST} bytes")
