"""A simulated network: every rank has a link with a rate, one send and one receive at a time, and all have a latency.

Messages leave their sender's link one after the other, as they were posted. `latency` seconds after its first byte has
left, a message is at its receiver's link, which takes one after the other at its own rate. What waits for a receiver
does not keep its sender from sending something else. Control messages wait for each other only.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

Then = Callable[[], object]


def nothing() -> None:
    """For messages that nothing follows."""


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    dest: int
    size: int  # bytes
    arrived: Then  # called when it is there
    sent: Then  # called when it is through its sender's link


class VirtualLinks:
    """The links of all ranks, for large messages or for control messages."""

    def __init__(self, ranks: int) -> None:
        self.waiting: list[deque[Transfer]] = [deque() for _ in range(ranks)]  # by sender
        self.sending = [False] * ranks
        self.receiving = [0.0] * ranks  # until when, seconds
        self.bytes = [0] * ranks  # sent and received so far


class VirtualNetwork:
    """A virtual clock, and the links of all ranks. rates: of each, bytes per second; latency: seconds; now: seconds."""

    def __init__(self, rates: Sequence[float], latency: float) -> None:
        self.now = 0.0
        self.vectors, self.control = VirtualLinks(len(rates)), VirtualLinks(len(rates))
        self._rates, self._latency = rates, latency
        self._events: list[tuple[float, int, Then]] = []  # (when, number, what)
        self._number = 0

    def send(self, source: int, dest: int, size: int, arrived: Then, sent: Then = nothing) -> None:
        """Send a vector of so many bytes as soon as the link is free."""
        self._post(self.vectors, source, Transfer(dest, size, arrived, sent))

    def tell(self, source: int, dest: int, size: int, arrived: Then) -> None:
        """The same with a control message."""
        self._post(self.control, source, Transfer(dest, size, arrived, nothing))

    def at(self, when: float, then: Then) -> None:
        heappush(self._events, (when, self._number, then))
        self._number += 1

    def run(self) -> None:
        """Until nothing is under way."""
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
