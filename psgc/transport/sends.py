"""Messages on their way to other ranks."""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

from psgc.backend import Array, finish
from psgc.messages import BATCH, RECORD
from psgc.mpi_start import MPI
from psgc.processes import RunningTime
from psgc.rendezvous import Deaths, in_bytes
from psgc.transport.terms import OUTSIDE_TAG, Term

SLOWEST = 1e6  # bytes per second; every network is faster
SMALL = BATCH * RECORD.itemsize  # bytes; every MPI takes such a message at once, if it has room


@dataclass(eq=False, slots=True)
class Sending:
    """A message to `dest`.

    is_free: whether the buffer may change, since MPI has sent it or `dest` is dead; updated by `poll`
    """

    request: MPI.Request
    buffer: Array
    size: int  # bytes
    dest: int
    since: float  # of `RunningTime`: when it was sent, or `dest` was remembered
    forgotten: Set[int]  # ranks
    is_free: bool = False

    @property
    def is_done(self) -> bool:
        """Whether no rank waits for it: it `is_free`, or `dest` is forgotten and may still read the buffer."""
        return self.is_free or self.dest in self.forgotten


class Sends:
    """The incomplete sends of a term. Those to dead ranks are dropped, and those to forgotten ranks are not awaited."""

    def __init__(self, deaths: Deaths, term: Term) -> None:
        self._deaths, self._term = deaths, term
        self._sent: list[Sending] = []
        self._orphaned: list[Sending] = []  # to dead ranks: MPI may still read the memory
        self._forgotten: set[int] = set()
        self._running = RunningTime()
        self.bytes = 0

    def send(
        self, comm: MPI.Intracomm, buffer: Array, dest: int, heard: bool = False, outside: bool = False
    ) -> Sending:
        """Start to send `buffer`.

        heard: whether even a small message is complete only when `dest` has taken it
        outside: whether it is outside of all terms
        """
        sending = Sending(MPI.REQUEST_NULL, buffer, buffer.nbytes, dest, self._running.now, self._forgotten)
        try:
            if (place := self._term.place(dest)) not in self._deaths.dead:
                finish(buffer)
                tag = OUTSIDE_TAG if outside else self._term.tag(dest)
                sending.request = (comm.Issend if heard else comm.Isend)(in_bytes(buffer), place, tag)
                self.bytes += buffer.nbytes
                if buffer.nbytes <= SMALL:
                    sending.request.Test()
        except MPI.Exception as error:
            self._deaths.forgive(error)
        if sending.request == MPI.REQUEST_NULL:
            sending.is_free = True
        else:
            self._sent.append(sending)
        return sending

    def poll(self) -> bool:
        """Drop the complete sends. Returns whether there were any."""
        self._running.look()
        if not self._sent:
            return False
        requests = [sent.request for sent in self._sent]
        try:
            if not MPI.Request.Testsome(requests):  # Open MPI tests first and moves messages after that
                MPI.Request.Testsome(requests)
        except MPI.Exception as error:
            self._deaths.forgive(error)
        dead = {rank for place in self._deaths.dead for rank in self._term.ranks_at(place)}
        self._orphaned += [sent for sent in self._sent if sent.dest in dead]
        for sent in self._sent:
            sent.is_free = sent.request == MPI.REQUEST_NULL or sent.dest in dead
        before, self._sent = len(self._sent), [sent for sent in self._sent if not sent.is_free]
        return len(self._sent) < before

    def awaits(self, buffer: Array | None = None) -> bool:
        """Whether a send of `buffer` (None: any) is incomplete, except to dead and forgotten ranks."""
        return any((buffer is None or sent.buffer is buffer) and not sent.is_done for sent in self._sent)

    def largest(self) -> int:
        """Bytes of the largest message under way, 0 for none."""
        return max((sent.size for sent in self._sent if not sent.is_done), default=0)

    def unreached(self, patience: float) -> list[int]:
        """Ranks, except forgotten ones, that have not taken a message for `patience` seconds.

        Large messages have more time. In MPICH the messages to a stopped process fill all the memory that the
        processes of a host have for messages, and then no message arrives there.
        """
        latest = self._running.now - patience - sum(sent.size for sent in self._sent) / SLOWEST
        return sorted({s.dest for s in self._sent if s.since < latest and not s.is_done})

    def pending(self) -> Counter[int]:
        """Bytes on their way to each rank."""
        pending: Counter[int] = Counter()
        for sent in self._sent:
            pending[sent.dest] += sent.size
        return pending

    def forget(self, rank: int) -> None:
        """Do not wait for sends to `rank`, which may be stopped or cut off. They are not withdrawn."""
        self._forgotten.add(rank)

    def remember(self, rank: int) -> None:
        """Undo `forget`: `rank` has been heard again. It has the time anew for what was on its way to it."""
        if rank not in self._forgotten:
            return
        self._forgotten.remove(rank)
        for sent in self._sent:
            if sent.dest == rank:
                sent.since = self._running.now
