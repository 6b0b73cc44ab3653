"""Everything psgc does with MPI during a run. Before, `psgc.rendezvous` does it; nothing else imports mpi4py.

* All calls of a process are made by the one thread that opened the Transport.
* Receives are posted before anything is asked for. Control receives form a ring that is read in the order of
  posting, which is the order in which MPI matches messages: nothing from one sender is ever overtaken. Vector
  receives are posted by the caller, buffer by buffer: that pool is all the memory a receiver spends on messages.
* Sends are Isend; their buffers are kept here until MPI is done with them.
* Waiting spins for a moment and then sleeps, since Open MPI's blocking calls burn a core per rank.
* Texts travel as control messages do, and in order with them.
* Control and vectors have a communicator each. A vector's tag carries its chunk, its last entries the iteration.

Under fault-tolerant MPI (`mpirun --with-ft ulfm`) ranks may die. What has arrived from a rank, as far as there
are buffers posted for it, is given out first, then `Died`, then nothing of it any more; sends to it are dropped. What
Open MPI does, and every line on deaths rests on:

* A receive from any source that is tested after a death raises ERR_PROC_FAILED_PENDING until the death is acknowledged
  on its communicator, and stays valid. The ring's head is tested in every poll: this is how deaths are noticed.
* A receive that has been found pending so and *then* completes goes on raising the same error for ever. It is told from
  a pending one by its status, which is filled in, and it has to be freed by hand.
* A receive from any source that matched a message whose sender died before all of it had come never completes, never
  fails and cannot be cancelled. The dead may have left more such messages behind, for buffers not yet posted.
* Testsome raises ERR_IN_STATUS then. Its statuses are those of the complete requests, null from then on, and of all
  pending ones, in order; a pending one's tells whom it matched. So deaths are never acknowledged on the communicator
  of the vectors: that is how a buffer that waits for a dead rank is found, whenever that happens.
"""

import ctypes
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from psgc.backend import Array
from psgc.errors import RunFailed
from psgc.messages import BATCH, RECORD, Records, joined, stamp, stamp_length, stamp_of
from psgc.processes import die_with_parent, keep_freed_memory, sleep_precisely
from psgc.rendezvous import DEATHS, MPI, Rendezvous

CONTROL_TAG, TEXT_TAG = 1, 2
RING = 16  # posted control receives
LARGE = 1 << 16  # bytes from which a transfer is worth polling without sleeping
SPINS = 5  # polls before the first sleep: each is 10 us of Python, which on a shared core is somebody's gradient
HOT_SPINS = 2000  # the same while a large transfer is under way: about 20 ms
SHORTEST, LONGEST, SILENT = 20e-6, 1e-3, 2e-3  # seconds of sleep: the first, then up to so many, when all is silent
SILENCE = 150  # polls without a message, about 0.1 s, after which all is silent
GROWTH, GROWTH_IDLE = 1.5, 1.1  # of a sleep over the one before, which makes it a third or a tenth of the time waited
TEXT_LIMIT = 1 << 16
SLOWEST = 1e6  # bytes per second that any network moves
PATIENCE = 2.0  # seconds for what should take none: the last processes of a run


class Wakeup(Protocol):
    """What `Transport.wait` sleeps on when another thread may have something to send: a threading.Event."""

    def wait(self, timeout: float) -> bool: ...

    def clear(self) -> None: ...


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
    """`buffer[:length]` holds what rank `source` sent, without the stamp; post the buffer again when done with it.

    One that is too short for a stamp has iteration -1 and length 0.
    """

    source: int
    iteration: int
    chunk: int
    buffer: Array
    length: int


@dataclass(frozen=True, slots=True)
class Died:
    """MPI reports that the process of `rank` has ended; nothing more comes from it."""

    rank: int


Message = Control | Text | Vector | Died


@dataclass(frozen=True, slots=True)
class _Sent:
    """A buffer that MPI may still read."""

    buffer: Array
    size: int  # bytes
    dest: int
    since: float  # time.monotonic() at its posting


class Transport:
    """This process's place in MPI: rank, size, hosts, and messages in both directions.

    world: the ranks of the run, when they are not all of MPI's; interrupted: as in `Rendezvous`. Raises what that
    raises; so do `broadcast` and `gather`.
    """

    def __init__(self, world: MPI.Intracomm | None = None, interrupted: Callable[[], str | None] | None = None) -> None:
        die_with_parent()
        sleep_precisely()
        keep_freed_memory()
        if not MPI.Is_initialized():
            MPI.Init_thread(MPI.THREAD_FUNNELED)
        world = self._world = world or MPI.COMM_WORLD
        self.rank, self.size = world.Get_rank(), world.Get_size()
        self._group = world.Get_group()
        self.library = " ".join(MPI.Get_library_version().split(",")[0].split("\n")[0].split())
        self.survives_deaths = os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112  mpirun --with-ft ulfm's
        self._dead: dict[int, None] = {}  # in the order in which their deaths were noticed
        self._told: set[int] = set()  # the dead that `poll` has given out
        self._forgotten: set[int] = set()
        self._orphaned: list[
            tuple[MPI.Request, Array]
        ] = []  # transfers that were cut off: MPI may still touch the memory
        world.Set_errhandler(MPI.ERRORS_RETURN)
        self._rendezvous = Rendezvous(world, interrupted)
        self._processes = self._rendezvous.processes
        self._control, self._vectors = self._duplicate(), self._duplicate()
        self.hosts = [process.host for process in self._processes]
        self.pids = [process.pid for process in self._processes]
        self.local_rank = sum(process.is_near(self._processes[self.rank]) for process in self._processes[: self.rank])
        self.bytes_sent = self.bytes_received = 0
        self._tag_limit = int(world.Get_attr(MPI.TAG_UB) or 32767) + 1
        self._sends: list[MPI.Request] = []
        self._sent: list[_Sent] = []  # beside _sends
        self._posted: list[MPI.Request] = []  # from any source
        self._posted_buffers: list[Array] = []
        self._named: list[tuple[MPI.Request, Array]] = []  # from one source
        self._ring: deque[tuple[MPI.Request, np.ndarray]] = deque()
        self._polls = 0

    @property
    def thread_level(self) -> str:
        """What MPI grants this process; psgc needs no more than "funneled"."""
        levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
        return levels.get(MPI.Query_thread(), "multiple")

    # setting up and ending

    def be_patient(self, timeout: float, stopped_timeout: float) -> None:
        """For rank 0: how long ranks wait for one another from now on (`psgc.rendezvous`)."""
        self._rendezvous.be_patient(timeout, stopped_timeout)

    def broadcast(self, data: bytes | None, doing: str = "starting") -> bytes:
        """The bytes that rank 0 gives, on every rank. Collective. doing: what takes so long, for people."""
        return self._rendezvous.broadcast(data, doing)

    def gather(self, text: str, doing: str = "starting") -> list[str]:
        """The text of every rank, on every rank, cut at 512 bytes. Collective. doing: as in `broadcast`."""
        return self._rendezvous.gather(text, doing)

    def _duplicate(self) -> MPI.Intracomm:
        made: list[MPI.Intracomm] = []

        def begin() -> MPI.Request:
            comm, request = self._world.Idup()
            made.append(comm)
            self._orphaned.append((request, None))  # in case that we leave before it is complete
            return request

        self._rendezvous.complete(begin, "starting")
        self._orphaned.pop()
        made[0].Set_errhandler(MPI.ERRORS_RETURN)
        return made[0]

    def start(self, num_chunks: int) -> None:
        """Post the control receives. Raises RunFailed when MPI's tags cannot tell `num_chunks` chunks apart."""
        if num_chunks > self._tag_limit:
            raise RunFailed(f"{self.library} has {self._tag_limit} tags, too few for {num_chunks} chunks and workers")
        for _ in range(RING):
            self._post_control(np.empty(BATCH, RECORD))

    def close(self) -> None:
        """Withdraw what is posted. Every rank calls it, with nothing more to send or to receive, and nobody dead."""
        posted = [*self._posted, *(request for request, _ in [*self._named, *self._ring])]
        for request in posted:
            request.Cancel()
        end = time.monotonic() + PATIENCE
        while not MPI.Request.Testall(posted) and time.monotonic() < end:
            time.sleep(LONGEST)
        self._control.Free()
        self._vectors.Free()

    def finalize(self) -> None:
        """`close`, and leave MPI for good; `end` follows. After a death only `leave` ends a process reliably."""
        self.close()
        MPI.Finalize()

    def end(self, code: int) -> NoReturn:
        """End this process after `finalize`, whatever its other threads are at.

        MPICH tells its mpirun that a process ends in order from a handler of the C library's exit; without it mpirun
        takes the end for a crash, kills the others and exits with 9.
        """
        if "Open MPI" not in self.library:
            last_resort = threading.Timer(PATIENCE, os._exit, (code,))  # another library's handler may wait for ever
            last_resort.daemon = True
            last_resort.start()
            ctypes.CDLL(None).exit(code)
        os._exit(code)

    def leave(self, code: int, others: Collection[int] = ()) -> NoReturn:
        """End this process without leaving MPI, since Finalize and Abort hang after a death.

        Rank 0 waits up to 2 s for the processes of the ranks `others` to be gone, so that mpirun's exit code is `code`.
        """
        end = time.monotonic() + PATIENCE
        while self.rank == 0 and not self._all_gone(others) and time.monotonic() < end:
            with suppress(MPI.Exception):
                self._world.Iprobe(self.rank)  # moves what is still on its way
            time.sleep(LONGEST)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a pipe that nobody reads any more
                stream.flush()
        os._exit(code)

    def _all_gone(self, ranks: Collection[int]) -> bool:
        left = set(ranks) - set(self._rendezvous.failed())
        return all(self._is_near(rank) and self._processes[rank].is_gone() for rank in left)

    def is_gone(self, rank: int) -> bool:
        """Whether the process of `rank` has ended, as far as this host or MPI tells."""
        return self._all_gone([rank])

    def kill(self, rank: int) -> bool:
        """SIGKILL the process of `rank`, if it is on this host; whether that was done, or it was gone already."""
        return self._is_near(rank) and self._processes[rank].kill()

    def _is_near(self, rank: int) -> bool:
        return bool(self._processes) and self._processes[rank].is_near(self._processes[self.rank])

    # sending

    def send(self, dest: int, records: Iterable[Records]) -> None:
        """Send control records, in order, in as few messages as they fit."""
        everything = joined(records)
        for first in range(0, len(everything), BATCH):
            batch = everything[first : first + BATCH]
            self._send(self._control, [batch.view(np.uint8), MPI.BYTE], dest, CONTROL_TAG, batch)

    def send_text(self, dest: int, text: str) -> None:
        """Send a text of at most 64 KiB, in pieces; it is there before the records that are sent after it."""
        everything = np.frombuffer(text.encode()[:TEXT_LIMIT], np.uint8)
        size = BATCH * RECORD.itemsize
        for first in range(0, len(everything), size):
            piece = everything[first : first + size]
            self._send(self._control, [piece, MPI.BYTE], dest, TEXT_TAG, piece)

    def send_vector(self, dest: int, iteration: int, chunk: int, buffer: Array) -> None:
        """Send a vector, which must not change until `sending` says so; its last entries are for the stamp."""
        stamp(buffer, iteration)
        self._send(self._vectors, buffer, dest, chunk, buffer)

    def _send(self, comm: MPI.Intracomm, message: Any, dest: int, tag: int, buffer: Array) -> None:
        if dest in self._dead:
            return
        try:
            request = comm.Isend(message, dest, tag)
        except MPI.Exception as error:
            self._forgive(error)
            return
        self._polls = 0
        self.bytes_sent += buffer.nbytes
        self._sends.append(request)
        self._sent.append(_Sent(buffer, buffer.nbytes, dest, time.monotonic()))

    def sending(self, buffer: Array | None = None) -> bool:
        """Whether a send of `buffer` (or, without one, any) is not complete; those to dead and forgotten ranks are."""
        return any((buffer is None or s.buffer is buffer) and s.dest not in self._forgotten for s in self._sent)

    def unreached(self, patience: float) -> list[int]:
        """Ranks, other than forgotten ones, to which something has not left for more than `patience` seconds.

        Large messages have more time. MPICH keeps messages between processes of a host in a pool of memory: a stopped
        process that leaves its own unread ends up with all of it, and nobody gets anything any more.
        """
        latest = time.monotonic() - patience - sum(sent.size for sent in self._sent) / SLOWEST
        return sorted({s.dest for s in self._sent if s.since < latest and s.dest not in self._forgotten})

    def pending(self) -> Counter[int]:
        """Bytes that are on their way to each rank."""
        pending: Counter[int] = Counter()
        for sent in self._sent:
            pending[sent.dest] += sent.size
        return pending

    def forget(self, rank: int) -> None:
        """Wait no longer for sends to `rank`, which may be stopped or cut off; they are not withdrawn."""
        self._forgotten.add(rank)

    def remember(self, rank: int) -> None:
        """Undo `forget`: `rank` has been heard again."""
        self._forgotten.discard(rank)

    # receiving

    def post(self, buffer: Array, source: int = MPI.ANY_SOURCE) -> None:
        """Receive the next vector from `source` into `buffer`; `poll` gives it back."""
        try:
            request = self._vectors.Irecv(buffer, source, MPI.ANY_TAG)
        except MPI.Exception as error:  # from a dead rank
            self._forgive(error)
            return
        if source != MPI.ANY_SOURCE:
            self._named.append((request, buffer))
            return
        self._posted.append(request)
        self._posted_buffers.append(buffer)

    def _post_control(self, buffer: np.ndarray) -> None:
        request = self._control.Irecv([buffer.view(np.uint8), MPI.BYTE], MPI.ANY_SOURCE, MPI.ANY_TAG)
        self._ring.append((request, buffer))

    def poll(self) -> list[Message]:
        """What has arrived since the last poll."""
        messages: list[Message] = []
        self._poll_control(messages)
        self._poll_vectors(messages)
        self._poll_sends()
        if len(self._dead) > len(self._told):
            self._tell(messages)
        if messages:
            self._polls = 0
        return messages

    def _poll_control(self, messages: list[Message]) -> None:
        while self._ring and self._test(self._ring[0][0], status := MPI.Status()):
            _, buffer = self._ring.popleft()
            source, size = status.Get_source(), status.Get_count(MPI.BYTE)
            message: Control | Text
            if status.Get_tag() == TEXT_TAG:
                message = Text(source, buffer.view(np.uint8)[:size].tobytes())
            else:
                message = Control(source, buffer[: size // RECORD.itemsize].copy())
            self._post_control(buffer)
            self.bytes_received += size
            if source not in self._told:
                messages.append(message)

    def _poll_vectors(self, messages: list[Message]) -> None:
        statuses: list[MPI.Status] = []
        try:
            indices = _completed(self._posted, statuses)
            arrived = [(self._posted_buffers[index], status) for index, status in zip(indices, statuses, strict=True)]
        except MPI.Exception as error:
            arrived = self._sort_out(error, statuses)
        if statuses:
            self._posted, self._posted_buffers = _without_null(self._posted, self._posted_buffers)
        for request, buffer in self._named:
            if self._test(request, status := MPI.Status()):
                arrived.append((buffer, status))
        if self._named:
            self._named = [(request, buffer) for request, buffer in self._named if request != MPI.REQUEST_NULL]
        for buffer, status in arrived:
            source, length = status.Get_source(), status.Get_count(MPI.BYTE) // buffer.itemsize
            self.bytes_received += length * buffer.itemsize
            if source in self._told:
                self.post(buffer)
                continue
            iteration = stamp_of(buffer[:length])
            messages.append(
                Vector(source, iteration, status.Get_tag(), buffer, max(0, length - stamp_length(buffer.dtype)))
            )

    def _poll_sends(self) -> None:
        try:
            done = bool(_completed(self._sends, []))
        except MPI.Exception as error:
            done = True
            self._forgive(error)
        if done:
            self._sends, self._sent = _without_null(self._sends, self._sent)

    def wait(self, wakeup: Wakeup | None = None, expecting_large: bool = False, idle: bool = False) -> None:
        """Pause between two polls: not at all for a while after the last message, then longer and longer.

        A large transfer under way keeps the pauses away for up to 20 ms at a time: without the kernel's
        help MPI moves its data only while it is polled. `wakeup`, when another thread sets it, ends the pause.
        idle: nobody else in this process has any use for its core.
        """
        self._polls += 1
        large = expecting_large or any(s.size >= LARGE and s.dest not in self._forgotten for s in self._sent)
        if self._polls <= (HOT_SPINS if large else SPINS):
            if wakeup is None or not wakeup.wait(0):
                return
        elif wakeup is None:
            time.sleep(self._pause(idle))
            return
        elif not wakeup.wait(self._pause(idle)):
            return
        wakeup.clear()
        self._polls = 0

    def _pause(self, idle: bool) -> float:
        if self._polls > SILENCE:
            return SILENT
        growth = GROWTH_IDLE if idle else GROWTH
        return float(min(LONGEST, SHORTEST * growth ** min(self._polls - SPINS, 50)))

    # deaths

    def _failed(self, comm: MPI.Intracomm) -> list[int]:
        """The ranks that MPI reports dead, in the order in which it learnt of them."""
        group = comm.Get_failed()
        ranks = group.Translate_ranks(None, self._group) if group.Get_size() else []
        group.Free()
        return ranks

    def _forgive(self, error: MPI.Exception, statuses: Sequence[MPI.Status] = ()) -> None:
        """Take note when a death is the reason for `error`; otherwise raise it."""
        errors = {status.Get_error() for status in statuses} | {error.Get_error_class()}
        if not errors <= {MPI.SUCCESS, MPI.ERR_IN_STATUS, *DEATHS}:
            raise error
        if self._ring:
            self._notice()

    def _notice(self) -> None:
        """Learn who is dead, drop what is being sent to them, and let control messages go on."""
        failed = self._failed(self._control)
        self._control.Ack_failed(len(failed))
        self._dead |= dict.fromkeys(failed)
        pairs = list(zip(self._sends, self._sent, strict=True))
        self._orphaned += [(request, sent.buffer) for request, sent in pairs if sent.dest in self._dead]
        pairs = [(request, sent) for request, sent in pairs if sent.dest not in self._dead]
        self._sends, self._sent = [request for request, _ in pairs], [sent for _, sent in pairs]

    def _test(self, request: MPI.Request, status: MPI.Status) -> bool:
        """Whether a receive is complete; `status` must be a new one. One from a dead rank never is, and null then."""
        try:
            return request.Test(status)
        except MPI.Exception as error:
            self._forgive(error)
            if status.Get_source() == MPI.ANY_SOURCE or error.Get_error_class() != MPI.ERR_PROC_FAILED_PENDING:
                return False
            request.Free()  # complete, with the error of the time when it was not
            return True

    def _sort_out(self, error: MPI.Exception, statuses: Sequence[MPI.Status]) -> list[tuple[Array, MPI.Status]]:
        """Buffers that have been filled, although Testsome raised `error` over these statuses.

        A buffer that waits for the rest of a dead rank's message is replaced.
        """
        self._forgive(error, statuses)
        arrived, cut_off = [], []
        complete = iter([status for status in statuses if status.Get_error() == MPI.SUCCESS])
        whole = len(statuses) == len(self._posted)  # else the death came in the middle of Testsome: see next time
        for index, (request, buffer) in enumerate(zip(self._posted, self._posted_buffers, strict=True)):
            if request == MPI.REQUEST_NULL:
                arrived.append((buffer, next(complete)))
            elif whole and (source := statuses[index].Get_source()) != MPI.ANY_SOURCE:
                if self._test(request, status := MPI.Status()):
                    arrived.append((buffer, status))
                elif source in self._dead:
                    self._orphaned.append((request, buffer))
                    self._posted[index] = MPI.REQUEST_NULL
                    cut_off.append(buffer)
        for buffer in cut_off:
            self.post(np.empty_like(buffer))  # at the end: the list is in the order of posting
        return arrived

    def _tell(self, messages: list[Message]) -> None:
        """Let the dead have their last word, and tell of their deaths."""
        for _ in range(RING):  # the living may go on for ever
            before = len(messages)
            self._poll_control(messages)
            self._poll_vectors(messages)
            if len(messages) == before:
                break
        messages += [Died(rank) for rank in self._dead if rank not in self._told]
        self._told |= set(self._dead)


def _completed(requests: list[MPI.Request], statuses: list[MPI.Status]) -> list[int]:
    """Indices of the requests that are complete (and null from now on), their statuses added beside them."""
    return (MPI.Request.Testsome(requests, statuses) or []) if requests else []


def _without_null(requests: list[MPI.Request], beside: list[Any]) -> tuple[list[MPI.Request], list[Any]]:
    kept = [(request, what) for request, what in zip(requests, beside, strict=True) if request != MPI.REQUEST_NULL]
    return [request for request, _ in kept], [what for _, what in kept]
