"""Buffers in which blocks are received, summed and sent, and the sends of a rank."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc.aggregation.protocol import SendBlock, Sent, SlowSends
from psgc.aggregation.slices import BLOCK
from psgc.backend import Array, Backend, part_length
from psgc.transport import Sending, Transport
from psgc.vectors import stamp_length

POSTED = 8  # receives, so that the next blocks come while one is handled
LEAST_ROOM = 1 << 18  # bytes of a buffer; in smaller blocks a large state of a small model would take too long
UNDER_WAY = 4  # blocks that a rank sends another one at a time, for two exchanges
LONG = 4.0  # times the usual duration of sends, after which the destination is held
LEAST_LONG = 0.05  # seconds


def room_bytes(parts: int, coded: int) -> int:
    """Bytes of a buffer. coded: bytes of a coded vector."""
    return max(parts * min(coded, BLOCK), LEAST_ROOM)


class Pool:
    """Buffers for blocks. There are as many as were needed at the same time.

    room: entries of a buffer besides its stamp; a block of a gradient fits (`room_bytes`)
    in_use: number of buffers that are neither free nor posted
    """

    def __init__(self, backend: Backend, dim: int, parts: int, dtype: Any) -> None:
        self._backend = backend
        self.dtype = np.dtype(dtype)
        self._stamp = stamp_length(dtype)
        itemsize = self.dtype.itemsize
        self.room = room_bytes(parts, part_length(dim, parts) * itemsize) // itemsize
        self._free: list[Array] = []
        self._abandoned: dict[int, Array] = {}  # by id: ranks that have left may still read them
        self._is_open = False
        self.in_use = 0
        self._spared: set[int] = set()  # ranks for which more receives were posted

    def take(self) -> Array:
        """A buffer with arbitrary entries."""
        self.in_use += 1
        if self._free:
            return self._free.pop()
        return self._backend.message_buffer(self.room + self._stamp, self.dtype)

    def message(self, buffer: Array, entries: int) -> Array:
        """The first entries of a buffer, and its stamp after them."""
        return buffer[: entries + self._stamp]

    def note(self) -> Array:
        """A stamp without entries."""
        return self._backend.message_buffer(self._stamp, self.dtype)

    def give_back(self, buffer: Array) -> None:
        """Free a buffer."""
        self.in_use -= 1
        if self._abandoned.pop(id(buffer), None) is None:
            self._free.append(buffer)

    def sent(self, buffer: Array, sending: Sending) -> None:
        """A send of the buffer has ended. The buffer is not reused if the other rank may still read it."""
        if not sending.is_free:
            self._abandoned[id(buffer)] = buffer

    def open(self, transport: Transport) -> None:
        """Post receives of blocks from all ranks."""
        self._is_open = True
        self._post(transport, POSTED)

    def spare(self, transport: Transport, rank: int) -> None:
        """Post more receives: what `rank`, which has left, was sending may keep buffers for ever."""
        if self._is_open and rank not in self._spared:
            self._spared.add(rank)
            self._post(transport, UNDER_WAY)

    def receive(self, transport: Transport, buffer: Array) -> Array:
        """Give the caller a buffer that was received, and post another one in its place."""
        transport.keep(buffer)
        self._post(transport, 1)
        self.in_use += 1
        return buffer

    def _post(self, transport: Transport, count: int) -> None:
        for _ in range(count):
            transport.post(self.take())
        self.in_use -= count


@dataclass(slots=True)
class _UnderWay:
    """A block that is being sent.

    buffer: of the pool, None for a note
    size: bytes
    at_once: whether MPI took all of it at once, as it does with small messages
    """

    send: SendBlock
    handle: Sending
    buffer: Array | None
    size: int
    since: float
    at_once: bool


class Link:
    """The sends of this rank, and how long they take.

    usual: seconds that a send takes
    carried: by iteration, bytes of blocks sent and received
    """

    def __init__(self, transport: Transport, pool: Pool) -> None:
        self._transport, self._pool = transport, pool
        self._under_way: list[_UnderWay] = []
        self.usual = LEAST_LONG / LONG
        self.carried: Counter[int] = Counter()

    @property
    def has_sent(self) -> bool:
        """Whether `poll` would yield a send that has ended."""
        return any(one.handle.is_done for one in self._under_way)

    @property
    def is_sending(self) -> bool:
        """Whether a block is being sent."""
        return bool(self._under_way)

    def send(self, send: SendBlock, buffer: Array, entries: int) -> None:
        """Begin to send the first entries of `buffer`."""
        handle = self._transport.send_vector(send.dest, self._pool.message(buffer, entries))
        size = entries * self._pool.dtype.itemsize
        self._under_way.append(_UnderWay(send, handle, buffer, size, time.monotonic(), handle.is_done))

    def note(self, send: SendBlock, message: Array, of_few: bool) -> None:
        """Begin to send a note, a message without entries.

        of_few: whether there are few notes for each rank; otherwise the send ends when the note is read, since notes
            that a stopped rank does not read take up the memory that MPI has for the messages of a host
        """
        handle = self._transport.send_vector(send.dest, message, heard=not of_few)
        self._under_way.append(_UnderWay(send, handle, None, 0, time.monotonic(), handle.is_done))

    def came(self, iteration: int, entries: int) -> None:
        """A block of so many entries has come."""
        self.carried[iteration] += entries * self._pool.dtype.itemsize

    def forget_before(self, iteration: int) -> None:
        """Forget what the links carried for earlier iterations."""
        self.carried = Counter({number: size for number, size in self.carried.items() if number >= iteration})

    def poll(self) -> Iterator[Sent | SlowSends]:
        """The ends of sends, and destinations that are slow. The caller must handle each event before the next one."""
        now, long = time.monotonic(), max(LEAST_LONG, LONG * self.usual)
        before, self._under_way = self._under_way, []
        ended: list[_UnderWay] = []
        for one in before:
            (ended if one.handle.is_done else self._under_way).append(one)
        for one in ended:
            took = now - one.since
            if one.buffer is not None:
                self.usual += 0.0 if one.at_once else (min(took, long) - self.usual) / 16
                self.carried[one.send.key.iteration] += one.size
                self._pool.sent(one.buffer, one.handle)
                if one.send.key.contributor is not None:  # a block of the gradient may be going to other ranks too
                    self._pool.give_back(one.buffer)
            if took < long:
                yield SlowSends(one.send.dest, False)
            yield Sent(one.send)
        for dest in {one.send.dest for one in self._under_way if now - one.since > long}:
            yield SlowSends(dest)
