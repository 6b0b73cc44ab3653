"""Commands with a time limit: one that exceeds it is killed, with all processes that it started."""

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from psgc.diagnosis.probe import MARK
from psgc.processes import die_with_parent, kill_tree


@dataclass(frozen=True, slots=True)
class Result:
    """code: the exit code (negative: a signal), None when the command was killed or could not be started."""

    code: int | None
    out: str
    err: str
    seconds: float

    def lines(self) -> list[dict[str, Any]]:
        """What `psgc.diagnosis.probe` found, line by line."""
        found = []
        for line in self.out.splitlines():
            with suppress(ValueError):  # another program's line, or half of one
                found.append(json.loads(line.partition(MARK)[2]))
        return found

    def found(self) -> dict[str, Any]:
        """All lines merged."""
        return {name: value for line in self.lines() for name, value in line.items()}


class Command:
    """A command that runs in the background until the end of the `with` block at most.

    Its output goes to files: a pipe that a grandchild keeps open would have to be waited for.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], seconds: float) -> None:
        self._start, self._seconds = time.monotonic(), seconds
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed on leaving
        self._process: subprocess.Popen[bytes] | None = None
        self._result: Result | None = None
        streams: Any = {"stdin": subprocess.DEVNULL, "stdout": self._out, "stderr": self._err}
        try:
            self._process = subprocess.Popen(
                command, env=environ, start_new_session=True, preexec_fn=die_with_parent, **streams
            )
        except OSError as error:
            self._result = Result(None, "", f"{command[0]}: {error.strerror}", 0.0)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._out.close()
        self._err.close()

    def result(self) -> Result:
        """Waits until the command ends, or until its time is over."""
        if self._result is None:
            assert self._process is not None
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, self._start + self._seconds - time.monotonic()))
            code, seconds = self._process.poll(), time.monotonic() - self._start
            self._kill()
            self._result = Result(code, _read(self._out), _read(self._err), seconds)
        return self._result

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            kill_tree(self._process.pid)
            with suppress(subprocess.TimeoutExpired):  # not even SIGKILL ends a process that waits for a file server
                self._process.wait(1.0)


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")
