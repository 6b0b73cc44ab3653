"""Messages from other ranks, and deaths of ranks.

Control messages and texts share a communicator. Their receives form a ring that is read in the order of posting, which
is the order in which MPI matches: messages from one sender never overtake each other. Vectors have another
communicator. The stamp of a vector says what it is. The tag of a message is that of its term, with another one for rank
0. A process that is rank 0 and a worker has receives for both. Messages that it sends as a worker are marked.

What Open MPI does when a rank dies, on which the code below depends:

* A receive from any source that is tested after a death raises ERR_PROC_FAILED_PENDING until the death is acknowledged
  on its communicator. The receive stays valid. Every poll tests the head of the ring, so deaths are noticed.
* A receive that was found pending in this way and completes later still raises the same error. Its status is filled in,
  which tells it apart from a pending one. It must be freed by hand.
* A receive that matched a message whose sender died half way never completes, never fails and cannot be cancelled. The
  dead rank may have sent more such messages, for buffers that are not posted yet.
* Testsome then raises ERR_IN_STATUS. Its statuses are those of the complete requests, which are null from then on, and
  of the pending ones, in order. A pending one names the rank that it matched. Deaths are never acknowledged on the
  communicator of vectors, so that every buffer that waits for a dead rank is found.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psgc.backend import Array, finish
from psgc.messages import BATCH, OF_WORKERS_RECORD, RECORD, Kind, Records
from psgc.mpi_start import MPI
from psgc.rendezvous import Deaths, in_bytes, received
from psgc.transport.terms import OUTSIDE_TAG, Term
from psgc.vectors import OF_WORKER, stamp_length, unbundled

RING = 16  # posted control receives


@dataclass(frozen=True, slots=True)
class Control:
    """Records from rank `source`."""

    source: int
    records: Records


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the text that rank `source` sent before its next records."""

    source: int
    piece: bytes


@dataclass(frozen=True, slots=True)
class Vector:
    """`buffer[:length]` is a vector from rank `source`, without its stamp.

    A message that is too short for its stamps has iteration -1 and length 0.
    """

    source: int
    iteration: int
    chunk: int
    buffer: Array
    length: int


@dataclass(frozen=True, slots=True)
class Died:
    """The process of `rank` has ended. Nothing more comes from it."""

    rank: int


Message = Control | Text | Vector | Died


@dataclass(slots=True)
class Posted:
    """A posted receive."""

    request: MPI.Request
    buffer: Array


class Receives:
    """The posted receives of a rank in a term, and what has come.

    bytes: received so far
    outside: (place, records) that came outside of all terms; the caller takes them out
    """

    def __init__(self, control: MPI.Intracomm, vectors: MPI.Intracomm, deaths: Deaths, term: Term, rank: int) -> None:
        self._control, self._vectors = control, vectors
        self._deaths, self._term = deaths, term
        self._is_server, self._tag = rank == 0, term.tag(rank)
        self._told: set[int] = set()  # the places of the dead that `poll` has returned
        self._outside: Posted | None = None
        self.outside: deque[tuple[int, Records]] = deque()
        self._ring: deque[Posted] = deque()
        self._posted: list[Posted] = []  # from any source
        self._arrived: list[tuple[Array, MPI.Status]] = []  # found by `has_message`, for the next `poll`
        self._lent: list[Array] = []  # filled, and returned by the last `poll`
        self._named: list[Posted] = []  # from one source
        self._orphaned: list[Posted] = []  # half filled by dead ranks: MPI may still write to the memory
        self.bytes = 0

    def start(self, outside: bool = False) -> None:
        """Post the receives of control messages. outside: whether also for messages outside of all terms."""
        for _ in range(RING):
            self._post_control(np.empty(BATCH, RECORD))
        if outside and self._outside is None:
            self._post_outside(np.empty(BATCH, RECORD))

    def post(self, buffer: Array, source: int) -> None:
        """See `Transport.post`."""
        finish(buffer)  # the device may still be reading the vector that it held before
        place = source if source == MPI.ANY_SOURCE else self._term.place(source)
        try:
            posted = Posted(self._vectors.Irecv(in_bytes(buffer), place, self._tag), buffer)
        except MPI.Exception as error:  # `source` is dead
            self._deaths.forgive(error)
            return
        (self._posted if source == MPI.ANY_SOURCE else self._named).append(posted)

    def repost(self) -> None:
        """Post again the buffers that the last `poll` returned."""
        lent, self._lent = self._lent, []
        for buffer in lent:
            self.post(buffer, MPI.ANY_SOURCE)

    def keep(self, buffer: Array) -> None:
        """Keep the vector in `buffer`, which the last `poll` has returned and which was posted for any rank.

        The buffer is the caller's until it is posted again. It is missing among the posted ones, so post another one in
        its place if senders should not wait. Raises ValueError for a vector of a bundle, whose buffer holds other
        vectors too, and for a buffer that the last `poll` has not returned.
        """
        places = [place for place, lent in enumerate(self._lent) if lent is buffer]
        if not places:
            raise ValueError("this is no buffer that the last poll has given out as a whole")
        del self._lent[places[0]]

    def requests(self) -> list[MPI.Request]:
        """Everything that is posted."""
        return [posted.request for posted in self._all()]

    def _all(self) -> list[Posted]:
        return [*self._ring, *self._posted, *self._named, *([self._outside] if self._outside else ())]

    def withdraw(self) -> None:
        """The term is over: withdraw the receives. Some that have matched cannot be withdrawn, and may still fill."""
        outside, self._outside = self._outside, None
        for posted in (left := self._all()):
            posted.request.Cancel()
        for _ in range(RING):
            left = [posted for posted in left if not self._test(posted.request, MPI.Status())]
        self._orphaned += left
        self._ring.clear()
        self._posted, self._named, self._outside = [], [], outside

    def follow(self, before: "Receives") -> None:
        """Begin the term after that of `before`, which is over. What came outside of all terms is taken over."""
        self._outside, self.outside, self.bytes = before._outside, before.outside, before.bytes

    def has_message(self) -> bool:
        """Whether `poll` would find something now. It may miss a message for a while, since `poll` tests more."""
        if self._posted:
            self._arrived += self._filled()
        heads = [*self._named, *([self._ring[0]] if self._ring else ()), *([self._outside] if self._outside else ())]
        try:
            return bool(self._arrived) or any(posted.request.Get_status() for posted in heads)
        except MPI.Exception:
            return False

    def poll(self) -> list[Message]:
        """What has arrived since the last poll. Vectors may be used until the next call of `repost`."""
        messages: list[Message] = []
        self._poll_control(messages)
        self._poll_vectors(messages)
        if len(self._deaths.dead) > len(self._told):
            for _ in range(RING):  # everything that the dead have sent; the living may go on for ever
                before = len(messages)
                self._poll_control(messages)
                self._poll_vectors(messages)
                if len(messages) == before:
                    break
            dead = [place for place in self._deaths.dead if place not in self._told]
            messages += [Died(rank) for place in dead for rank in self._term.ranks_at(place)]
            self._told |= self._deaths.dead.keys()
        return messages

    def _post_control(self, buffer: np.ndarray) -> None:
        request = self._control.Irecv(in_bytes(buffer), MPI.ANY_SOURCE, self._tag)
        self._ring.append(Posted(request, buffer))

    def _post_outside(self, buffer: np.ndarray) -> None:
        self._outside = Posted(self._control.Irecv(in_bytes(buffer), MPI.ANY_SOURCE, OUTSIDE_TAG), buffer)

    def _poll_control(self, messages: list[Message]) -> None:
        while self._ring and self._test(self._ring[0].request, status := MPI.Status()):
            buffer = self._ring.popleft().buffer
            place, size = status.Get_source(), received(status)
            source = self._source(place, buffer["kind"][0] & OF_WORKERS_RECORD)
            buffer["kind"][0] &= ~OF_WORKERS_RECORD
            message: Control | Text
            if buffer["kind"][0] == Kind.TEXT:
                message = Text(source, buffer.view(np.uint8)[RECORD.itemsize : size].tobytes())
            else:
                message = Control(source, buffer[: size // RECORD.itemsize].copy())
            self._post_control(buffer)
            self.bytes += size
            if place not in self._told:
                messages.append(message)
        while self._outside is not None and self._test(self._outside.request, status := MPI.Status()):
            buffer = self._outside.buffer
            self.outside.append((status.Get_source(), buffer[: received(status) // RECORD.itemsize].copy()))
            self._post_outside(buffer)

    def _poll_vectors(self, messages: list[Message]) -> None:
        for posted in self._named:
            if self._test(posted.request, status := MPI.Status()):
                self._receive(posted.buffer, status, messages)
        self._named = [posted for posted in self._named if posted.request != MPI.REQUEST_NULL]
        arrived, self._arrived = self._arrived, []
        for buffer, status in (*arrived, *(self._filled() if self._posted else ())):
            self._lent.append(buffer)
            self._receive(buffer, status, messages)

    def _receive(self, buffer: Array, status: MPI.Status, messages: list[Message]) -> None:
        """The vectors in a buffer that is filled."""
        place, size = status.Get_source(), received(status)
        self.bytes += size
        if place in self._told:
            return
        found = unbundled(buffer[: size // buffer.itemsize])
        for vector, iteration, what in found:
            length, source = max(0, len(vector) - stamp_length(buffer.dtype)), self._source(place, what & OF_WORKER)
            name, whole = what & ~OF_WORKER, vector if len(found) > 1 else buffer
            messages.append(Vector(source, iteration, name, whole, length))

    def _source(self, place: int, is_marked: int) -> int:
        """The rank that sent a message. Rank 0 sends itself none."""
        return self._term.rank(place, is_worker=self._is_server or bool(is_marked))

    def _filled(self) -> list[tuple[Array, MPI.Status]]:
        """Filled buffers from any source."""
        statuses: list[MPI.Status] = []
        try:
            indices = MPI.Request.Testsome([posted.request for posted in self._posted], statuses) or []
            filled = [(self._posted[index].buffer, status) for index, status in zip(indices, statuses, strict=True)]
        except MPI.Exception as error:
            filled = self._sort_out(error, statuses)
        if statuses:
            self._posted = [posted for posted in self._posted if posted.request != MPI.REQUEST_NULL]
        return filled

    # deaths

    def _test(self, request: MPI.Request, status: MPI.Status) -> bool:
        """Whether a receive is complete; `status` must be new. From a dead rank it never is, and becomes null."""
        try:
            return request.Test(status)
        except MPI.Exception as error:
            self._deaths.forgive(error)
            if status.Get_source() == MPI.ANY_SOURCE or error.Get_error_class() != MPI.ERR_PROC_FAILED_PENDING:
                return False
            request.Free()  # complete, with the error from when it was pending
            return True

    def _sort_out(self, error: MPI.Exception, statuses: Sequence[MPI.Status]) -> list[tuple[Array, MPI.Status]]:
        """The filled buffers although Testsome raised `error` with these statuses.

        Replaces each buffer that waits for the rest of a dead rank's message.
        """
        self._deaths.forgive(error, statuses)
        filled, cut_off = [], []
        complete = iter([status for status in statuses if status.Get_error() != MPI.ERR_PROC_FAILED_PENDING])
        whole = len(statuses) == len(self._posted)  # else the death came during Testsome: the next poll sees it
        for index, posted in enumerate(self._posted):
            if posted.request == MPI.REQUEST_NULL:
                status = next(complete)
                if status.Get_error() == MPI.SUCCESS:
                    filled.append((posted.buffer, status))
                else:  # its sender died before all of the message was here
                    cut_off.append(posted.buffer)
            elif whole and (source := statuses[index].Get_source()) != MPI.ANY_SOURCE:
                if self._test(posted.request, status := MPI.Status()):
                    filled.append((posted.buffer, status))
                elif source in self._deaths.dead:
                    self._orphaned.append(Posted(posted.request, posted.buffer))
                    posted.request = MPI.REQUEST_NULL
                    cut_off.append(posted.buffer)
        for buffer in cut_off:
            self.post(np.empty_like(buffer), MPI.ANY_SOURCE)  # at the end, since the list is in the order of posting
        return filled
