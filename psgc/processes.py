"""Processes of this machine: which one is meant, whether it still runs, and its end. Knows no MPI."""

import ctypes
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


class RunningTime:
    """Seconds in which this process was running. It has to call `look` all the time.

    A process that was stopped and continued (Ctrl-Z) must not take its own absence for the silence of others: between
    two looks a second passes at most.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.now = 0.0

    def look(self) -> float:
        """Bring `now` up to date, and return it."""
        current = time.monotonic()
        self.now += min(current - self._last, 1.0)
        self._last = current
        return self.now


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from every other that had or will have its pid.

    machine: equal for processes that can see each other's pids; started: clock ticks since the machine booted, empty
    where the system does not say (then the process is never taken for another one, nor killed).
    """

    host: str
    machine: str
    pid: int
    started: str

    @classmethod
    def own(cls) -> "Identity":
        """The identity of the calling process."""
        return cls(socket.gethostname()[:255], _machine(), os.getpid(), _state_and_start(os.getpid())[1])

    @classmethod
    def from_text(cls, text: str) -> "Identity":
        """The inverse of `text`."""
        host, machine, pid, started = text.split("\n")
        return cls(host, machine, int(pid), started)

    def text(self) -> str:
        """For sending, under 400 bytes."""
        return f"{self.host}\n{self.machine}\n{self.pid}\n{self.started}"

    def is_near(self, other: "Identity") -> bool:
        """Whether both are on one host and can see each other."""
        return (self.host, self.machine) == (other.host, other.machine)

    def is_gone(self) -> bool:
        """Whether a process of this machine has ended; only true when that is certain."""
        state, started = _state_and_start(self.pid)
        return bool(self.started) and (started != self.started or state in "ZX")

    def is_stopped(self) -> bool:
        """Whether a process of this machine does not run because it was told so (SIGSTOP)."""
        state, started = _state_and_start(self.pid)
        return bool(self.started) and started == self.started and state in ("T", "t")

    def kill(self) -> bool:
        """SIGKILL a process of this machine. Returns whether it was sent, or the process had ended already."""
        if not self.started:
            return False
        if not self.is_gone():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return True
            except PermissionError:
                return False
        return True


def _machine() -> str:
    """Boot and pid namespace: what has to be equal for two processes to mean the same by a pid."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str]:
    """State letter and start time of a process; empty when there is none, or no /proc to ask."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold anything
    except OSError:
        return "", ""
    return fields[0], fields[19]


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies: a killed mpirun leaves no orphans."""
    _libc("prctl", 1, number)  # PR_SET_PDEATHSIG


def sleep_precisely() -> None:
    """Have the kernel end the sleeps of this thread and of those it starts on time, not 50 us late."""
    _libc("prctl", 29, 1)  # PR_SET_TIMERSLACK, in nanoseconds


def default_signals_in_children() -> None:
    """Processes that a model forks react to signals as Python does: the handlers of a rank would keep them alive."""
    os.register_at_fork(after_in_child=_default_signals)


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next allocation, up to 16 MiB a piece.

    Pages from the kernel cost more than a simple gradient: 2.4 MB that took 0.3 ms took 1.3 ms (glibc 2.41).
    """
    _libc("mallopt", -3, 16 << 20)  # M_MMAP_THRESHOLD
    _libc("mallopt", -1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _libc(function: str, *arguments: int) -> None:
    """Call a function of the C library, where it has it."""
    with suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def kill_tree(root: int) -> None:
    """SIGKILL for a process and all its descendants on this host. (Ranks lead process groups of their own.)"""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    doomed = [root]
    for process in doomed:
        doomed += children.get(process, [])
    for process in doomed:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
