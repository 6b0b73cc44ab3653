"""A simulated network: every rank has a link with a rate, one send and one receive at a time, and a common latency.

Messages leave their sender's link one after the other, in the order in which they were posted. `latency` seconds after
its first byte was sent, a message is at its receiver's link, which receives one message after the other at its own
rate. A message that waits for its receiver does not block its sender. Control messages only wait for other control
messages.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

Then = Callable[[], object]


def nothing() -> None:
    """For messages without further consequences."""


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    dest: int
    size: int  # bytes
    arrived: Then  # is called when it has arrived
    sent: Then  # is called when it has passed its sender's link


class VirtualLinks:
    """The links of all ranks, for large messages or for control messages."""

    def __init__(self, ranks: int) -> None:
        self.waiting: list[deque[Transfer]] = [deque() for _ in range(ranks)]  # by sender
        self.sending = [False] * ranks
        self.receiving = [0.0] * ranks  # the time until which the link receives, seconds
        self.bytes = [0] * ranks  # sent and received so far


class VirtualNetwork:
    """A virtual clock, and the links of all ranks with their rates, in bytes per second."""

    def __init__(self, rates: Sequence[float], latency: float) -> None:
        self.now = 0.0  # seconds
        self.vectors, self.control = VirtualLinks(len(rates)), VirtualLinks(len(rates))
        self._rates, self._latency = rates, latency
        self._events: list[tuple[float, int, Then]] = []  # (when, number, what)
        self._number = 0

    def send(self, source: int, dest: int, size: int, arrived: Then, sent: Then = nothing) -> None:
        """Send a vector of `size` bytes as soon as the link is free."""
        self._post(self.vectors, source, Transfer(dest, size, arrived, sent))

    def tell(self, source: int, dest: int, size: int, arrived: Then) -> None:
        """Send a control message of `size` bytes."""
        self._post(self.control, source, Transfer(dest, size, arrived, nothing))

    def at(self, when: float, then: Then) -> None:
        heappush(self._events, (when, self._number, then))
        self._number += 1

    def run(self) -> None:
        """Run until there are no more events."""
        while self._events:
            self.now, _, then = heappop(self._events)
            then()

    def _post(self, links: VirtualLinks, source: int, message: Transfer) -> None:
        if source == message.dest:  # within a host
            self.at(self.now, message.arrived)
            return
        links.waiting[source].append(message)
        if not links.sending[source]:
            self._next(links, source)

    def _next(self, links: VirtualLinks, source: int) -> None:
        links.sending[source] = bool(links.waiting[source])
        if not links.waiting[source]:
            return
        message = links.waiting[source].popleft()
        out, into = (message.size / self._rates[rank] for rank in (source, message.dest))
        there = max(self.now + self._latency + out, links.receiving[message.dest] + into)
        links.receiving[message.dest] = there
        links.bytes[source] += message.size
        links.bytes[message.dest] += message.size

        def through() -> None:
            self._next(links, source)
            message.sent()

        self.at(self.now + out, through)
        self.at(there, message.arrived)
