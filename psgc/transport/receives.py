"""Messages from other ranks, and deaths among them.

Control messages and texts share a communicator. Their receives form a ring that is read in the order of posting, in
which MPI matches: nothing from one sender is overtaken. Vectors have another communicator. The tag of a vector message
is the number of vectors in it; the stamp of each says its iteration and what it is.

What Open MPI does when a rank dies, and what the code below rests on:

* A receive from any source that is tested after a death raises ERR_PROC_FAILED_PENDING until the death is acknowledged
  on its communicator, and stays valid. The ring's head is tested in every poll: so deaths are noticed.
* A receive that was found pending in this way and completes later goes on raising the same error. Its status is
  filled in, which tells it from a pending one. It must be freed by hand.
* A receive that matched a message whose sender died half way never completes, never fails and cannot be cancelled. The
  dead rank may have sent more such messages, for buffers that are not posted yet.
* Testsome raises ERR_IN_STATUS then. Its statuses are those of the complete requests, null from then on, and of the
  pending ones, in order; a pending one names the rank that it matched. Deaths are never acknowledged on the vectors'
  communicator, so that every buffer that waits for a dead rank is found.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psgc.backend import Array, finish
from psgc.messages import BATCH, RECORD, Records, stamp_length, stamp_of
from psgc.rendezvous import MPI, Deaths, in_bytes, received

CONTROL_TAG, TEXT_TAG = 1, 2
RING = 16  # posted control receives


@dataclass(frozen=True, slots=True)
class Control:
    """Records that rank `source` sent."""

    source: int
    records: Records


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the text that rank `source` sent before its next records."""

    source: int
    piece: bytes


@dataclass(frozen=True, slots=True)
class Vector:
    """`buffer[:length]` is a vector that rank `source` sent, without its stamp.

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
    """A receive."""

    request: MPI.Request
    buffer: Array


class Receives:
    """Posted receives, and what came of them. bytes: received so far."""

    def __init__(self, control: MPI.Intracomm, vectors: MPI.Intracomm, deaths: Deaths) -> None:
        self._control, self._vectors = control, vectors
        self._deaths = deaths
        self._told: set[int] = set()  # the dead that `poll` has given out
        self._ring: deque[Posted] = deque()
        self._posted: list[Posted] = []  # from any source
        self._arrived: list[tuple[Array, MPI.Status]] = []  # found by `stirs`, for the next `poll`
        self._lent: list[Array] = []  # filled, and given out by the last `poll`
        self._named: list[Posted] = []  # from one source
        self._orphaned: list[Posted] = []  # half filled by dead ranks: MPI may still write to the memory
        self.bytes = 0

    def start(self) -> None:
        """Post the receives of control messages."""
        for _ in range(RING):
            self._post_control(np.empty(BATCH, RECORD))

    def post(self, buffer: Array, source: int) -> None:
        """See `Transport.post`."""
        finish(buffer)  # what reads the vector that it held before may still be under way
        try:
            posted = Posted(self._vectors.Irecv(in_bytes(buffer), source, MPI.ANY_TAG), buffer)
        except MPI.Exception as error:  # `source` is dead
            self._deaths.forgive(error)
            return
        (self._posted if source == MPI.ANY_SOURCE else self._named).append(posted)

    def repost(self) -> None:
        """Post again what the last `poll` gave out."""
        lent, self._lent = self._lent, []
        for buffer in lent:
            self.post(buffer, MPI.ANY_SOURCE)

    def keep(self, buffer: Array) -> None:
        """Keep the vector in `buffer`, which the last `poll` has given out and which was posted for any rank.

        The buffer is the caller's until it is given back with `post`. It is missing among the posted ones: post
        another in its place where senders should not wait. Raises ValueError for a vector of a bundle, whose buffer has
        others in it, and for a buffer that the last `poll` has not given out.
        """
        places = [place for place, lent in enumerate(self._lent) if lent is buffer]
        if not places:
            raise ValueError("this is no buffer that the last poll has given out as a whole")
        del self._lent[places[0]]

    def requests(self) -> list[MPI.Request]:
        """Everything that is posted."""
        return [posted.request for posted in (*self._ring, *self._posted, *self._named)]

    def stirs(self) -> bool:
        """Whether `poll` would find something now. It may miss something, not for long: `poll` looks at more."""
        if self._posted:
            self._arrived += self._filled()
        heads = [*self._named, self._ring[0]] if self._ring else self._named
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
            for _ in range(RING):  # what the dead have sent before; the living may go on for ever
                before = len(messages)
                self._poll_control(messages)
                self._poll_vectors(messages)
                if len(messages) == before:
                    break
            messages += [Died(rank) for rank in self._deaths.dead if rank not in self._told]
            self._told |= self._deaths.dead.keys()
        return messages

    def _post_control(self, buffer: np.ndarray) -> None:
        request = self._control.Irecv(in_bytes(buffer), MPI.ANY_SOURCE, MPI.ANY_TAG)
        self._ring.append(Posted(request, buffer))

    def _poll_control(self, messages: list[Message]) -> None:
        while self._ring and self._test(self._ring[0].request, status := MPI.Status()):
            buffer = self._ring.popleft().buffer
            source, size = status.Get_source(), received(status)
            message: Control | Text
            if status.Get_tag() == TEXT_TAG:
                message = Text(source, buffer.view(np.uint8)[:size].tobytes())
            else:
                message = Control(source, buffer[: size // RECORD.itemsize].copy())
            self._post_control(buffer)
            self.bytes += size
            if source not in self._told:
                messages.append(message)

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
        """The vectors in a buffer that has been filled."""
        source, count, size = status.Get_source(), max(1, status.Get_tag()), received(status)
        self.bytes += size
        if source in self._told:
            return
        length = size // buffer.itemsize
        each = length // count
        for first in range(0, count * each, each) if each else (0,):
            vector = buffer if count == 1 else buffer[first : first + each]
            iteration, chunk = stamp_of(vector[:each])
            messages.append(Vector(source, iteration, chunk, vector, max(0, each - stamp_length(buffer.dtype))))

    def _filled(self) -> list[tuple[Array, MPI.Status]]:
        """Buffers from any source that are complete."""
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
        """Whether a receive is complete; `status` must be a new one. From a dead rank it never is, and becomes null."""
        try:
            return request.Test(status)
        except MPI.Exception as error:
            self._deaths.forgive(error)
            if status.Get_source() == MPI.ANY_SOURCE or error.Get_error_class() != MPI.ERR_PROC_FAILED_PENDING:
                return False
            request.Free()  # complete, with the error of the time when it was not
            return True

    def _sort_out(self, error: MPI.Exception, statuses: Sequence[MPI.Status]) -> list[tuple[Array, MPI.Status]]:
        """Buffers that are complete although Testsome raised `error` with these statuses.

        A buffer that waits for the rest of a dead rank's message is replaced.
        """
        self._deaths.forgive(error, statuses)
        filled, cut_off = [], []
        complete = iter([status for status in statuses if status.Get_error() != MPI.ERR_PROC_FAILED_PENDING])
        whole = len(statuses) == len(self._posted)  # else the death came in the middle of Testsome: see the next poll
        for index, posted in enumerate(self._posted):
            if posted.request == MPI.REQUEST_NULL:
                status = next(complete)
                if status.Get_error() == MPI.SUCCESS:
                    filled.append((posted.buffer, status))
                else:  # its sender died before all of it was here
                    cut_off.append(posted.buffer)
            elif whole and (source := statuses[index].Get_source()) != MPI.ANY_SOURCE:
                if self._test(posted.request, status := MPI.Status()):
                    filled.append((posted.buffer, status))
                elif source in self._deaths.dead:
                    self._orphaned.append(Posted(posted.request, posted.buffer))
                    posted.request = MPI.REQUEST_NULL
                    cut_off.append(posted.buffer)
        for buffer in cut_off:
            self.post(np.empty_like(buffer), MPI.ANY_SOURCE)  # at the end: the list is in the order of posting
        return filled
