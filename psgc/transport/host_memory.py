"""Memory that processes of one host share. It has no name, so nothing is left of it when they have ended."""

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psgc.processes import Identity


class Shared(NamedTuple):
    """The memory that this rank shares.

    hosts: by rank, the number of the host whose memory it shares; () if no rank shares any; a rank that shares
        none has a number of its own
    memory: of this rank's host, None if the rank shares none
    order: by rank, the place of its part in the memory of its host
    """

    hosts: tuple[int, ...] = ()
    memory: Any = None
    order: tuple[int, ...] = ()

    def of_host(self, rank: int) -> list[int]:
        """The ranks of the host of `rank`, with `rank`, in an order of processes that never changes."""
        ranks = [other for other, host in enumerate(self.hosts) if host == self.hosts[rank]]
        return sorted(ranks, key=self.order.__getitem__) if self.order else ranks

    def of(self, places: Sequence[int]) -> "Shared":
        """The same memory, for ranks that are the processes at these places. A rank 0 that works comes last."""
        if not self.hosts:
            return self
        end = len(places)
        order = (end if place in places[rank + 1 :] else place for rank, place in enumerate(places))
        return Shared(tuple(self.hosts[place] for place in places), self.memory, tuple(order))


def create(size: int) -> int:
    """A file of `size` bytes, all 0. Only written pages take memory. Raises OSError.

    It is in no folder: /dev/shm may be small in containers, and would keep the files of killed processes.
    """
    file = os.memfd_create("psgc", os.MFD_CLOEXEC)
    os.ftruncate(file, size)
    return file


def attach(pid: int, file: int, size: int) -> mmap.mmap:
    """The memory that process `pid` of this host has created as `file`. Raises OSError, and ValueError for others."""
    opened = os.open(f"/proc/{pid}/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
    try:
        if (found := os.fstat(opened).st_size) != size:
            raise ValueError(f"{found} bytes, not {size}")
        return mmap.mmap(opened, size)
    finally:
        os.close(opened)


def share(
    rank: int,
    processes: Sequence[Identity],
    gather: Callable[[str], Sequence[str]],
    size: Callable[[int], int],
    unless: str = "",
    more: int = 0,
) -> tuple[Shared, list[str]]:
    """Have the ranks of each host share memory. Collective: every rank calls it.

    processes: of all ranks
    gather: sends all ranks a text of each rank
    size: gives the bytes for a number of ranks
    unless: why this rank cannot share, or empty
    more: ranks that a host may have besides its processes

    Returns what this rank shares, and the reasons of ranks that cannot.
    """
    firsts = [next(at for at, other in enumerate(processes) if other.is_near(process)) for process in processes]
    first, count, file, memory = firsts[rank], firsts.count(firsts[rank]) + more, -1, None
    if rank == first and count > 1 and not unless:
        try:
            file = create(size(count))
        except (OSError, AttributeError) as error:
            unless = f"no memory to share: {error}"
    files = gather(str(file))
    if count > 1 and not unless and int(files[first]) >= 0:
        try:
            memory = attach(processes[first].pid, int(files[first]), size(count))
        except (OSError, ValueError) as error:
            unless = f"rank {rank} cannot open the memory of rank {first}: {error}"
    reasons = gather(unless)
    if file >= 0:  # every rank has opened it by now
        os.close(file)
    alone = {first for first, reason in zip(firsts, reasons, strict=True) if reason} | {
        first for first in firsts if firsts.count(first) + more == 1
    }
    if alone.issuperset(firsts):
        return Shared(), [*filter(None, reasons)]
    hosts = tuple(other if first in alone else first for other, first in enumerate(firsts))
    return Shared(hosts, None if first in alone else memory), [*filter(None, reasons)]
