"""Pauses between two polls of MPI: how long a process sleeps, what it polls meanwhile, and which ranks it wakes."""

import os
import time
from collections.abc import Iterator, Mapping
from math import inf
from typing import NamedTuple

from psgc.processes import Identity
from psgc.transport.receives import Receives
from psgc.transport.sends import SMALL, Sends
from psgc.transport.waiting import BELL, LARGE, LONGEST, NEIGHBOUR, OWN, SHORTEST, Backoff, Bell
from psgc.vectors import MESSAGE

NAP = 5e-4  # seconds between two polls when ranks share cores, which the others need
REST = 4e-3  # seconds after which `wait` returns at the latest, without a bell and while blocks are exchanged


class Pause(NamedTuple):
    """How a loop waits (`Pauses.wait`)."""

    busy: bool = False
    nap: float = 0.0
    exchanging: bool = False
    more: bool = False


class Pauses:
    """The pauses of this process, which may have two ranks: then rank 0 waits for both.

    beside: is called to let the worker in the process of rank 0 run between two waits
    is_woken: whether a rank that sends this process something rings its bell
    """

    beside: Iterator[Pause] | None = None
    is_woken = False

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._near: Mapping[int, Identity] = {}  # the ranks of this host
        self._ends: list[tuple[Receives, Sends]] = []  # of each rank of this process
        self._to_wake: set[int] = set()  # ranks that were sent something since their bells rang last
        self._rang = 0.0  # when this process last rang other bells, time.monotonic()
        self._backoff, self._rest, self._least_nap = Backoff(SHORTEST), REST, 0.0

    def enter(self, near: Mapping[int, Identity]) -> None:
        """A term begins. near: the ranks of this host; `add` follows for each rank of this process."""
        self._near, self._ends = near, []
        self._to_wake.clear()

    def add(self, receives: Receives, sends: Sends) -> None:
        """Wait also for what this rank of this process receives and sends."""
        self._ends.append((receives, sends))

    def start(self, senders: range) -> None:
        """These ranks will send this process messages."""
        self.is_woken = self._bell.works and all(rank in self._near for rank in senders)
        self._rest = BELL if self.is_woken else REST
        if self.is_woken:
            self._backoff = Backoff(self._rest)
        self._least_nap = NAP if len(self._near) > len(os.sched_getaffinity(0)) else 0.0

    def sent(self, dest: int) -> None:
        """`dest` was sent something, and is to be woken for it."""
        self._backoff.reset()
        self._to_wake.add(dest)

    def came(self) -> None:
        """A poll has found messages."""
        self._backoff.came()

    def wake_others(self) -> None:
        """Ring the bell of each rank that was sent something, once. `wait` does so too."""
        if self._to_wake:
            self._ring_at(self._to_wake)
            self._to_wake.clear()

    def _ring_at(self, ranks: set[int]) -> None:
        self._rang = time.monotonic()
        for rank in ranks & self._near.keys():
            self._bell.ring_at(self._near[rank])

    def wake(self) -> None:
        """End the `wait` of the communication thread. The only method that other threads may call."""
        self._bell.ring()

    def wait(
        self, busy: bool = False, nap: float = 0.0, exchanging: bool = False, more: bool = False, rest: float = inf
    ) -> bool:
        """Pause until `poll` may find something, for some milliseconds at most. Returns whether it may.

        It returns False if a thread of this process has ended the pause, and all other ranks ring the bell when they
        send something. Sends go on during the pause.

        busy: whether another thread of this process needs the core
        nap: least seconds between two polls
        exchanging: whether `nap` is also the most, and `poll` has to return the end of a send
        more: whether the caller sends more once a send has ended; else small sends need polls only if MPI has no room
        rest: seconds after which the caller has something to do
        """
        if self.beside is not None:
            other = next(self.beside, Pause())
            busy, nap, exchanging = busy or other.busy, min(nap, other.nap), exchanging or other.exchanging
            more = more or other.more
        self.wake_others()
        rest = max(LONGEST, min(rest, self._rest))
        for receives, sends in self._ends:
            receives.repost()
            if not exchanging:  # otherwise the end of a send must be returned
                sends.poll()
        size = max(sends.largest() for _, sends in self._ends)
        until = NAP if more or size > SMALL else REST  # the next poll of a send
        if size and not exchanging and time.monotonic() - self._rang > until:  # the other end must call MPI too
            self._ring_at({rank for _, sends in self._ends for rank in sends.pending()})
        large, polls = size >= LARGE, exchanging
        if nap:
            nap, large = max(nap, self._least_nap), False
        elif large and self._least_nap:  # polling without a pause would take the core that the transfer needs
            nap = rest if busy and size <= MESSAGE else self._least_nap  # a short one ends while others compute
            large, polls = False, True
        elif self._rest == BELL and size and not large and not busy:  # no bell rings when a send can go on
            nap, polls = until, True
        if len(self._ends) > 1 and any(receives.has_message() for receives, _ in self._ends):
            return True  # messages between the two ranks of this process
        over = time.monotonic() + (REST if polls else rest)
        while True:
            if rung := self._bell.sleep(nap if polls else min(rest, self._backoff.next(large, busy, nap))):
                self._backoff.rung() if NEIGHBOUR in rung else self._backoff.reset()
                if rung != {OWN} or not self.is_woken or exchanging:
                    return True
                for _, sends in self._ends:
                    sends.poll()  # a large send moves only in MPI calls
                return False
            if large or (polls and sum(sends.poll() for _, sends in self._ends)):
                return True
            if any(receives.has_message() for receives, _ in self._ends) or time.monotonic() >= over:
                return True

    def close(self) -> None:
        """No rank of this process waits any more."""
        self._bell.close()
