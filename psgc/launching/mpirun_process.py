"""Runs mpirun to its end, and stops it in order when this process receives a signal.

mpirun runs in its own session, because on Ctrl-C Open MPI kills the ranks after half a second. To stop it, psgc sends
SIGUSR1, which ends the run in order, then SIGTERM, then SIGKILL.
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
from typing import IO, Any

from psgc.errors import UserError
from psgc.processes import die_with_parent, kill_tree

STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last one: a scheduler's warning
STOP_SEQUENCE = ((signal.SIGUSR1, 4.0), (signal.SIGTERM, 2.0))  # (signal, seconds that the run has to react)
UNHURRIED = 120.0  # seconds to react to SIGUSR1 when the run will start again, or while it writes a checkpoint
HEARD = 100  # lines that are kept
LOOK_EVERY, LOOK_OFTEN = 0.1, 0.01  # seconds between two looks at mpirun; often when new ranks wait for its end
LATE = 2.0  # seconds to wait for the last lines after the end of mpirun


@dataclass
class Heard:
    """The output of a run, for callers in Python."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=HEARD))  # the last lines on stderr
    why: str = ""  # the reason that `psgc launch` itself gives for a failed run
    stopped_by: int | None = None  # the signal that stopped the run, or None

    @property
    def reason(self) -> str:
        """The line that says why the run failed, without "psgc"; empty when there was none."""
        said = [line.removeprefix("psgc: ") for line in self.lines if line.startswith("psgc: ")]
        ends = [line for line in said if line.startswith("failed: ")]  # later lines may be about consequences
        return self.why or next(iter(reversed(ends or said)), "")

    def relay(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.lines.append(line.decode(errors="replace").rstrip())
                with suppress(OSError):
                    os.write(2, line)


class Process(subprocess.Popen[bytes]):
    """Is one of `processes` before it starts: a signal handler of the program may raise an exception at any moment."""

    def __init__(self, processes: list["Process"], command: Sequence[str], **options: Any) -> None:
        processes.append(self)
        super().__init__(command, **options)

    def end(self) -> None:
        """End the process, and its descendants on this host. Those on other hosts end with mpirun's daemons there."""
        if getattr(self, "pid", None) is None or self.poll() is not None:
            return
        self.send_signal(signal.SIGTERM)
        if not _reacts(self, (), STOP_SEQUENCE[1][1]):
            kill_tree(self.pid)
            self.wait()


class MpirunProcess:
    """A running mpirun, whose stderr `heard` gets as well. Raises UserError when it cannot be started.

    processes: gets the process; whoever has this list must end it, also when an exception comes before this is made
    was_killed: is called after `kill`
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        heard: Heard | None = None,
        processes: list[Process] | None = None,
        was_killed: Callable[[], object] = lambda: None,
    ) -> None:
        self._was_killed = was_killed
        sys.stdout.flush()
        try:
            self._process = Process(
                [] if processes is None else processes,
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE if heard is not None else None,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        except OSError as error:
            if error.errno is None:  # raised by a signal handler of the program
                raise
            raise UserError(f"{command[0]}: {error.strerror}, expected a working MPI") from None
        self._relaying = None
        if heard is not None and self._process.stderr is not None:
            self._relaying = threading.Thread(target=heard.relay, args=(self._process.stderr,), daemon=True)
            self._relaying.start()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """End mpirun and its ranks at once."""
        self._process.end()
        self._was_killed()

    def watch(
        self,
        is_over: Callable[[], bool],
        received: Sequence[int],
        patience: float = 0.0,
        is_asked: Callable[[], bool] = lambda: False,
        is_writing: Callable[[], bool] = lambda: False,
    ) -> int:
        """Wait until mpirun ends, or end it. Returns its exit code, or minus the number of the signal that killed it.

        is_over: whether mpirun should have ended long ago
        received: the signals that this process has received (`catching`)
        patience: seconds that the run has after a SIGUSR1 to this process, if more than usual
        is_asked: whether the run must end so that it can start again
        is_writing: whether the run writes a checkpoint
        """
        process = self._process
        ended = _wait(process, lambda: bool(received) or is_over() or is_asked())
        if not ended and not received and is_asked():
            process.send_signal(signal.SIGUSR1)
            ended = _reacts(process, received, UNHURRIED, LOOK_OFTEN)
        for number, seconds in STOP_SEQUENCE if received else STOP_SEQUENCE[1:]:
            if not ended:
                process.send_signal(number)
                is_busy = is_writing if number == signal.SIGUSR1 else lambda: False
                if received[:1] == [number] == [signal.SIGUSR1] and patience:  # and not longer: a time limit follows
                    seconds, is_busy = max(seconds, patience), lambda: False
                ended = _reacts(process, received, seconds, is_busy=is_busy)
        if not ended:
            kill_tree(process.pid)
        code = process.wait()
        if self._relaying is not None:
            self._relaying.join(LATE)  # with a limit, since processes on other hosts may keep the pipe open
        return code


@contextmanager
def catching() -> Iterator[Sequence[int]]:
    """A list that collects the signals to stop this process. At the end of the block their handlers are restored.

    SIGHUP stays ignored where it was, as with nohup.
    """
    received: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()  # only this thread can set handlers
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (STOPPERS if in_main_thread else ())
        if number not in ignored
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reacts(
    process: subprocess.Popen[bytes],
    received: Sequence[int],
    seconds: float,
    every: float = LOOK_EVERY,
    is_busy: Callable[[], bool] = lambda: False,
) -> bool:
    """Waits until `process` ends, for so many seconds or until one more signal is received. Returns as `_wait`.

    is_busy: the seconds begin when this ends, or after UNHURRIED seconds
    """
    began, seen = time.monotonic(), len(received)
    end = began + seconds

    def is_late() -> bool:
        nonlocal end
        now = time.monotonic()
        if now < began + UNHURRIED and is_busy():
            end = now + seconds
        return now > end

    return _wait(process, lambda: len(received) > seen or is_late(), every)


def _wait(process: subprocess.Popen[bytes], until: Callable[[], bool], every: float = LOOK_EVERY) -> bool:
    """Waits until `process` ends or `until()` holds. Returns whether the process has ended.

    every: seconds between two looks
    """
    while not until():
        try:
            process.wait(timeout=every)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None
