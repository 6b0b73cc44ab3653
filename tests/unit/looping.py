"""A worker without MPI and without a compute thread: the test says what comes, and computes its chunks."""

from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.aggregation.blocks import Sums
from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.messages import Kind, record
from psgc.optimizer import make_optimizer
from psgc.transport import Control
from psgc.vectors import unpack_block
from psgc.workers import loop as worker_loop
from psgc.workers import mailbox as worker_mailbox
from psgc.workers import reports as worker_reports
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.loop import Duties, WorkerLoop
from psgc.workers.mailbox import Mailbox
from psgc.workers.reports import SignsOfLife
from psgc.workers.state import WorkerState
from psgc.workers.work import Result
from tests.simulation.network import Clock
from tests.unit.given_states import SGD
from tests.unit.scripted import Transport


class Worker:
    """Worker 1 of two; the test computes its chunks."""

    def __init__(self, num_chunks, combined=True, silence=1000.0, long=1000.0, shared=None):
        self.transport = Transport(3)
        self.transport.rank = 1
        self.transport.shared = shared or self.transport.shared
        self.encoder = encoder = Encoder(Backend(), np.ones((2, 1)), 3, "float64")
        self.state = WorkerState(1, range(num_chunks), num_chunks, combined)
        self.mailbox = Mailbox(self.state, encoder)
        self.replica = Replica(make_optimizer(SGD), Backend(), lambda: None)
        self.replica.params = np.zeros(3)
        sums = Sums(np.ones((2, 1)), 3, np.dtype("float64"), 0, 9)
        duties = Duties(sums=sums, alike=True, signs=SignsOfLife(silence, long))
        compute = SimpleNamespace(start=lambda: None, ident=5)
        self.loop = WorkerLoop(
            self.transport, self.mailbox, encoder, compute, Backend(), self.replica, Injector(), duties
        )

    def follow(self, script):
        """The loop runs, and finds in each poll what `script` yields; then the server says that it is over."""
        end = [[Control(0, record(Kind.STOP))], [], [Control(0, record(Kind.LEAVE))]]
        self.transport.script = chain(script(), end, repeat([]))
        assert self.loop.run()

    def does(self, value):
        """The next chunk, whose gradient has this value in every entry."""
        work = self.mailbox.take()
        self.mailbox.finished(work, Result(np.full(3, value), 0.0, 0.0, 0.1))
        return work.chunk

    def sent(self):
        """The blocks that have been sent: (to whom, of which iteration, role and serial, first entry)."""
        names = [
            (to, iteration, unpack_block(what), vector[0]) for to, iteration, what, vector in self.transport.vectors
        ]
        return [(to, iteration, (name.role, name.serial), first) for to, iteration, name, first in names]


def told(*records):
    return [Control(0, np.concatenate(records))]


def begin(iteration):
    return told(record(Kind.BEGIN, iteration))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (worker_loop, worker_mailbox, worker_reports):
        monkeypatch.setattr(module, "time", clock)
    return clock


def said(worker):
    """What it has told rank 0 besides blocks."""
    return [Kind(int(entry["kind"])) for entry in worker.transport.records[0]]
