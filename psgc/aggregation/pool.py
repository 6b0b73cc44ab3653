"""Buffers for blocks, which are received, summed and sent in them; and what a rank's link carries of blocks."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc.aggregation.protocol import SendBlock, Sent, TakesLong
from psgc.aggregation.slices import BLOCK
from psgc.backend import Array, Backend, part_length
from psgc.messages import stamp_length
from psgc.transport import Sending, Transport

POSTED = 8  # receives: while one block is handled the next ones come
LEAST_ROOM = 1 << 18  # bytes of a buffer: in smaller blocks a large state of a small model would never come to an end
UNDER_WAY = 4  # blocks that one rank sends another at a time: of two exchanges
LONG = 4.0  # times what sends usually take, after which the destination is held
LEAST_LONG = 0.05  # seconds


def room_bytes(parts: int, coded: int) -> int:
    """Bytes of a buffer, for a coded vector of so many bytes."""
    return max(parts * min(coded, BLOCK), LEAST_ROOM)


class Pool:
    """As many buffers as have been needed at the same time.

    room: entries of a buffer, besides its stamp: at least those of a block of a gradient (`room_bytes`);
    in_use: buffers that are neither free nor posted.
    """

    def __init__(self, backend: Backend, dim: int, parts: int, dtype: Any) -> None:
        self._backend = backend
        self.dtype = np.dtype(dtype)
        self._stamp = stamp_length(dtype)
        itemsize = self.dtype.itemsize
        self.room = room_bytes(parts, part_length(dim, parts) * itemsize) // itemsize
        self._free: list[Array] = []
        self._abandoned: dict[int, Array] = {}  # by identity: ranks that have left may still read them
        self._is_open = False
        self.in_use = 0
        self._spared: set[int] = set()  # ranks for which more receives are posted

    def take(self) -> Array:
        """A buffer, whose entries may be anything."""
        self.in_use += 1
        if self._free:
            return self._free.pop()
        return self._backend.message_buffer(self.room + self._stamp, self.dtype)

    def message(self, buffer: Array, entries: int) -> Array:
        """The first entries of a buffer, and behind them the place of the stamp."""
        return buffer[: entries + self._stamp]

    def note(self) -> Array:
        """The place of a stamp alone."""
        return self._backend.message_buffer(self._stamp, self.dtype)

    def give_back(self, buffer: Array) -> None:
        """The buffer is not needed any more."""
        self.in_use -= 1
        if self._abandoned.pop(id(buffer), None) is None:
            self._free.append(buffer)

    def sent(self, buffer: Array, sending: Sending) -> None:
        """A send of the buffer is done. If it has left while the other rank may still read it, it is not used again."""
        if not sending.is_free:
            self._abandoned[id(buffer)] = buffer

    def open(self, transport: Transport) -> None:
        """Receive blocks from all ranks."""
        self._is_open = True
        self._post(transport, POSTED)

    def spare(self, transport: Transport, rank: int) -> None:
        """`rank` has left: the rest of what it was sending may never come, to buffers that others waited for."""
        if self._is_open and rank not in self._spared:
            self._spared.add(rank)
            self._post(transport, UNDER_WAY)

    def receive(self, transport: Transport, buffer: Array) -> Array:
        """The buffer that was received is the caller's from now on; another one is posted in its place."""
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
    """A block that is being sent. buffer: of the pool, None of a note; size: bytes; at_once: MPI took all of it at
    once, as it does small ones.
    """

    send: SendBlock
    handle: Sending
    buffer: Array | None
    size: int
    since: float
    at_once: bool


class Link:
    """What this rank sends of blocks, and how long that takes.

    usual: seconds that a send takes; carried: by iteration the bytes of blocks that have come or left.
    """

    def __init__(self, transport: Transport, pool: Pool) -> None:
        self._transport, self._pool = transport, pool
        self._under_way: list[_UnderWay] = []
        self.usual = LEAST_LONG / LONG
        self.carried: Counter[int] = Counter()

    @property
    def has_sent(self) -> bool:
        """Whether `poll` would say that something was sent."""
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
        """Begin to send a message that has no entries.

        of_few: there are few for each rank. Others are only complete when they are read: all that a stopped rank does
        not read takes up memory that MPI has for the messages of a whole host.
        """
        handle = self._transport.send_vector(send.dest, message, heard=not of_few)
        self._under_way.append(_UnderWay(send, handle, None, 0, time.monotonic(), handle.is_done))

    def came(self, iteration: int, entries: int) -> None:
        """A block of so many entries is here."""
        self.carried[iteration] += entries * self._pool.dtype.itemsize

    def forget_before(self, iteration: int) -> None:
        """What iterations before this one took is not asked for any more."""
        self.carried = Counter({number: size for number, size in self.carried.items() if number >= iteration})

    def poll(self) -> Iterator[Sent | TakesLong]:
        """What has come of the sends since; the caller handles each event before it takes the next one."""
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
                if one.send.key.contributor is not None:  # a block of the gradient may be sent to others too
                    self._pool.give_back(one.buffer)
            if took < long:
                yield TakesLong(one.send.dest, False)
            yield Sent(one.send)
        for dest in {one.send.dest for one in self._under_way if now - one.since > long}:
            yield TakesLong(dest)
