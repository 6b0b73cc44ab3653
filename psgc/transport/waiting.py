"""Waiting for messages: how long a process sleeps between two polls of MPI, and what wakes it.

A process cannot sleep in MPI: it has to poll, and every sleep between two polls costs 20 to 40 us of CPU time. So it
does not sleep right after a message, and then sleeps longer and longer. Each process also has a bell, a datagram
socket, on which it can sleep. Its own threads ring it, and so do ranks of the same host that have sent it something. If
a ring is lost or comes too early, the process only polls later.
"""

import select
import socket
from contextlib import suppress
from functools import cache

from psgc.processes import Identity

LARGE = 1 << 16  # bytes; from this size on a transfer is polled without sleeping
SPINS = 3  # polls before the first sleep, unless the bell rings for every message; short sleeps once it has rung
HOT_SPINS = 2000  # polls before the first sleep while a large transfer is under way: about 20 ms
SHORTEST, LONGEST, SILENT = 50e-6, 1e-3, 2e-3  # seconds: the first sleep, the longest, and the sleeps after SILENCE
BUSY = 200e-6  # seconds of the first sleep while another thread of this process computes
BELL = 32e-3  # seconds of the sleeps of a process whose bell rings for every message
SILENCE = 0.1  # seconds without a message
GROWTH = 1.3  # of a sleep over the one before: a message is noticed late by a quarter of the time waited
OWN, NEIGHBOUR = b"o", b"n"  # which process rings


class Backoff:
    """The sleeps of one process.

    first: seconds of the first sleep after a message; SHORTEST, unless the bell rings for messages
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._expected, self._has_more = 0, False
        self.reset()

    def reset(self) -> None:
        """Something was sent, or another thread of this process has a message."""
        self._polls, self._slept, self._sleep = 0, 0.0, self._first

    def rung(self) -> None:
        """The bell has rung for a message. The message may come later, or came before."""
        self.reset()
        self._expected = SPINS

    def came(self) -> None:
        """A message has come. One poll does not move everything: MPI may have more."""
        self.reset()
        self._expected, self._has_more = 0, True

    def next(self, large: bool, busy: bool, least: float = 0.0) -> float:
        """Seconds to sleep before the next poll: `least` or more.

        large: a large transfer is under way; without help from the kernel its data moves only in MPI calls
        busy: another thread of this process needs the core
        """
        if self._has_more:
            self._has_more = False
            return 0.0
        self._polls += 1
        spins = HOT_SPINS if large else SPINS if self._first == SHORTEST and not busy else 0
        if self._polls <= spins and not least:
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
        self.works = True  # whether other processes can ring it
        try:
            self._socket.bind(self._address)
        except OSError:  # only Linux has socket names that are no files
            self._socket.close()
            self._socket, self._inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in (self._socket, self._inside):
                end.setblocking(False)
            self.works = False

    def ring(self) -> None:
        """Wake the sleeping thread of this process. For other threads."""
        with suppress(OSError):  # an earlier ring was not heard yet
            self._socket.sendto(OWN, self._address) if self.works else self._inside.send(OWN)

    def ring_at(self, process: Identity) -> None:
        """Ring the bell of another process of this host, which was sent a message."""
        with suppress(OSError):  # an earlier ring was not heard yet, or the process has ended
            self._socket.sendto(NEIGHBOUR, _address(process))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        if not self.works:
            self._inside.close()

    def sleep(self, seconds: float) -> set[bytes]:
        """Sleep until the bell rings. Returns what has rung it, OWN or NEIGHBOUR; empty when it has not rung."""

        rung: set[bytes] = set()
        if select.select([self._socket], [], [], seconds)[0]:
            with suppress(OSError):
                while True:
                    rung.add(self._socket.recv(1))
        return rung


@cache
def _address(process: Identity) -> bytes:
    return f"\0psgc {process.machine} {process.pid} {process.started}".encode()[:100]
