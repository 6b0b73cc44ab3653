"""The hosts of a run: the number of ranks of each host, and which hosts answer."""

import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from psgc.launching.mpirun import AGENTS, SSH_ARGUMENTS, Placement

# a host, as MPICH and Open MPI write it; there may be other keys, such as max_slots
SLOTS = re.compile(r"\s*([^\s#:]+)(?::(\d+))?(?:\s[^#]*?(?<![\w-])slots\s*=\s*(\d+))?")
PATIENCE = 5.0  # seconds within which a host must answer
EVERY = 5.0  # seconds between two checks


def slots_of(placement: Placement) -> dict[str, int]:
    """The number of ranks of each host, by default 1. Empty if mpirun chooses hosts, or if a host file is unreadable.

    >>> slots_of(Placement(5, host="a:3,b"))
    {'a': 3, 'b': 1}
    """
    lines = placement.host.split(",") if placement.host else []
    if placement.hostfile:
        try:
            lines = Path(placement.hostfile).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return {}
    slots: dict[str, int] = {}
    for match in filter(None, map(SLOTS.match, lines)):
        slots[match[1]] = slots.get(match[1], 0) + int(match[2] or match[3] or 1)
    return slots


def without(placement: Placement, gone: Collection[str]) -> Placement | None:
    """The placement on the other hosts, each with the same ranks as before; None if fewer than two ranks remain.

    >>> without(Placement(5, host="a:3,b:2"), ["b"])
    Placement(ranks=3, host='a:3', hostfile=None, fault_tolerance=True)
    """
    slots = slots_of(placement)
    left = {host: number for host, number in slots.items() if host not in gone}
    ranks = placement.ranks * sum(left.values()) // max(1, sum(slots.values()))
    if ranks < 2:
        return None
    host = ",".join(f"{host}:{number}" for host, number in left.items())
    return Placement(ranks, host, None, placement.fault_tolerance)


class HostAnswers:
    """Checks which hosts answer to ssh, or to the program and with the arguments that MPI uses (from `environ`)."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        agent, arguments = (
            next((value for name, value in environ.items() if name.endswith(names)), "")
            for names in (AGENTS, SSH_ARGUMENTS)
        )
        options = [] if agent else ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={PATIENCE:.0f}"]
        first = agent.partition(" : ")[0] or "ssh"  # Open MPI takes several; usually the first one exists
        self._command = [*shlex.split(first), *shlex.split(arguments), *options]
        self._thread: threading.Thread | None = None
        self._known: tuple[frozenset[str], set[str]] = frozenset(), set()
        self._next = 0.0

    def silent(self, hosts: Collection[str]) -> set[str]:
        """The hosts that do not answer now. Takes up to PATIENCE seconds."""
        asked = {host: self._ask(host) for host in hosts if not _is_here(host)}
        end = time.monotonic() + PATIENCE
        found = {host for host, process in asked.items() if not _answers(process, end)}
        self._known = frozenset(hosts), found
        return found

    def all_answer(self, hosts: Collection[str]) -> bool:
        """Whether all hosts answered at the last check. A thread checks them every EVERY seconds."""
        is_asking = self._thread is not None and self._thread.is_alive()
        if time.monotonic() >= self._next and not is_asking:
            self._next = time.monotonic() + EVERY
            self._thread = threading.Thread(target=self.silent, args=(list(hosts),), daemon=True)
            self._thread.start()
        return self._known == (frozenset(hosts), set())

    def _ask(self, host: str) -> "subprocess.Popen[bytes] | None":
        quiet = subprocess.DEVNULL
        try:
            return subprocess.Popen(
                [*self._command, host, "true"], env=self._environ, stdin=quiet, stdout=quiet, stderr=quiet
            )
        except OSError:
            return None


def _answers(process: "subprocess.Popen[bytes] | None", end: float) -> bool:
    if process is None:
        return False
    try:
        return process.wait(timeout=max(0.0, end - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def _is_here(host: str) -> bool:
    """Whether the host is this machine, which mpirun reaches without ssh."""
    try:
        with socket.socket() as own:
            own.bind((host, 0))  # fails for addresses of other machines
    except OSError:
        return host == socket.gethostname()
    return True
