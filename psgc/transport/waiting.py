"""How a process waits for messages: how long it sleeps between two looks at MPI, and what wakes it.

MPI cannot be slept on: a process has to look whether something has come, and every sleep between two looks costs 20 to
40 us of CPU time. So it sleeps not at all after a message, then longer and longer. And each process has a bell, a
datagram socket, which can be slept on. Its own threads ring it, and ranks of the same host that have sent it something.
A ring that is not heard, or comes too early, only means that the process looks later.
"""

import select
import socket
from contextlib import suppress
from functools import cache

from psgc.processes import Identity

LARGE = 1 << 16  # bytes from which a transfer is worth looking at without sleeping
SPINS = 3  # looks before the first sleep, unless the bell rings for every message; short sleeps once it has rung
HOT_SPINS = 2000  # the same while a large transfer is under way: about 20 ms
SHORTEST, LONGEST, SILENT = 50e-6, 1e-3, 2e-3  # seconds: the first sleep, the longest, and the sleeps after SILENCE
BUSY = 200e-6  # the first sleep while another thread of this process computes
BELL = 32e-3  # the sleeps of a worker that is woken for every message
SILENCE = 0.1  # seconds without a message
GROWTH = 1.3  # of a sleep over the one before: a message is noticed late by a quarter of the time waited
OWN, NEIGHBOUR = b"o", b"n"  # who rings


class Backoff:
    """The sleeps of one process. first: seconds of the first sleep after a message; SHORTEST, unless it is woken."""

    def __init__(self, first: float) -> None:
        self._first = first
        self.came()

    def reset(self) -> None:
        """Something was sent, or another thread of this process has something to say."""
        self._looks, self._slept, self._sleep = 0, 0.0, self._first

    def rung(self) -> None:
        """The bell has rung for a message. It may not be here yet, or it came before the bell."""
        self.reset()
        self._expected = SPINS

    def came(self) -> None:
        """Something has come."""
        self.reset()
        self._expected = 0

    def next(self, large: bool, busy: bool, least: float = 0.0) -> float:
        """Seconds to sleep before the next look: `least` or more.

        large: a large transfer is under way. Where the kernel does not help, its data moves only while MPI is called.
        busy: another thread of this process has a use for the core.
        """
        self._looks += 1
        spins = HOT_SPINS if large else SPINS if self._first == SHORTEST and not busy else 0
        if self._looks <= spins and not least:
            return 0.0
        least = max(least, BUSY if busy else 0.0)
        if self._expected:
            self._expected -= 1
            return max(SHORTEST, least)
        if self._slept > SILENCE:
            return max(SILENT, self._first)
        sleep = max(self._sleep, least)
        self._slept += sleep
        self._sleep = max(sleep, min(LONGEST, sleep * GROWTH))
        return sleep


class Bell:
    """The bell of the process `own`, and those of its neighbours."""

    def __init__(self, own: Identity) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._address = _address(own)
        self.works = True  # whether others can ring it
        try:
            self._socket.bind(self._address)
        except OSError:  # only Linux has names that are no files
            self._socket.close()
            self._socket, self._inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in (self._socket, self._inside):
                end.setblocking(False)
            self.works = False

    def ring(self) -> None:
        """Wake the sleeping thread of this process. For other threads."""
        with suppress(OSError):  # it has not been heard yet, and need not ring twice
            self._socket.sendto(OWN, self._address) if self.works else self._inside.send(OWN)

    def ring_at(self, process: Identity) -> None:
        """Ring the bell of another process of this host, which was sent a message."""
        with suppress(OSError):  # as above, or it has ended
            self._socket.sendto(NEIGHBOUR, _address(process))

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
        if not self.works:
            self._inside.close()

    def sleep(self, seconds: float) -> set[bytes]:
        """Sleep until the bell rings. Returns who has rung it, OWN or NEIGHBOUR; empty when it has not rung."""
        rung: set[bytes] = set()
        if select.select([self._socket], [], [], seconds)[0]:
            with suppress(OSError):
                while True:
                    rung.add(self._socket.recv(1))
        return rung


@cache
def _address(process: Identity) -> bytes:
    return f"\0psgc {process.machine} {process.pid} {process.started}".encode()[:100]
