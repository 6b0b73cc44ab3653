"""Faults of scripts/chaos.py: drawn from a seed, and what has them come to the processes of a program."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hosts import Hosts

KINDS = ("kill", "stop", "pause", "slow")
LINK = "link"  # between hosts
WEIGHTS = {"kill": 1, "stop": 1, "pause": 4, "slow": 2, LINK: 1}  # how often each comes, relative to the others
COLLECT_TIMEOUT = 2.0  # seconds: faults.collect_timeout of the runs
SLOW_FOR, TURN, SHARE = 5.0, 0.05, 0.2  # seconds; of each turn a slow worker runs for this share
TOKEN = "OMPI_CHAOS"  # mpirun passes what begins with OMPI_ on to other hosts


@dataclass(frozen=True)
class Fault:
    """at: seconds after the first step; seconds: how long it lasts."""

    at: float
    kind: str
    rank: int
    seconds: float = 0.0


def draw(seed: int, rate: float, ranks: Sequence[int], kinds: Sequence[str], most_killed: float) -> Iterator[Fault]:
    """Faults without an end, `rate` a minute. most_killed: of all."""
    rng = random.Random(seed)
    at, killed = 0.0, 0
    while True:
        at += rng.expovariate(rate / 60)
        kind = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        rank, pause = rng.choice(ranks), rng.uniform(0.1, 1.0)
        killed += kind == "kill"
        if kind == "kill" and killed > most_killed:
            continue
        lasting = {"kill": 0.0, "pause": pause, "slow": SLOW_FOR}
        yield Fault(at, kind, rank, lasting.get(kind, 2 * COLLECT_TIMEOUT))


@dataclass(frozen=True)
class Cluster:
    """The hosts of a program, each with a link of its own. size: ranks on each."""

    hosts: Hosts
    size: int

    def command(self, words: Sequence[str], ranks: int) -> list[str]:
        """Of `psgc launch`, on the first host; the last one may have fewer ranks."""
        counts = [min(self.size, ranks - begin) for begin in range(0, ranks, self.size)]
        places = ",".join(f"{name}:{count}" for name, count in zip(self.hosts.names, counts, strict=True))
        return self.hosts.command(self.hosts.names[0], [*words, "--host", places])

    def cut(self, rank: int, seconds: float) -> int:
        """Not the first host: mpirun is there."""
        name = self.hosts.names[max(1, rank // self.size)]
        self.hosts.unplug(name)
        time.sleep(seconds)
        self.hosts.plug(name)
        return self.size


@dataclass
class Chaos:
    """Has faults come to the processes of a program, which it finds by their token.

    cut: takes the link of the host of a rank down for some seconds, and says how many ranks that concerns; away:
    seconds in which ranks were dead, stopped or cut off, added up; dead: since when, by rank; fewest: ranks, while no
    more of which are alive nothing happens, since a rank 0 that is stopped for long is killed by others.
    """

    token: str
    faults: Iterator[Fault]
    cut: Callable[[int, float], int] | None = None
    fewest: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)
    done: list[Fault] = field(default_factory=list)
    away: float = 0.0
    dead: dict[int, float] = field(default_factory=dict)

    def run(self) -> None:
        """Until `is_over`. One fault at a time comes to a rank; they do not wait for each other."""
        began, under_way = time.monotonic(), {}
        for fault in self.faults:
            if self.is_over.wait(max(0.0, began + fault.at - time.monotonic())):
                break
            self.see_the_living()
            living = processes(self.token)
            if sum(rank >= 0 for rank in living) <= self.fewest:
                continue
            pid = living.get(fault.rank)
            if pid is None or ((before := under_way.get(fault.rank)) and before.is_alive()):
                continue
            self.done.append(fault)
            under_way[fault.rank] = thread = threading.Thread(target=self._happen, args=(fault, pid))
            thread.start()
        for thread in under_way.values():
            thread.join()
        self.see_the_living(is_end=True)

    def see_the_living(self, is_end: bool = False) -> None:
        """Ranks that were killed and run again, after a restart, are away no more."""
        living, now = processes(self.token), time.monotonic()
        for rank in [rank for rank in self.dead if is_end or rank in living]:
            self.away += now - self.dead.pop(rank)

    def _happen(self, fault: Fault, pid: int) -> None:
        began = time.monotonic()
        end = began + fault.seconds
        with suppress(ProcessLookupError):
            if fault.kind == "kill":
                os.kill(pid, signal.SIGKILL)
                self.dead[fault.rank] = began
                return
            if fault.kind == LINK:
                assert self.cut is not None
                self.away += fault.seconds * self.cut(fault.rank, fault.seconds)
                return
            stopped, running = (TURN * (1 - SHARE), TURN * SHARE) if fault.kind == "slow" else (fault.seconds, 0.0)
            while time.monotonic() < end and not self.is_over.is_set():
                os.kill(pid, signal.SIGSTOP)
                self.is_over.wait(stopped)
                os.kill(pid, signal.SIGCONT)
                self.away += stopped
                time.sleep(running)


def processes(token: str) -> dict[int, int]:
    """The living ranks of a program, rank to pid; others of its processes have the negative of their pid as rank."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            environ = (entry / "environ").read_bytes().split(b"\0")
            if f"{TOKEN}={token}".encode() not in environ:
                continue
            if (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z":
                continue
            ranks = [int(word.partition(b"=")[2]) for word in environ if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
            pid = int(entry.name)
            rank = ranks[0] if ranks else -pid
            found[rank] = min(pid, found.get(rank, pid))  # a rank has children, which are younger
    return found
