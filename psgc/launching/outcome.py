"""How a run ended, by what it, and no earlier one, has left in its run directory."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from psgc.errors import UserError
from psgc.run.launched import ANSWER, EXITED, SETTINGS, WORKS_ON, Found, stamp

GRACE = 10.0  # seconds that mpirun has to end after the run; a hung process that cannot be killed keeps it alive


class RunDirectory:
    """What this run leaves in its run directory. resumed: the run continues an earlier one.

    of_script: `directory` is a folder in which rank 0 of a script will name the run directory. Without one, and before
    psgc.torch.init, the summary is left in that folder.
    """

    def __init__(self, directory: Path, resumed: bool, of_script: bool = False) -> None:
        self._resumed = resumed
        self._folder = directory if of_script else None
        self._is_named = not of_script
        self._found = Found.now(directory)
        self._last_change: tuple[object, float] = (None, 0.0)  # the summary and whether a program works on; since when

    @property
    def directory(self) -> Path:
        """The run directory, as far as it is known."""
        return self._before().directory

    @property
    def summary_file(self) -> Path:
        return self.directory / "summary.json"

    def settings_file(self) -> Path | None:
        """Where this run has written its settings, None before."""
        path = self.directory / SETTINGS
        return path if stamp(path) not in (None, self._before().settings) else None

    @property
    def proof(self) -> str:
        """What is missing where a run has not ended in order. Also true before a script has named its directory."""
        missing = f"{self.summary_file} was not written"
        return missing if self._is_named else "no rank 0 of the script has said how it ended"

    def summary(self) -> dict[str, Any]:
        """The summary that this run has written, empty before. A script that failed after its run adds a code."""
        summary: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            if stamp(self.summary_file) != self._before().summary:
                summary |= json.loads(self.summary_file.read_text(encoding="utf-8"))
            if self._folder is not None and summary.get("status") == "done":
                summary |= json.loads((self._folder / EXITED).read_text(encoding="utf-8"))
        return summary

    def is_over(self) -> bool:
        """Whether the run wrote its last summary, and the program around it ended, more than GRACE seconds ago."""
        works_on = self._folder is not None and (self._folder / WORKS_ON).exists()
        changed = stamp(self.summary_file), works_on
        if changed != self._last_change[0]:
            self._last_change = changed, time.monotonic()
        late = time.monotonic() - self._last_change[1] > GRACE
        return late and not works_on and "status" in (summary := self.summary()) and not summary.get("evaluating")

    def can_resume(self) -> bool:
        """Whether there is a checkpoint of this run, or of the one that it continues, after its first iteration."""
        before = self._before()
        return _newest(Found.now(before.directory).checkpoints - (set() if self._resumed else before.checkpoints)) > 0

    def got_further(self) -> bool:
        """Whether this run left a checkpoint of a later iteration than the one that it continued from."""
        before = self._before()
        new = Found.now(before.directory).checkpoints - before.checkpoints
        return _newest(new) > (_newest(before.checkpoints) if self._resumed else -1)

    def _before(self) -> Found:
        """What was in the directory before this run."""
        if not self._is_named and self._folder is not None:
            with suppress(OSError, ValueError):
                self._found = Found.from_text((self._folder / ANSWER).read_text(encoding="utf-8"))
                self._is_named = True
        return self._found


@contextmanager
def folder_for_answers(several_hosts: bool) -> Iterator[Path]:
    """A folder that rank 0 can write to: of several hosts, only the current directory is likely to be shared.

    Raises UserError when it cannot be made.
    """
    try:
        folder = tempfile.mkdtemp(prefix=".psgc-launch-", dir=os.getcwd() if several_hosts else None)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}, where a script says how it ended") from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _newest(checkpoints: frozenset[tuple[int, tuple[int, int] | None]]) -> int:
    return max((iteration for iteration, _ in checkpoints), default=-1)
