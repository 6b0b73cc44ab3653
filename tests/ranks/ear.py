"""Ranks that hear each other while some of them die: see inside_transport_faults.py."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from psgc import rendezvous
from psgc.errors import RunFailed
from psgc.messages import Kind, record
from psgc.mpi_start import MPI
from psgc.transport import Control, Died, Text, Transport, Vector

LARGE = 1 << 21  # entries of a large vector: 16 MiB
TIMEOUT = 40.0  # seconds: a case takes one or two


class Counting(MPI.Intracomm):
    """MPI that cannot count further than `rendezvous.LARGEST`."""

    def Isend(self, message, *to):
        return super().Isend(self.counted(*message), *to)

    def Irecv(self, message, *of):
        return super().Irecv(self.counted(*message), *of)

    @staticmethod
    def counted(buffer, *how):
        assert how[0] == 1 or buffer.nbytes <= rendezvous.LARGEST, f"a count of {buffer.nbytes}"
        return [buffer, *how]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def failure(action):
    """What the RunFailed of `action` says."""
    try:
        action()
    except RunFailed as error:
        return str(error)
    raise AssertionError("it did not fail")


class Ear:
    """Polls, and keeps what has come: the records and vectors of each rank in order, and who died when."""

    def __init__(self, transport):
        self.transport = transport
        self.records = {rank: [] for rank in range(transport.size)}
        self.vectors = {rank: [] for rank in range(transport.size)}
        self.texts = dict.fromkeys(range(transport.size), b"")
        self.died = {}
        self.news = []

    def listen(self):
        self.news = self.transport.poll()
        for message in self.news:
            match message:
                case Died(rank):
                    assert rank not in self.died, f"rank {rank} died twice"
                    self.died[rank] = time.monotonic()
                case Control(source, records):
                    assert source not in self.died, f"{source} was heard after its death"
                    self.records[source] += records.tolist()
                case Text(source, piece):
                    assert source not in self.died, f"{source} was heard after its death"
                    self.texts[source] += piece
                case Vector(source, iteration, _, buffer, length) as vector:
                    assert source not in self.died, f"{source} was heard after its death"
                    assert (buffer[:length] == buffer[0]).all()
                    self.vectors[source].append((iteration, float(buffer[0]), length))
                    self.take(vector)
        self.transport.wait()

    def take(self, vector):
        """Done with a vector."""
        if self.transport.rank:
            self.transport.post(vector.buffer, 0)

    def until(self, condition, what):
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, f"{what}: {self.died} {[len(x) for x in self.records.values()]}"
            self.listen()

    def until_died(self, *ranks):
        self.until(lambda: set(ranks) <= set(self.died), f"the death of {ranks}")

    def until_kind(self, rank, kind):
        self.until(lambda: any(entry[0] == kind for entry in self.records[rank]), f"{kind} from {rank}")


def start(buffers=2, length=LARGE):
    """A transport that is ready, everybody's, and its ear."""
    rendezvous.LARGEST = int(os.environ.get("LARGEST", rendezvous.LARGEST))
    MPI.Init_thread(MPI.THREAD_FUNNELED)
    transport = Transport(Counting(MPI.COMM_WORLD))
    large = bytes(range(256)) * 1000 + b"end"
    assert transport.broadcast(None if transport.rank else large) == large
    transport.start()
    for _ in range(buffers if transport.rank == 0 else 1):
        transport.post(np.empty(length), *([0] if transport.rank else []))
    transport.gather("")
    return transport, Ear(transport)


def is_content(rank):
    """Leave a file that says so: mpirun may lose the last words of a rank when another one ends with an error."""
    Path(os.environ["CONTENT"], str(rank)).touch()


def finish(transport, ear, code=0):
    """The server dismisses the living; everybody leaves."""
    living = [rank for rank in range(1, transport.size) if rank not in ear.died]
    if transport.rank == 0:
        for rank in living:
            transport.send(rank, [record(Kind.STOP)])
        for rank in living:
            ear.until_kind(rank, Kind.GOODBYE)
        ear.until(lambda: not transport.sending(), "the last sends")
    else:
        ear.until_kind(0, Kind.STOP)
        transport.send(0, [record(Kind.GOODBYE)])
        ear.until(lambda: not transport.sending(), "goodbye")
    is_content(transport.rank)
    transport.leave(code if transport.rank == 0 else 0, living)
