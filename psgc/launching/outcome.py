"""How a run ended, from the files that this run, and no earlier one, has left in its run directory."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from psgc.disk import UNNAMED
from psgc.errors import UserError
from psgc.record.loggers import OPEN
from psgc.run.launched import ANSWER, EXITED, SETTINGS, WORKS_ON, Found, stamp

GRACE = 10.0  # seconds within which mpirun must end after the run; a hung process can keep it alive
LOGGERS = 600.0  # seconds for loggers to send what they have not sent yet, and for a checkpoint that is being written


class RunDirectory:
    """The files that this run leaves in its run directory.

    directory: the run directory
    resumed: whether the run continues an earlier one
    job: a run that this job has begun is continued in any case
    of_script: `directory` is a folder in which rank 0 of a script will name the run directory. If there is none, and
        before psgc.torch.init, the summary is written to this folder.
    """

    def __init__(self, directory: Path, resumed: bool, of_script: bool = False, job: str | None = None) -> None:
        self._is_resumed, self._job = resumed, job
        self._folder = directory if of_script else None
        self._named = None if of_script else ""  # what rank 0 has said last
        self._found = Found.now(directory)
        self._last_change: tuple[object, float] = (None, 0.0)  # (what `is_over` has seen, time)

    @property
    def directory(self) -> Path:
        """The run directory; of a script that has not named one yet, the folder."""
        return self._before().directory

    @property
    def run(self) -> object:
        """A value that changes when a script names the directory of another run."""
        return self._before()

    @property
    def summary_file(self) -> Path:
        return self.directory / "summary.json"

    def settings_file(self) -> Path | None:
        """The file with the settings of this run; None until the run has written it."""
        path = self.directory / SETTINGS
        return path if stamp(path) not in (None, self._before().settings) else None

    @property
    def proof(self) -> str:
        """What is missing if the run has not ended in order, as text."""
        missing = f"{self.summary_file} was not {'completed' if self.summary() else 'written'}"
        return missing if self._named is not None else "no rank 0 of the script has said how it ended"

    def summary(self) -> dict[str, Any]:
        """The summary of this run; empty until it is written. If a script fails after its run, with its exit code."""
        summary: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            if stamp(self.summary_file) != self._before().summary:
                summary |= json.loads(self.summary_file.read_text(encoding="utf-8"))
            if self._folder is not None and summary.get("status") == "done":
                summary |= json.loads((self._folder / EXITED).read_text(encoding="utf-8"))
        return summary

    def end(self) -> dict[str, Any]:
        """The summary of this run if it is final, or empty: a run that is done may still evaluate."""
        summary = self.summary()
        return {} if summary.get("status") == "done" and summary.get("evaluating") else summary

    def is_over(self) -> bool:
        """Whether, for more than GRACE seconds, the summary is final and the program around the run has ended.

        While loggers are open, or a checkpoint is written, it is LOGGERS seconds. Loggers are closed before the program
        goes on, so it does not while they are open.
        """
        has_loggers = (self.directory / OPEN).exists()
        works_on, are_open = self.works_on() and not has_loggers, has_loggers or self.is_writing()
        seen = stamp(self.summary_file), works_on, are_open
        if seen != self._last_change[0]:
            self._last_change = seen, time.monotonic()
        late = time.monotonic() - self._last_change[1] > (LOGGERS if are_open else GRACE)
        return late and not works_on and "status" in (summary := self.summary()) and not summary.get("evaluating")

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written. A script writes its last one when the summary is there already."""
        return any((self.directory / "checkpoints").glob(UNNAMED))

    def works_on(self) -> bool:
        """Whether the program goes on after its run, or will. After the end of mpirun: whether it was killed there."""
        return self._folder is not None and (self._folder / WORKS_ON).exists()

    def can_resume(self) -> bool:
        """Whether there is a checkpoint after iteration 0, of this run or of the run that it continues."""
        before = self._before()
        earlier = set() if self._resumed else before.checkpoints
        return _newest(Found.now(before.directory).checkpoints - earlier) > 0

    def got_further(self) -> bool:
        """Whether this run left a checkpoint of a later iteration than the one from which it continued."""
        before = self._before()
        new = Found.now(before.directory).checkpoints - before.checkpoints
        return _newest(new) > (_newest(before.checkpoints) if self._resumed else -1)

    @property
    def _resumed(self) -> bool:
        return self._is_resumed or self._job in self._before().jobs

    def _before(self) -> Found:
        """The content of the run directory before this run. A script may have several runs, one after the other."""
        if self._folder is not None:
            with suppress(OSError, ValueError):
                named = (self._folder / ANSWER).read_text(encoding="utf-8")
                if named != self._named:
                    self._found, self._named = Found.from_text(named), named
        return self._found


@contextmanager
def folder_for_answers(several_hosts: bool) -> Iterator[Path]:
    """A temporary folder for rank 0; of several hosts in the current directory, probably shared. Raises UserError."""
    try:
        where = os.getcwd() if several_hosts else None
        folder = tempfile.TemporaryDirectory(prefix=".psgc-launch-", dir=where, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; a script needs this folder for its exit code") from None
    with folder as path:
        yield Path(path)


def _newest(checkpoints: frozenset[tuple[int, tuple[int, int] | None]]) -> int:
    return max((iteration for iteration, _ in checkpoints), default=-1)
