"""Commands with a time limit, after which a command is killed with all processes that it started."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

from psgc.processes import die_with_parent, kill_tree
from psgc.tools.probe import MARK


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a command, with its output."""

    code: int | None  # the exit code; negative: the signal that ended it; None: killed by `running`, or not started
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


@contextmanager
def running(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> Iterator[Callable[[], Finished]]:
    """A command that runs in the background, at most until the end of the `with` block. Gives a call for its result.

    Its output goes to files, because a grandchild might keep a pipe open.
    """
    began = time.monotonic()
    with TemporaryFile() as out, TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            not_started = Finished(None, "", f"{command[0]}: {error.strerror}", 0.0)
            yield lambda: not_started
            return

        def result() -> Finished:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, began + seconds - time.monotonic()))
            code, took = process.poll(), time.monotonic() - began
            _kill(process)
            out.seek(0)
            err.seek(0)
            return Finished(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"), took)

        try:
            yield result
        finally:
            _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        kill_tree(process.pid)
        with suppress(subprocess.TimeoutExpired):  # SIGKILL does not end a process that waits for a file server
            process.wait(1.0)
