"""This process in MPI: setting up, messages in both directions, and the ways to end."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from contextlib import suppress
from copy import copy
from typing import NoReturn

import numpy as np

from psgc.backend import Array
from psgc.messages import BATCH, OF_WORKERS_RECORD, RECORD, Kind, Records, joined, record
from psgc.mpi_start import MPI, TIMEOUT, start_mpi
from psgc.processes import Identity, die_with_parent, keep_freed_memory, sleep_precisely
from psgc.rendezvous import Deaths, Rendezvous, failed_ranks
from psgc.terminal import flush
from psgc.transport.host_memory import Shared, share
from psgc.transport.pauses import Pauses
from psgc.transport.receives import Message, Receives
from psgc.transport.sends import Sending, Sends
from psgc.transport.survival import lacks_for_survival
from psgc.transport.terms import Term
from psgc.transport.waiting import LONGEST, Bell
from psgc.vectors import bundle, mark

TEXT_LIMIT = 1 << 16
PATIENCE = 2.0  # seconds for steps that should take none: the last processes of a run
NOTICE = 0.02  # seconds in which mpirun reads the last output of processes that have ended


class Transport:
    """Rank, size, hosts, and messages to and from the other ranks.

    Ranks are those of `term`; `place` is the rank in MPI. Some methods are those of its `Rendezvous` (be_patient,
    broadcast, gather), its `Receives` (keep), its `Sends` (sending, unreached, pending, forget, remember) and its
    `Pauses` (wait, wake, wake_others).

    If each process is a worker, the process of rank 0 has a second Transport for its worker (`second`). The two send
    each other messages like any ranks.

    world: the ranks of the run, if they are not all of MPI's
    interrupted: as in `Rendezvous`; `broadcast` and `gather` raise what the Rendezvous raises, and so does this class
    lacks: what MPI lacks to survive the death of a rank (`survives_deaths`), or ""
    hear_outside: called by `poll` with each place and its records that come outside of all terms
    """

    def __init__(
        self,
        world: MPI.Intracomm | None = None,
        interrupted: Callable[[], str | None] | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        die_with_parent()
        sleep_precisely()
        keep_freed_memory()
        if not MPI.Is_initialized():
            start_mpi(MPI.THREAD_FUNNELED)
        world = self._world = world or MPI.COMM_WORLD
        self.place, self.size = world.Get_rank(), world.Get_size()
        self.rank, self.term = self.place, Term(0, self.size)
        self._second: Transport | None = None
        self._is_second = False
        self.library = " ".join(MPI.Get_library_version().split(",")[0].split("\n")[0].split())
        self.lacks = lacks_for_survival()
        self.survives_deaths = not self.lacks
        world.Set_errhandler(MPI.ERRORS_RETURN)
        self._rendezvous = Rendezvous(world, interrupted, timeout)
        self.be_patient, self.broadcast = self._rendezvous.be_patient, self._rendezvous.broadcast
        self.gather = self._rendezvous.gather
        self._processes = self._rendezvous.processes
        self.hosts = [process.host for process in self._processes]
        self.shared = self._shared = Shared()
        self.pids = [process.pid for process in self._processes]
        self.local_rank = sum(process.is_near(self._processes[self.rank]) for process in self._processes[: self.rank])
        self._unfinished: list[MPI.Request] = []
        self._control, self._vectors = self._duplicate(), self._duplicate()
        self.hear_outside: Callable[[int, Records], object] = lambda place, records: None
        self._deaths = Deaths(self._control)
        self._ended: list[object] = []  # receives and sends of earlier terms, since MPI may still use their memory
        self.pauses = Pauses(Bell(self._processes[self.rank]))
        self.wait, self.wake, self.wake_others = self.pauses.wait, self.pauses.wake, self.pauses.wake_others
        self._enter()

    @property
    def thread_level(self) -> str:
        """The thread level that MPI grants this process. psgc needs only "funneled"."""
        levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
        return levels.get(MPI.Query_thread(), "multiple")

    @property
    def is_woken(self) -> bool:
        """Whether a rank that sends this process something rings its bell."""
        return self.pauses.is_woken

    # setting up

    def _duplicate(self) -> MPI.Intracomm:
        made: list[MPI.Intracomm] = []

        def begin() -> MPI.Request:
            comm, request = self._world.Idup()
            made.append(comm)
            self._unfinished.append(request)  # in case this raises before the request is complete
            return request

        self._rendezvous.complete(begin, "starting")
        self._unfinished.pop()
        made[0].Set_errhandler(MPI.ERRORS_RETURN)
        return made[0]

    def _enter(self) -> None:
        self.pauses.enter({rank: self._processes[rank] for rank in range(self.size) if self._is_near(rank)})
        self._open()

    def _open(self) -> None:
        """Make the receives and sends of this rank in this term."""
        control, vectors, deaths, term = self._control, self._vectors, self._deaths, self.term
        self._receives, self._sends = Receives(control, vectors, deaths, term, self.rank), Sends(deaths, term)
        self.keep, self.forget, self.remember = self._receives.keep, self._sends.forget, self._sends.remember
        self.sending, self.unreached, self.pending = self._sends.awaits, self._sends.unreached, self._sends.pending
        self.pauses.add(self._receives, self._sends)

    def enter(self, term: Term) -> None:
        """Begin this term: ranks are its ranks, and messages of other terms are dropped. `start` follows."""
        before = self._receives, self._sends
        self._receives.withdraw()
        self._ended += before
        self.rank, self.size, self.term = term.rank(self.place), term.ranks, term
        processes, places = self._rendezvous.processes, [term.place(rank) for rank in range(self.size)]
        self._processes = [processes[place] for place in places]
        self.hosts, self.pids = [it.host for it in self._processes], [it.pid for it in self._processes]
        self.shared = self._shared.of(places)
        self._enter()
        self._receives.follow(before[0])
        self._sends.bytes = before[1].bytes

    def second(self) -> "Transport":
        """The Transport of the worker in the process of rank 0. Each polls for its own rank; only rank 0 waits."""
        end = self._second = copy(self)
        end.rank, end._second, end._is_second = self.place + 1, None, True
        end._open()
        return end

    def share(self, size: Callable[[int], int], unless: str = "") -> list[str]:
        """Have the ranks of each host share memory, and set `shared`. Collective. Arguments and result: see `share`."""
        processes, more = self._rendezvous.processes, self.size - len(self._rendezvous.processes)
        self._shared, reasons = share(self.place, processes, self.gather, size, unless, more)
        self.shared = self._shared.of([self.term.place(rank) for rank in range(self.size)])
        return reasons

    def start(self, from_everybody: bool = False) -> None:
        """Post the receives of control messages.

        from_everybody: whether workers send each other messages too, and not only rank 0
        """
        if self._is_second:  # the Transport of rank 0 has done so
            self._receives.start()
            return
        senders = range(self.size) if self.rank == 0 or from_everybody else range(1)
        self.pauses.start(senders)
        self._receives.start(outside=self.survives_deaths)

    # messages

    def send(self, dest: int, records: Iterable[Records], hurries: bool = True) -> None:
        """Send control records in order, in as few messages as possible.

        hurries: whether `dest` is woken for them; otherwise it reads them at its next poll
        """
        everything = joined(records)
        if self._is_second and dest:
            everything = everything.copy()
            everything["kind"][::BATCH] |= OF_WORKERS_RECORD
        for first in range(0, len(everything), BATCH):
            self._send(self._control, everything[first : first + BATCH], dest, hurries)

    def send_outside(self, place: int, records: Iterable[Records]) -> None:
        """Send records outside of all terms to the process at this place."""
        everything, dest = joined(records), self.term.rank(place)
        for first in range(0, len(everything), BATCH):
            self._sends.send(self._control, everything[first : first + BATCH], dest, outside=True)
        self.pauses.sent(dest)

    @property
    def dead(self) -> Set[int]:
        """The places of processes that are known to be dead."""
        return self._deaths.dead.keys()

    def give_up(self, place: int) -> None:
        """Take the process at this place for dead, as other ranks do."""
        self._deaths.dead[place] = None

    def send_text(self, dest: int, text: str) -> None:
        """Send a text of at most 64 KiB. It arrives before the records that are sent after it."""
        head, everything = record(Kind.TEXT).view(np.uint8), np.frombuffer(text.encode()[:TEXT_LIMIT], np.uint8)
        size = (BATCH - 1) * RECORD.itemsize
        for first in range(0, len(everything), size):
            self._send(self._control, np.concatenate([head, everything[first : first + size]]), dest)

    def send_vector(self, dest: int, vector: Array, heard: bool = False) -> Sending:
        """Send a vector with its stamp. It must not change until the result `is_free`. Others may be sent it too.

        heard: as for `Sends.send`
        """
        if self._is_second and dest:
            mark(vector)
        return self._send(self._vectors, vector, dest, heard=heard)

    def send_vectors(self, dest: int, vectors: Sequence[Array]) -> Sending:
        """Send vectors of one length in one message. Several must be in host memory, and are copied."""
        return self._send(self._vectors, bundle(vectors), dest)

    def _send(
        self, comm: MPI.Intracomm, buffer: Array, dest: int, hurries: bool = True, heard: bool = False
    ) -> Sending:
        sending = self._sends.send(comm, buffer, dest, heard)
        if hurries:
            self.pauses.sent(dest)
        return sending

    def post(self, buffer: Array, source: int | None = None) -> None:
        """Receive vectors from `source` (None: any rank) into `buffer`.

        From any rank, the buffer is posted again and again: what `poll` returns is valid until the next `poll` or
        `wait`, unless the caller keeps it. From one rank, the buffer is posted once.
        """
        self._receives.post(buffer, MPI.ANY_SOURCE if source is None else source)

    def poll(self) -> list[Message]:
        """What has arrived since the last poll."""
        self._receives.repost()
        messages = self._receives.poll()
        while self._receives.outside:
            self.hear_outside(*self._receives.outside.popleft())
        self._sends.poll()
        if messages:
            self.pauses.came()
        return messages

    @property
    def bytes_sent(self) -> int:
        return self._sends.bytes + (self._second.bytes_sent if self._second is not None else 0)

    @property
    def bytes_received(self) -> int:
        return self._receives.bytes + (self._second.bytes_received if self._second is not None else 0)

    # ending

    def close(self) -> None:
        """Withdraw what is posted. Every rank calls it, with nothing left to send or receive, if no rank is dead."""
        ends = (self,) if self._second is None else (self, self._second)
        posted = [request for end in ends for request in end._receives.requests()]
        for request in posted:
            request.Cancel()
        end = time.monotonic() + PATIENCE
        while not MPI.Request.Testall(posted) and time.monotonic() < end:
            time.sleep(LONGEST)
        self._control.Free()
        self._vectors.Free()
        self.pauses.close()

    def finalize(self) -> None:
        """`close`, and leave MPI. `end` follows. After a death only `leave` ends a process reliably."""
        self.close()
        MPI.Finalize()

    def end(self, code: int) -> NoReturn:
        """End this process after `finalize`, whatever its other threads do.

        MPICH tells its mpirun that a process ends in order, in an exit handler of the C library. Without it mpirun
        takes the end for a crash, kills the other ranks and exits with 9.
        """
        if "Open MPI" not in self.library:
            last_resort = threading.Timer(PATIENCE, os._exit, (code,))  # an exit handler of another library may hang
            last_resort.daemon = True
            last_resort.start()
            ctypes.CDLL(None).exit(code)
        os._exit(code)

    def leave(self, code: int, others: Collection[int] = ()) -> NoReturn:
        """End this process without leaving MPI, since Finalize and Abort hang after a death. others: see `outlast`."""
        self.outlast(others)
        flush()
        os._exit(code)

    def outlast(self, others: Collection[int]) -> None:
        """On rank 0: wait up to 2 s until mpirun knows that these ranks have ended. Then its exit code is rank 0's."""
        end = time.monotonic() + PATIENCE
        while self.rank == 0 and not self._all_gone(others, Identity.is_reaped) and time.monotonic() < end:
            with suppress(MPI.Exception):
                if not MPI.Is_finalized():
                    self._world.Iprobe(self.place)  # moves messages that are still under way
            time.sleep(LONGEST)
        if self.rank == 0:
            time.sleep(NOTICE)

    def _all_gone(self, ranks: Collection[int], is_gone: Callable[[Identity], bool] = Identity.is_gone) -> bool:
        places = {self.term.place(rank): rank for rank in ranks}
        places.pop(self.place, None)
        if MPI.Is_finalized():
            return all(is_gone(self._processes[rank]) for rank in places.values() if self._is_near(rank))
        dead = failed_ranks(self._world)
        left = [rank for place, rank in places.items() if place not in dead]
        return all(self._is_near(rank) and is_gone(self._processes[rank]) for rank in left)

    def neighbours(self, place: int) -> dict[int, Identity]:
        """The live processes of this host, by place, if the one at `place` is on this host. For any thread."""
        processes = self._rendezvous.processes
        here = processes[self.place]
        if not processes[place].is_near(here):
            return {}
        return {it: near for it, near in enumerate(processes) if near.is_near(here) and it not in self.dead}

    def is_gone(self, rank: int) -> bool:
        """Whether the process of `rank` has ended, as far as this host or MPI knows."""
        return self._all_gone([rank])

    def kill(self, rank: int) -> bool:
        """SIGKILL the process of `rank`, if it is on this host. Returns whether it was sent, or had ended already."""
        return self.term.place(rank) != self.place and self._is_near(rank) and self._processes[rank].kill()

    def _is_near(self, rank: int) -> bool:
        return bool(self._processes) and self._processes[rank].is_near(self._processes[self.rank])
