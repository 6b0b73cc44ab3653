"""Everything psgc does with MPI, and the only file that imports mpi4py.

* All calls of a process are made by the one thread that opened the Transport.
* Receives are posted before anything is asked for. Control receives form a ring that is read in the order of
  posting, which is the order in which MPI matches messages: nothing from one sender is ever overtaken. Vector
  receives are posted by the caller, buffer by buffer: that pool is all the memory a receiver spends on messages.
* Sends are Isend; their buffers are kept here until MPI is done with them.
* Waiting spins for a moment and then sleeps, since Open MPI's blocking calls burn a core per rank.
* Control and vectors have a communicator each. A vector's tag carries its iteration and chunk.
* Collectives (`broadcast`, `gather`) are for setting up, when every rank is known to be there.
"""

import ctypes
import signal
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False
import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402  the settings above must come before

from psgc.backend import Array  # noqa: E402
from psgc.errors import RunFailed  # noqa: E402
from psgc.messages import BATCH, RECORD, Records  # noqa: E402

CONTROL_TAG, TEXT_TAG = 1, 2
RING = 16  # posted control receives
LARGE = 1 << 16  # bytes from which a transfer is worth polling without sleeping
SPINS = 5  # polls before the first sleep: each is 10 us of Python, which on a shared core is somebody's gradient
HOT_SPINS = 2000  # the same while a large transfer is under way: about 20 ms
SHORTEST, LONGEST = 20e-6, 1e-3  # seconds of sleep
TEXT_LIMIT = 1 << 16


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
class Vector:
    """`buffer[:length]` holds what rank `source` sent; post the buffer again when done with it."""

    source: int
    iteration: int
    chunk: int
    buffer: Array
    length: int


class Transport:
    """This process's place in MPI: rank, size, hosts, and messages in both directions.

    world: the ranks of the run, when they are not all of MPI's.
    """

    def __init__(self, world: MPI.Intracomm | None = None) -> None:
        die_with_parent()
        if not MPI.Is_initialized():
            MPI.Init_thread(MPI.THREAD_FUNNELED)
        world = self._world = world or MPI.COMM_WORLD
        self.rank, self.size = world.Get_rank(), world.Get_size()
        self._control, self._vectors = world.Dup(), world.Dup()
        self.library = MPI.Get_library_version().split(",")[0].split("\n")[0]
        local = world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = local.Get_rank()
        local.Free()
        self.hosts = self.gather(socket.gethostname())
        self.bytes_sent = self.bytes_received = 0
        self._tag_limit = int(world.Get_attr(MPI.TAG_UB) or 32767) + 1
        self._chunks_in_tag = 1
        self._sends: list[MPI.Request] = []
        self._sent_buffers: list[tuple[Array, int]] = []  # (buffer, bytes), beside _sends
        self._posted: list[MPI.Request] = []
        self._posted_buffers: list[Array] = []
        self._ring: deque[tuple[MPI.Request, np.ndarray]] = deque()
        self._polls = 0

    # setting up and ending

    def broadcast(self, data: bytes | None) -> bytes:
        """The bytes that rank 0 gives, on every rank. Collective."""
        length = np.array([len(data) if data is not None else 0], np.int64)
        self._collective(self._world.Ibcast(length, 0))
        buffer = np.empty(int(length[0]), np.uint8)
        if data is not None:
            buffer[:] = np.frombuffer(data, np.uint8)
        self._collective(self._world.Ibcast(buffer, 0))
        return buffer.tobytes()

    def gather(self, text: str) -> list[str]:
        """The text of every rank, on every rank, cut at 512 bytes. Collective."""
        mine = np.frombuffer(text.encode()[:512].ljust(512, b"\0"), np.uint8)
        everyone = np.empty((self.size, 512), np.uint8)
        self._collective(self._world.Iallgather(mine, everyone))
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in everyone]

    @staticmethod
    def _collective(request: MPI.Request) -> None:
        while not request.Test():  # rank 0 may still be reading data: nobody spins meanwhile
            time.sleep(LONGEST)

    def start(self, num_chunks: int) -> None:
        """Post the control receives, and let vector tags tell `num_chunks` chunks apart."""
        if num_chunks >= self._tag_limit:
            raise RunFailed(f"{self.library} has {self._tag_limit} tags, too few for {num_chunks} chunks")
        self._chunks_in_tag = num_chunks
        for _ in range(RING):
            self._post_control(np.empty(BATCH, RECORD))

    def close(self) -> None:
        """Withdraw what is posted. Every rank calls it, with nothing more to send or to receive."""
        for request in [*self._posted, *(request for request, _ in self._ring)]:
            request.Cancel()
            request.Wait()
        self._control.Free()
        self._vectors.Free()

    def finalize(self) -> None:
        """`close`, and leave MPI for good."""
        self.close()
        MPI.Finalize()

    # sending

    def send(self, dest: int, records: Iterable[Records]) -> None:
        """Send control records, in order, in as few messages as they fit."""
        everything = np.concatenate(list(records))
        for first in range(0, len(everything), BATCH):
            batch = everything[first : first + BATCH]
            self._keep(self._control.Isend([batch.view(np.uint8), MPI.BYTE], dest, CONTROL_TAG), batch)

    def send_text(self, dest: int, text: str) -> None:
        """Send a text of at most 64 KiB, for a receiver that calls `receive_text` at the right moment."""
        buffer = np.frombuffer(text.encode()[:TEXT_LIMIT], np.uint8)
        self._keep(self._control.Isend([buffer, MPI.BYTE], dest, TEXT_TAG), buffer)

    def send_vector(self, dest: int, iteration: int, chunk: int, buffer: Array) -> None:
        """Send a vector, which must not change until `sending` says so."""
        self._keep(self._vectors.Isend(buffer, dest, self._tag(iteration, chunk)), buffer)

    def _keep(self, request: MPI.Request, buffer: Array) -> None:
        self._polls = 0
        self.bytes_sent += buffer.nbytes
        self._sends.append(request)
        self._sent_buffers.append((buffer, buffer.nbytes))

    def sending(self, buffer: Array | None = None) -> bool:
        """Whether a send of `buffer` (or, without one, any send) is not complete."""
        return any(buffer is None or kept is buffer for kept, _ in self._sent_buffers)

    @property
    def distinct_iterations(self) -> int:
        """How many iterations in a row the vectors' tags tell apart."""
        return self._tag_limit // self._chunks_in_tag

    def _tag(self, iteration: int, chunk: int) -> int:
        return iteration % (self._tag_limit // self._chunks_in_tag) * self._chunks_in_tag + chunk

    # receiving

    def post(self, buffer: Array, source: int = MPI.ANY_SOURCE) -> None:
        """Receive the next vector from `source` into `buffer`; `poll` gives it back."""
        self._posted.append(self._vectors.Irecv(buffer, source, MPI.ANY_TAG))
        self._posted_buffers.append(buffer)

    def _post_control(self, buffer: np.ndarray) -> None:
        request = self._control.Irecv([buffer.view(np.uint8), MPI.BYTE], MPI.ANY_SOURCE, CONTROL_TAG)
        self._ring.append((request, buffer))

    def poll(self, iteration: int) -> list[Control | Vector]:
        """What has arrived since the last poll. `iteration` is the newest that a vector can belong to."""
        messages: list[Control | Vector] = []
        status = MPI.Status()
        while self._ring and self._ring[0][0].Test(status):
            _, buffer = self._ring.popleft()
            records = buffer[: status.Get_count(MPI.BYTE) // RECORD.itemsize].copy()
            self._post_control(buffer)
            self.bytes_received += records.nbytes
            messages.append(Control(status.Get_source(), records))
        statuses: list[MPI.Status] = []
        for index in _completed(self._posted, statuses):
            buffer, status = self._posted_buffers[index], statuses.pop(0)
            length = status.Get_count(MPI.BYTE) // buffer.itemsize
            self.bytes_received += length * buffer.itemsize
            when, chunk = divmod(status.Get_tag(), self._chunks_in_tag)
            when = iteration - (iteration - when) % (self._tag_limit // self._chunks_in_tag)
            messages.append(Vector(status.Get_source(), when, chunk, buffer, length))
        self._posted, self._posted_buffers = _without_null(self._posted, self._posted_buffers)
        if _completed(self._sends, []):
            self._sends, self._sent_buffers = _without_null(self._sends, self._sent_buffers)
        if messages:
            self._polls = 0
        return messages

    def receive_text(self, source: int = MPI.ANY_SOURCE, timeout: float = 0.0) -> str:
        """The text that `source` has sent or is about to send; empty when it does not come within `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            status = MPI.Status()
            message = self._control.Improbe(source, TEXT_TAG, status)
            if message is not None:
                buffer = np.empty(status.Get_count(MPI.BYTE), np.uint8)
                message.Recv([buffer, MPI.BYTE])
                return buffer.tobytes().decode(errors="replace")
            if time.monotonic() >= end:
                return ""
            time.sleep(LONGEST)

    def wait(self, wakeup: Wakeup | None = None, expecting_large: bool = False) -> None:
        """Pause between two polls: not at all for a while after the last message, then longer and longer.

        A large transfer under way keeps the pauses away for up to 20 ms at a time: without the kernel's
        help MPI moves its data only while it is polled. `wakeup`, when another thread sets it, ends the pause.
        """
        self._polls += 1
        large = expecting_large or any(size >= LARGE for _, size in self._sent_buffers)
        if self._polls <= (HOT_SPINS if large else SPINS):
            if wakeup is None or not wakeup.wait(0):
                return
        elif wakeup is None:
            time.sleep(self._pause())
            return
        elif not wakeup.wait(self._pause()):
            return
        wakeup.clear()
        self._polls = 0

    def _pause(self) -> float:
        return float(min(LONGEST, SHORTEST * 1.5 ** min(self._polls - SPINS, 20)))


def _completed(requests: list[MPI.Request], statuses: list[MPI.Status]) -> list[int]:
    """Indices of the requests that are complete (and null from now on), their statuses added beside them."""
    return (MPI.Request.Testsome(requests, statuses) or []) if requests else []


def _without_null(requests: list[MPI.Request], beside: list[Any]) -> tuple[list[MPI.Request], list[Any]]:
    kept = [(request, what) for request, what in zip(requests, beside, strict=True) if request != MPI.REQUEST_NULL]
    return [request for request, _ in kept], [what for _, what in kept]


def die_with_parent() -> None:
    """Have the kernel kill this process when its launcher dies: a killed mpirun leaves no orphans (Linux only)."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
