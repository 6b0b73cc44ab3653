"""A bell at each process, which ranks of the same host ring when they have sent it something, as do its own threads.

MPI cannot be slept on: a process has to look whether something has come, and every sleep between two looks costs 20 to
40 us of CPU time. The bell is a datagram socket, which can be slept on. A ring that is not heard,
or comes too early, only means that the process looks later.
"""

import select
import socket
from contextlib import suppress
from functools import cache

from psgc.processes import Identity

OWN, NEIGHBOUR = b"o", b"n"  # who rings


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
        """Wake the thread of this process that sleeps; for other threads."""
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
        """Sleep until the bell rings: who has rung it, OWN or NEIGHBOUR; nobody when it has not rung."""
        rung: set[bytes] = set()
        if select.select([self._socket], [], [], seconds)[0]:
            with suppress(OSError):
                while True:
                    rung.add(self._socket.recv(1))
        return rung


@cache
def _address(process: Identity) -> bytes:
    return f"\0psgc {process.machine} {process.pid} {process.started}".encode()[:100]
