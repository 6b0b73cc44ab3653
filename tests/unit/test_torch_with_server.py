"""A script's worker with aggregation server, without MPI: which sums and states reach its script, and what it says."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc.aggregation.replica import WAITING_BYTES
from psgc.backend import Backend
from psgc.messages import PIECE, BlockName, Kind, digest_in, entries, pack_block
from psgc.torch.hand_over import HandOver, ScriptReplica, State, vector_of
from psgc.torch.working import CATCHING_UP, WithServer
from psgc.transport import Vector
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.mailbox import Mailbox
from psgc.workers.state import WorkerState
from tests.unit.scripted import Transport

LARGE = WAITING_BYTES // 4  # entries of a sum of which few may wait


class Worker:
    """Worker 1; the test is its script, which calls for iteration `first`."""

    def __init__(self, dim=3, first=0):
        self.transport, self.dim = Transport(2), dim
        self.hand_over = HandOver(first)
        self.replica = ScriptReplica(self.hand_over, np.float32, Backend())
        encoder = Encoder(Backend(), np.ones((1, 1)), dim, np.float32)
        mailbox = Mailbox(WorkerState(1, [0], 1, False), encoder)
        compute = SimpleNamespace(start=lambda: None, ident=5)
        self.loop = WithServer(
            self.transport, mailbox, encoder, compute, Backend(), dim, np.float32, 1000.0, Injector(), first=first,
            hand_over=self.hand_over, replica=self.replica,
        )  # fmt: skip
        self.call(first)

    def call(self, iteration, digest=b""):
        self.hand_over.call(iteration, True, 0.0, digest=digest)
        self.turn()

    def turn(self, *vectors):
        self.transport.arrived = list(vectors)
        self.loop._poll()
        self.loop._send_outbox()

    def begin(self, *iterations):
        """These begin: each brings the sum of the one before, whose entries say which that is."""
        for iteration in iterations:
            self.turn(Vector(0, iteration, 0, np.full(self.dim, iteration - 1, np.float32), self.dim))

    def state(self, iteration, blob, pieces=2, only=None):
        vector = vector_of(blob, np.dtype(np.float32))
        for number, piece in enumerate(np.array_split(vector, pieces)):
            if only is None or number in only:
                name = BlockName(0, 0, number, pieces, is_state=True)
                self.turn(Vector(0, iteration, pack_block(name), piece, len(piece)))

    def said(self, kind):
        return [
            entry for one in self.transport.records[0] for entry in entries(np.array([one])) if entry["kind"] == kind
        ]

    def sum(self):
        assert self.hand_over.is_answered()
        return self.hand_over.answer().vector[0]


def test_a_script_gets_every_sum_in_order():
    worker = Worker()
    worker.begin(0, 1)
    assert worker.sum() == 0
    worker.begin(2, 3)
    for iteration in (1, 2):
        worker.call(iteration)
        assert worker.sum() == iteration
    assert not worker.said(Kind.BEHIND)


def test_a_script_that_has_missed_a_sum_says_so_once_and_goes_on_from_a_state():
    worker = Worker(first=5)
    worker.begin(5, 6)
    worker.call(6)
    worker.begin(9, 10)
    assert [entry["iteration"] for entry in worker.said(Kind.BEHIND)] == [8]
    assert not worker.hand_over.is_answered()
    worker.state(12, b"the state of rank 0")
    worker.begin(13, 14)
    assert worker.hand_over.answer() == State(12, b"the state of rank 0")
    for iteration in (12, 13):
        worker.call(iteration)
        assert worker.sum() == iteration
    assert len(worker.said(Kind.BEHIND)) == 1
    assert [entry["iteration"] for entry in worker.said(Kind.STEPPED)] == [5, 12]


def test_a_state_of_which_the_rest_never_comes_is_not_used():
    worker = Worker()
    worker.begin(0, 1, 4)
    worker.state(5, b"the first one", pieces=3, only=[0, 1])
    worker.begin(9)
    worker.state(10, b"another one", pieces=3, only=[2])
    worker.begin(11)
    assert worker.sum() == 0  # of the call that it is in
    worker.call(1)
    assert not worker.hand_over.is_answered()
    worker.state(11, b"one that a newer one takes the place of", pieces=3, only=[0])
    worker.state(12, b"the last one")
    assert worker.hand_over.answer() == State(12, b"the last one")


@pytest.mark.parametrize(("dim", "most"), [(LARGE, CATCHING_UP), (3, WAITING_BYTES // 12)])
def test_no_more_sums_wait_for_a_slow_script_than_their_memory_allows(dim, most):
    worker = Worker(dim)
    worker.begin(*range(most + 1))
    assert not worker.said(Kind.BEHIND)
    worker.begin(most + 1)
    assert [entry["iteration"] for entry in worker.said(Kind.BEHIND)] == [most]


def test_a_short_sum_that_waits_does_not_keep_the_buffer_that_it_came_in():
    worker = Worker()
    worker.begin(0)
    buffer = np.zeros(PIECE // 4, np.float32)
    worker.turn(Vector(0, 1, 0, buffer, 3))
    assert not np.shares_memory(worker.hand_over.answer().vector, buffer)


def test_digests_are_told_where_ranks_are_compared():
    worker = Worker()
    digest = b"sixteen of bytes"
    for iteration in range(1, 4):
        worker.call(iteration, digest if iteration == 2 else b"")
    assert [(entry["iteration"], digest_in(entry)) for entry in worker.said(Kind.STEPPED)] == [(0, b""), (2, digest)]
