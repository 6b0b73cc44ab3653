"""The hosts of a run: the number of ranks of each host, and which hosts answer."""

import math
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
LATE = 3  # so many times that after its beginning a check says nothing any more; it may take PATIENCE itself


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
    """Checks which hosts answer to ssh, or to the program and with the arguments that MPI uses (from `environ`).

    In a job of PBS or LSF, MPI may reach hosts in another way, and ssh be forbidden. So silence means something only of
    a host that would answer: of one that has answered since the run has begun, or that was not asked then.
    """

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
        self._first: threading.Thread | None = None
        self._unreached: frozenset[str] = frozenset()
        self._known: tuple[frozenset[str], set[str], float] = frozenset(), set(), -math.inf  # hosts, silent ones, time
        self._next = 0.0

    def begin(self, hosts: Collection[str]) -> None:
        """A run has begun on these hosts: a thread asks them. Only the first call counts."""
        if self._first is None:

            def ask() -> None:
                self._unreached = frozenset(self._without_answer(hosts))

            self._first = threading.Thread(target=ask, daemon=True)
            self._first.start()

    def unreached(self, hosts: Collection[str]) -> frozenset[str]:
        """The hosts of which nobody can say whether they are gone: they have not answered since the run has begun."""
        return self._unreached.intersection(hosts)

    def silent(self, hosts: Collection[str]) -> set[str]:
        """The hosts that would answer, and do not now. Takes up to PATIENCE seconds, twice that when a run begins."""
        if self._first is not None:
            self._first.join()
        began = time.monotonic()
        found = self._without_answer(hosts)
        self._unreached -= set(hosts) - found
        found -= self._unreached
        self._known = frozenset(hosts), found, began
        return found

    def all_answer(self, hosts: Collection[str]) -> bool:
        """Whether no host was silent at the last check. A thread checks them every EVERY seconds.

        It does so while this is called again and again; after a pause this is False until they have been asked anew.
        """
        is_asking = self._thread is not None and self._thread.is_alive()
        if time.monotonic() >= self._next and not is_asking:
            self._next = time.monotonic() + EVERY
            self._thread = threading.Thread(target=self.silent, args=(list(hosts),), daemon=True)
            self._thread.start()
        asked, found, began = self._known
        return (asked, found) == (frozenset(hosts), set()) and time.monotonic() - began <= LATE * EVERY

    def _without_answer(self, hosts: Collection[str]) -> set[str]:
        asked = {host: self._ask(host) for host in hosts if not _is_here(host)}
        end = time.monotonic() + PATIENCE
        return {host for host, process in asked.items() if not _answers(process, end)}

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
