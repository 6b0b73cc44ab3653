"""Starts MPI, which waits for all ranks, also for one that has died before.

No thread of Python runs while MPI starts. So each rank has another process meanwhile, its *watcher*. The ranks of a
host were started by one process: mpirun, or its daemon there. When a rank is gone, a watcher ends that process, and so
all ranks.
"""

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False
from mpi4py import MPI as MPI  # noqa: E402  the settings above must come before

from psgc.processes import die_with_parent  # noqa: E402
from psgc.terminal import say  # noqa: E402

TIMEOUT = 600.0  # seconds for MPI to start
FIRST_WORD = 20.0  # seconds of waiting after which rank 0 says so; then after twice as many, and so on
LOOK_EVERY = 0.2  # seconds between two checks of the ranks of this host
GRACE = 2.0  # seconds: a rank may begin late, and ranks that end because of a mistake may say so first
DAEMONS = ("prterun", "prted", "mpirun", "mpiexec", "orterun", "orted")  # of Open MPI, which start ranks
RANK, SIZE = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"
STANDBY = "PSGC_STANDBY"  # as in `psgc.run.launched`
LOCAL_RANK, LOCAL_SIZE = "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"  # on this host


def start_mpi(threads: int) -> None:
    """Start MPI with this level of thread support.

    This process ends if that takes more than `TIMEOUT` seconds. All ranks end when one of this host dies meanwhile.
    Rank 0 says for how long it has waited.
    """
    if os.environ.get(SIZE, "1") == "1":  # other MPIs than Open MPI end all ranks when one dies
        MPI.Init_thread(threads)
        return
    daemon, watcher = daemon_above(os.getppid()), os.fork()
    if watcher == 0:
        _watch(daemon)
    before = signal.setitimer(signal.ITIMER_REAL, TIMEOUT)  # SIGALRM ends this process
    MPI.Init_thread(threads)
    signal.setitimer(signal.ITIMER_REAL, *before)
    os.kill(watcher, signal.SIGKILL)
    os.waitpid(watcher, 0)


def _watch(daemon: int) -> NoReturn:
    """Watch the ranks that `daemon` has started, until MPI has started and this process is killed."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # mpirun sends them to the watchers as well
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        die_with_parent()
        _look(daemon, is_first=os.environ.get(RANK) == "0", number=int(os.environ.get(LOCAL_RANK, 0)))
    finally:  # no code of the rank runs here
        os._exit(0)


def _look(daemon: int, is_first: bool, number: int) -> None:
    """is_first: whether this is the watcher of rank 0; number: of its rank on this host."""
    beside, began, word = Beside(number, int(os.environ.get(LOCAL_SIZE, 1))), time.monotonic(), FIRST_WORD
    every = GRACE if number else LOOK_EVERY  # the others act only if that watcher does not
    why = "a rank that has died or cannot start, or a host that cannot be reached, keeps it waiting"
    end = TIMEOUT - min(1.0, TIMEOUT / 2)
    while (waited := time.monotonic() - began) < end:
        if is_first and waited >= word:
            say(f"waiting for MPI to start on all ranks for {word:.0f} s: {why}", error=True)
            word *= 2
        gone = beside.gone(ranks_of(daemon), waited)
        if gone and daemon_above(daemon) == daemon:
            if STANDBY not in os.environ:  # otherwise an earlier run goes on, and `psgc launch` says so
                host = socket.gethostname()
                say(
                    f"psgc: {gone} on {host} has ended, or never begun, before MPI had started on all ranks", error=True
                )
            with suppress(OSError):
                os.kill(daemon, signal.SIGTERM)
            return
        time.sleep(min(every, end - waited))
    if is_first:
        say(f"psgc: MPI has not started on all ranks within {TIMEOUT:g} s: {why}", error=True)


def daemon_above(pid: int) -> int:
    """The process of Open MPI that has started `pid`, or a script of the user around it; 0 when there is none."""
    try:
        while pid > 1 and Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() not in DAEMONS:
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0
    return pid if pid > 1 else 0


def ranks_of(daemon: int) -> dict[int, int]:
    """The living ranks that `daemon` has started: number on this host -> rank. Empty where /proc does not tell."""
    found = {}
    with suppress(OSError):
        for path in Path(f"/proc/{daemon}/task").glob("*/children"):
            for child in path.read_text().split():
                environ = _environ(child)
                if LOCAL_RANK in environ and RANK in environ:
                    found[int(environ[LOCAL_RANK])] = int(environ[RANK])
    return found


def _environ(pid: str) -> dict[str, str]:
    """The variables with which a process was started; none once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


class Beside:
    """What the watcher of rank `number`, of the `size` ranks of a host, sees of the others.

    >>> beside = Beside(number=0, size=2)
    >>> beside.gone({0: 4, 1: 5}, 0.0), beside.gone({0: 4}, 0.5), beside.gone({0: 4}, 3.0)
    ('', '', 'rank 5')
    """

    def __init__(self, number: int, size: int) -> None:
        self._number, self._size = number, size
        self._known: dict[int, int] = {}
        self._since: float | None = None  # a rank is missing

    def gone(self, living: Mapping[int, int], now: float) -> str:
        """The rank that has been gone for so long that this one has to act; empty when there is none.

        The rank with the lowest number acts after `GRACE` seconds, each other one as much later than the one before it.

        living: number on the host -> rank; now: seconds since this process watches
        """
        self._known.update(living)
        missing = [number for number in range(self._size) if number not in living]
        if not missing or self._number not in living:
            self._since = None
            return ""
        self._since = now if self._since is None else self._since
        before = sum(number < self._number for number in living)  # they act first
        if now - self._since < GRACE * (1 + before):
            return ""
        rank = self._known.get(missing[0])
        return f"a rank (number {missing[0] + 1} of {self._size})" if rank is None else f"rank {rank}"
