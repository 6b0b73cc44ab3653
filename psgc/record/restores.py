"""restores.csv: when `psgc launch` has started the run again, with all workers, and what that has cost."""

import csv
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from psgc.disk import write_text
from psgc.record.csv_files import csv_rows, csv_text, earlier_rows

RESTORED = "PSGC_RESTORED"  # `psgc launch` sets it for a run that it starts again


class Restored(NamedTuple):
    """A row of restores.csv.

    iteration: the first one afterwards; seconds: from the last step before to the first one after; repeated: steps that
    were made before as well.
    """

    iteration: int
    seconds: float
    repeated: int


class RestoreRecord:
    """Of a run that begins at `resume_at`, or at its beginning; made before its iterations.csv is written anew."""

    def __init__(self, directory: Path, resume_at: int | None) -> None:
        self._path, record = directory / "restores.csv", directory / "iterations.csv"
        self.rows: list[Restored] = []
        self._last_step: float | None = None
        if resume_at is None:
            return
        with suppress(OSError, csv.Error):
            self.rows = [Restored(**row) for row in csv_rows(self._path, lambda _: None, Restored._fields)]
        if os.environ.get(RESTORED):
            with suppress(OSError):
                self._last_step = record.stat().st_mtime  # rows are written as the steps are made
                self._repeated = sum(row.iteration >= resume_at for row in earlier_rows(record))

    def stepped(self, iteration: int) -> None:
        """The step of this iteration is made. Raises OSError when the file cannot be written."""
        if self._last_step is not None:
            seconds, self._last_step = round(time.time() - self._last_step, 3), None
            self.rows.append(Restored(iteration, seconds, self._repeated))
            write_text(self._path, csv_text(Restored._fields, *self.rows))
