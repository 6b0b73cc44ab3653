"""The ranks of a run meet before it starts: each sends messages to rank 0, and rank 0 answers.

A rank waits for others in vain when MPI reports a death; when the other's process, on the same host, has ended or was
stopped for `stopped_timeout` seconds; or when nothing came for `timeout` seconds, twice as many from rank 0. Then the
waiting rank ends the run: rank 0 tells the others, and ranks kill stopped processes on their hosts.
"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from psgc.errors import FirstDied, FirstSilent, RunFailed
from psgc.mpi_start import FIRST_WORD, MPI, TIMEOUT
from psgc.processes import Identity, RunningTime
from psgc.terminal import say

DATA_TAG, REMINDER_TAG, PATIENCE_TAG, OFF_TAG = 11, 12, 13, 14
TEXT_LIMIT = 512  # bytes of a text that is gathered
STOPPED_TIMEOUT = 30.0  # seconds; this and TIMEOUT hold until rank 0 sets others
LOOK_EVERY = 0.1  # seconds between two checks of processes
REMINDER = 60.0  # seconds of waiting after which rank 0 is sent a message
PATIENCE = 1.0  # seconds that a killed process may take to end
PAUSE = 1e-3
LARGEST = 2**31 - 1  # MPI's largest count
BLOCK = 1 << 10  # bytes; larger messages are counted in blocks of so many
DEATHS = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)


def in_bytes(buffer: Any) -> list[Any]:
    """`buffer`, of any size, as MPI's functions take it: as bytes, or as one item that consists of blocks."""
    if buffer.nbytes <= LARGEST:
        return [buffer, MPI.BYTE]
    return [buffer, 1, _item(buffer.nbytes)]


@lru_cache(maxsize=8)  # messages of a run have few sizes
def _item(size: int) -> MPI.Datatype:
    count, rest = divmod(size, BLOCK)
    block = MPI.BYTE.Create_contiguous(BLOCK)
    blocks = block.Create_contiguous(count)
    item = MPI.Datatype.Create_struct([1, rest], [0, size - rest], [blocks, MPI.BYTE]).Commit()
    block.Free()
    blocks.Free()
    return item


def received(status: MPI.Status) -> int:
    """How many bytes have come."""
    return status.Get_elements(MPI.BYTE)


def failed_ranks(comm: MPI.Intracomm) -> list[int]:
    """The ranks that MPI reports dead, in the order in which it learnt of their deaths."""
    everybody, failed = comm.Get_group(), comm.Get_failed()
    ranks = failed.Translate_ranks(None, everybody) if failed.Get_size() else []
    everybody.Free()
    failed.Free()
    return ranks


class Deaths:
    """The deaths that MPI reports."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.dead: dict[int, None] = {}  # ranks of `comm`, in the order in which MPI learnt of their deaths

    def forgive(self, error: MPI.Exception, statuses: Sequence[MPI.Status] = ()) -> None:
        """Note the deaths that caused `error`, and let receives on `comm` go on. Raises any other error."""
        classes = {status.Get_error() for status in statuses} | {error.Get_error_class()}
        if not classes <= {MPI.SUCCESS, MPI.ERR_IN_STATUS, *DEATHS}:
            raise error
        failed = failed_ranks(self._comm)
        self._comm.Ack_failed(len(failed))
        self.dead |= dict.fromkeys(failed)


class Rendezvous:
    """This process among the ranks of `world`.

    processes: of all ranks, once they have met
    interrupted: gives a reason to end, or None

    All methods raise RunFailed for that reason, and when a rank is given up.
    """

    def __init__(
        self, world: MPI.Intracomm, interrupted: Callable[[], str | None] | None = None, timeout: float = TIMEOUT
    ) -> None:
        self._world = world
        self._rank, self._others = world.Get_rank(), range(1, world.Get_size())
        self._interrupted = interrupted
        self._timeout, self._stopped_timeout = timeout, STOPPED_TIMEOUT
        self._sends: list[tuple[MPI.Request, np.ndarray, int]] = []  # request, its buffer, receiver
        self.processes: list[Identity] = []
        self.processes = [Identity.from_text(text) for text in self.gather(Identity.own().text())]

    def be_patient(self, timeout: float, stopped_timeout: float) -> None:
        """Set the limits of every rank. On rank 0, while the others wait for it."""
        self._timeout, self._stopped_timeout = timeout, stopped_timeout
        for rank in self._others:
            self._send(rank, np.array([timeout, stopped_timeout]).tobytes(), PATIENCE_TAG)

    def broadcast(self, data: bytes | None, doing: str = "starting") -> bytes:
        """Send the bytes of rank 0 to every rank. Collective. doing: what the awaited ranks do, for messages."""
        if self._rank:
            return self._hear(doing)
        assert data is not None
        for rank in self._others:
            self._send(rank, data)
        self._wait(lambda: not self._sending(), self._sending, doing)
        return data

    def gather(self, text: str, doing: str = "starting") -> list[str]:
        """The texts of all ranks, each cut at 512 bytes, on every rank. Collective."""
        mine = text.encode()[:TEXT_LIMIT]
        if self._rank:
            self._send(0, mine)
            everyone: list[str] = json.loads(self._hear(doing))
            return everyone
        texts = {0: mine}

        def hear() -> bool:
            while len(texts) <= len(self._others) and (found := self._receive(MPI.ANY_SOURCE, DATA_TAG)) is not None:
                texts[found[0]] = found[2]
            return len(texts) > len(self._others)

        self._wait(hear, lambda: [rank for rank in self._others if rank not in texts], doing)
        everyone = [texts[rank].decode(errors="ignore") for rank in sorted(texts)]
        self.broadcast(json.dumps(everyone).encode(), doing)
        return everyone

    def complete(self, begin: Callable[[], MPI.Request], doing: str) -> None:
        """Wait for one of MPI's collectives."""
        request = MPI.REQUEST_NULL
        try:
            request = begin()
        except MPI.Exception as error:
            self._forgive(error)
        self._wait(lambda: bool(request.Test()), lambda: range(len(self._others) + 1), doing)

    # waiting

    def _wait(self, step: Callable[[], bool], awaited: Callable[[], Collection[int]], doing: str) -> None:
        """Call `step` until it returns True. awaited: gives the ranks that this waits for."""
        running, next_look, next_word, next_reminder = RunningTime(), 0.0, FIRST_WORD, REMINDER
        stopped_at: dict[int, tuple[int, float]] = {}  # rank -> its switches, and when first seen stopped with them
        while True:
            try:
                if step():
                    return
            except MPI.Exception as error:
                self._forgive(error)
            if dead := failed_ranks(self._world):  # the first death may have made the others leave
                self._died(0 if 0 in dead or self._is_gone(0) else dead[0])
            if self._interrupted is not None and (reason := self._interrupted()) is not None:
                self._give_up(reason)
            waited = running.look()
            if waited >= next_look:
                next_look = waited + LOOK_EVERY
                self._look_at(awaited(), waited, stopped_at)
            if waited > self._timeout * (2 if self._rank else 1):  # rank 0 may itself wait for another rank
                limit = f"{self._timeout:g} s (faults.setup_timeout)"
                self._give_up(f"nothing came for {limit} from {self._names(awaited())}, {doing}", awaited())
            if self._rank == 0 and waited >= next_word:
                say(f"waiting for {self._names(awaited())} for {waited:.0f} s, {doing}", error=True)
                next_word *= 2
            if self._rank and waited >= next_reminder:  # the kernel reports a lost host only to processes that send
                self._send(0, b"", REMINDER_TAG)
                next_reminder += REMINDER
            time.sleep(PAUSE)

    def _look_at(self, ranks: Collection[int], waited: float, stopped_at: dict[int, tuple[int, float]]) -> None:
        """Give up the awaited ranks of this host whose processes have ended or are stopped."""
        for rank in [rank for rank in ranks if self._is_near(rank)]:
            if self._is_gone(rank):
                self._died(rank)
            if not self.processes[rank].is_stopped():
                stopped_at.pop(rank, None)
                continue
            before, since = stopped_at.get(rank, (-1, waited))
            if (switches := self.processes[rank].switches()) != before:
                stopped_at[rank] = switches, waited
            elif waited - since > self._stopped_timeout:
                limit = f"{self._stopped_timeout:g} s (faults.collect_timeout)"
                self._give_up(f"{self._name(rank)} is stopped for {limit} while the run is being set up", [rank])

    def _died(self, rank: int) -> NoReturn:
        """End the run. Raises RunFailed."""
        text = f"{self._name(rank)} died while the run was being set up"
        if rank == 0:
            raise FirstDied(text)
        self._give_up(text)

    def _give_up(self, reason: str, hanging: Collection[int] = ()) -> NoReturn:
        """End the run, on rank 0 for all ranks. Raises RunFailed."""
        for rank in self._others if self._rank == 0 else ():
            self._send(rank, json.dumps([reason, sorted(hanging)]).encode(), OFF_TAG)
        self._kill(hanging)
        raise (FirstSilent if self._rank and 0 in hanging else RunFailed)(reason)

    def _kill(self, ranks: Collection[int]) -> None:
        """Kill these ranks if they are on this host, and wait for their end, so that no other rank is blamed for it."""
        killed = [rank for rank in ranks if self._is_near(rank) and self.processes[rank].kill()]
        end = time.monotonic() + PATIENCE
        while not all(map(self._is_gone, killed)) and time.monotonic() < end:
            time.sleep(PAUSE)

    def _is_gone(self, rank: int) -> bool:
        return self._is_near(rank) and self.processes[rank].is_gone()

    def _is_near(self, rank: int) -> bool:
        return bool(self.processes) and rank != self._rank and self.processes[rank].is_near(self.processes[self._rank])

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self.processes[rank].host}" if self.processes else f"rank {rank}"

    def _names(self, ranks: Collection[int]) -> str:
        first = sorted(ranks)[:8]
        more = f" and {len(ranks) - len(first)} more" if len(ranks) > len(first) else ""
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, first))}{more}"

    # messages

    def _send(self, rank: int, data: bytes, tag: int = DATA_TAG) -> None:
        buffer = np.frombuffer(data, np.uint8)
        try:
            self._sends.append((self._world.Isend(in_bytes(buffer), rank, tag), buffer, rank))
        except MPI.Exception as error:
            self._forgive(error)

    def _sending(self) -> list[int]:
        self._sends = [sent for sent in self._sends if not sent[0].Test()]
        return [rank for _, _, rank in self._sends]

    def _hear(self, doing: str) -> bytes:
        found: list[tuple[int, int, bytes]] = []

        def hear() -> bool:
            if (message := self._receive(0, MPI.ANY_TAG)) is not None:
                found.append(message)
            return bool(found)

        while True:
            self._wait(hear, lambda: [0], doing)
            _, tag, data = found.pop()
            if tag == DATA_TAG:
                return data
            if tag == PATIENCE_TAG:
                self._timeout, self._stopped_timeout = np.frombuffer(data).tolist()
            if tag == OFF_TAG:
                reason, hanging = json.loads(data)
                self._kill(hanging)
                raise RunFailed(reason)

    def _receive(self, source: int, tag: int) -> tuple[int, int, bytes] | None:
        """Source, tag and content of a message that has come, or None."""
        status = MPI.Status()
        message = self._world.Improbe(source, tag, status)
        if message is None:
            return None
        buffer = np.empty(received(status), np.uint8)
        request = message.Irecv(in_bytes(buffer))
        self._wait(lambda: bool(request.Test()), lambda: [status.Get_source()], "sending")
        return status.Get_source(), status.Get_tag(), buffer.tobytes()

    @staticmethod
    def _forgive(error: MPI.Exception) -> None:
        """Raise every error except deaths, which `_wait` sees."""
        if error.Get_error_class() not in DEATHS:
            raise error
