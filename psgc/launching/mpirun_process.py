"""Runs mpirun to its end, and stops it in order when this process receives a signal.

mpirun runs in a session of its own: Ctrl-C would have Open MPI kill the ranks after half a second. It gets SIGUSR1
first, on which the run ends in order, then SIGTERM, then SIGKILL.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from psgc.errors import UserError
from psgc.processes import die_with_parent, kill_tree

STOPPERS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
)  # SIGUSR1: a job's warning, if asked for
STOP_SEQUENCE = ((signal.SIGUSR1, 4.0), (signal.SIGTERM, 2.0))  # and how many seconds a run has to react
UNHURRIED = 120.0  # seconds that it has when it is to begin again
HEARD = 100  # lines
LATE = 2.0  # seconds after the end of mpirun for which its last lines are waited for


@dataclass
class Heard:
    """The output of a run, for callers in Python.

    lines: the last ones on stderr; why: what `psgc launch` itself says of a failed run; stopped_by: a signal.
    """

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=HEARD))
    why: str = ""
    stopped_by: int | None = None

    @property
    def reason(self) -> str:
        """The line that says why the run failed, without "psgc"; empty when there was none."""
        said = [line.removeprefix("psgc: ") for line in self.lines if line.startswith("psgc: ")]
        ends = [line for line in said if line.startswith("failed: ")]  # after which may come what else went wrong
        return self.why or next(iter(reversed(ends or said)), "")

    def relay(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.lines.append(line.decode(errors="replace").rstrip())
                with suppress(OSError):
                    os.write(2, line)


class MpirunProcess:
    """mpirun, which runs from now on. heard: gets the lines on stderr, which are shown as well.

    Raises UserError when it cannot be started.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], heard: Heard | None = None) -> None:
        sys.stdout.flush()
        try:
            self._process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE if heard is not None else None,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        except OSError as error:
            raise UserError(f"{command[0]}: {error.strerror}, expected a working MPI") from None
        self._relaying = None
        if heard is not None and self._process.stderr is not None:
            self._relaying = threading.Thread(target=heard.relay, args=(self._process.stderr,), daemon=True)
            self._relaying.start()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once, with its ranks on this host. Those on others end as their daemons do."""
        if not self.has_ended:
            self._process.send_signal(signal.SIGTERM)
            _wait(self._process, partial(_is_past, time.monotonic() + STOP_SEQUENCE[1][1]))
        kill_tree(self._process.pid)
        self._process.wait()

    def watch(
        self,
        is_over: Callable[[], bool],
        received: Sequence[int],
        patience: float = 0.0,
        is_asked: Callable[[], bool] = lambda: False,
    ) -> int:
        """Wait for its end, or end it. Returns its exit code; negative: the signal that killed it.

        is_over: whether mpirun should have ended long ago; received: signals that have stopped this process
        (`catching`); patience: seconds that a run has to end after a SIGUSR1 to this process, if that is more than
        usual; is_asked: whether the run is to end and to begin again.
        """
        try:
            return self._watch(is_over, received, patience, is_asked)
        except BaseException:  # from a signal handler of the program: nothing would watch the run any more
            kill_tree(self._process.pid)
            self._process.wait()
            raise

    def _watch(
        self, is_over: Callable[[], bool], received: Sequence[int], patience: float, is_asked: Callable[[], bool]
    ) -> int:
        process = self._process
        ended = _wait(process, lambda: bool(received) or is_over() or is_asked())
        begins_again = not ended and not received and is_asked()
        for number, seconds in STOP_SEQUENCE if received or begins_again else STOP_SEQUENCE[1:]:
            if not ended:
                process.send_signal(number)
                if number == signal.SIGUSR1 and begins_again:
                    seconds = UNHURRIED
                elif received[:1] == [number] == [signal.SIGUSR1]:
                    seconds = max(seconds, patience)
                deadline, seen = time.monotonic() + seconds, len(received)
                ended = _wait(process, lambda: len(received) > seen or _is_past(deadline))  # noqa: B023  called now
        if not ended:
            kill_tree(process.pid)
        code = process.wait()
        if self._relaying is not None:
            self._relaying.join(LATE)  # at most: processes of the run on other hosts may keep the pipe open
        return code


def _is_past(deadline: float) -> bool:
    return time.monotonic() > deadline


@contextmanager
def catching() -> Iterator[Sequence[int]]:
    """The signals that are to stop this process, as they come; then they do again what they did before."""
    received: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()  # which alone gets signals
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (STOPPERS if in_main_thread else ())
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> bool:
    """Waits until `process` ends or `until()` holds. Returns whether the process has ended."""
    while not until():
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None
