"""Processes of this machine: telling them apart, whether they run, and ending them. Knows no MPI."""

import ctypes
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


class RunningTime:
    """Seconds for which this process has run. It must call `look` all the time.

    A process that was stopped and continued (Ctrl-Z) must not take its own absence for the silence of others. So at
    most a second passes between two calls.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.now = 0.0

    def look(self) -> float:
        """Update `now`, and return it."""
        current = time.monotonic()
        self.now += min(current - self._last, 1.0)
        self._last = current
        return self.now


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told apart from every other one that had or will have its pid."""

    host: str
    machine: str  # equal for processes that can see each other's pids
    pid: int
    started: str  # clock ticks from the boot of the machine; empty: unknown, and it is never killed, nor another one

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
        """The identity as text, under 400 bytes."""
        return f"{self.host}\n{self.machine}\n{self.pid}\n{self.started}"

    def is_near(self, other: "Identity") -> bool:
        """Whether both are on one host and can see each other."""
        return (self.host, self.machine) == (other.host, other.machine)

    def is_gone(self) -> bool:
        """Whether a process of this machine has ended; True only if that is certain."""
        state, started = _state_and_start(self.pid)
        return bool(self.started) and (started != self.started or state in "ZX")

    def is_reaped(self) -> bool:
        """Whether a process of this machine has ended and its parent has taken note; True only if that is certain."""
        return bool(self.started) and _state_and_start(self.pid)[1] != self.started

    def is_stopped(self) -> bool:
        """Whether a process of this machine was stopped (SIGSTOP). See `switches` for whether it has run since."""
        state, started = _state_and_start(self.pid)
        return bool(self.started) and started == self.started and state in ("T", "t")

    def switches(self) -> int:
        """How often a process of this machine has given up its processor; 0 if that is unknown.

        The number is that of its first thread. SIGCONT wakes every thread, so a process that was found stopped
        twice, and has run in between, has another number the second time.
        """
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        except OSError:
            return 0
        names = "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"
        return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(names))

    def kill(self) -> bool:
        """SIGKILL a process of this machine. Returns whether the signal was sent, or the process had ended already."""
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
    """Boot and pid namespace. Two processes mean the same by a pid if these are equal."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str]:
    """State letter and start time of a process; empty if it does not exist, or there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a name may hold anything
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies, so that a killed mpirun leaves no orphans."""
    _libc("prctl", 1, number)  # PR_SET_PDEATHSIG


def sleep_precisely() -> None:
    """Have the kernel end the sleeps of this thread, and of threads that it starts, on time and not 50 us late."""
    _libc("prctl", 29, 1)  # PR_SET_TIMERSLACK, in nanoseconds


def default_signals_in_children() -> None:
    """Give processes that a model forks Python's signal handlers: a rank's handlers would keep them alive."""
    os.register_at_fork(after_in_child=_default_signals)


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next allocation, up to 16 MiB each.

    Pages from the kernel cost more than a simple gradient: 2.4 MB that took 0.3 ms took 1.3 ms (glibc 2.41).
    """
    _libc("mallopt", -3, 16 << 20)  # M_MMAP_THRESHOLD
    _libc("mallopt", -1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _libc(function: str, *arguments: int) -> None:
    """Call a function of the C library, if it has the function."""
    with suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def kill_tree(root: int) -> None:
    """SIGKILL a process and all its descendants on this host. (Ranks have process groups of their own.)"""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    doomed = [root]
    for process in doomed:
        doomed += children.get(process, [])
    for process in doomed:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
