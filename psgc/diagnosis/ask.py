"""Commands that answer in time or not at all: one that is late is killed, with all that it started."""

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
class Answer:
    """code: the exit code (negative: a signal's number), None of a command that was too late or cannot be started."""

    code: int | None
    out: str
    err: str
    seconds: float

    def lines(self) -> list[dict[str, Any]]:
        """What `psgc.diagnosis.probe` printed, line by line."""
        found = []
        for line in self.out.splitlines():
            with suppress(ValueError):  # somebody else's line, or half of one
                found.append(json.loads(line.partition(MARK)[2]))
        return found

    def found(self) -> dict[str, Any]:
        """All of it together."""
        return {name: value for line in self.lines() for name, value in line.items()}


class Question:
    """A command that is already running; leave the `with` block and it runs no more."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed on leaving
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: Answer | None = None
        try:
            self._process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._err,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            self._answer = Answer(None, "", f"{command[0]}: {error.strerror}", 0.0)

    def __enter__(self) -> "Question":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._out.close()
        self._err.close()

    def answer(self) -> Answer:
        """What the command said until its end, or until its time was over."""
        if self._answer is None:
            assert self._process is not None
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, self._began + self._seconds - time.monotonic()))
            code, seconds = self._process.poll(), time.monotonic() - self._began
            self._end()
            self._answer = Answer(code, self._read(self._out), self._read(self._err), seconds)
        return self._answer

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            kill_tree(self._process.pid)
            with suppress(subprocess.TimeoutExpired):  # one that waits for a dead file server cannot even be killed
                self._process.wait(1.0)

    @staticmethod
    def _read(stream: IO[bytes]) -> str:
        stream.seek(0)
        return stream.read().decode(errors="replace")
