"""Commands with a time limit, after which a command is killed with all processes that it started."""

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from psgc.processes import die_with_parent, kill_tree
from psgc.tools.probe import MARK


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a command, with its output."""

    code: int | None  # the exit code; negative: the signal that ended it; None: killed by `Command`, or not started
    out: str
    err: str
    seconds: float

    def lines(self) -> list[dict[str, Any]]:
        """The findings that `psgc.tools.probe` printed, one for each line."""
        found = []
        for line in self.out.splitlines():
            with suppress(ValueError):  # a line of another program, or an incomplete line
                found.append(json.loads(line.partition(MARK)[2]))
        return found

    def found(self) -> dict[str, Any]:
        return {name: value for line in self.lines() for name, value in line.items()}


class Command:
    """A command that runs in the background, at most until the end of the `with` block.

    Its output goes to files, because a grandchild might keep a pipe open.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], seconds: float) -> None:
        self._start, self._seconds = time.monotonic(), seconds
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  stdout, stderr; closed on leaving
        self._process: subprocess.Popen[bytes] | None = None
        self._reason = ""  # why it could not be started
        streams: Any = dict(zip(("stdout", "stderr"), self._files, strict=True), stdin=subprocess.DEVNULL)
        try:
            self._process = subprocess.Popen(
                command, env=environ, start_new_session=True, preexec_fn=die_with_parent, **streams
            )
        except OSError as error:
            self._reason = f"{command[0]}: {error.strerror}"

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for file in self._files:
            file.close()

    def result(self) -> Finished:
        if self._process is None:
            return Finished(None, "", self._reason, 0.0)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, self._start + self._seconds - time.monotonic()))
        code, seconds = self._process.poll(), time.monotonic() - self._start
        self._kill()
        for file in self._files:
            file.seek(0)
        out, err = (file.read().decode(errors="replace") for file in self._files)
        return Finished(code, out, err, seconds)

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            kill_tree(self._process.pid)
            with suppress(subprocess.TimeoutExpired):  # SIGKILL does not end a process that waits for a file server
                self._process.wait(1.0)
