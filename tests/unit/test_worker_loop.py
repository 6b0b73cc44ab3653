"""The worker's loop without MPI: what it says by itself, and when it sends what it was asked for."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.messages import STANDINGS, UNHEARD, Kind, record
from psgc.transport import Control, Vector
from psgc.workers.desk import Desk, Result
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.loop import WorkerLoop
from psgc.workers.state import WorkerState
from tests.unit.scripted import Transport


@pytest.fixture
def loop():
    """Of a worker that rests, and says by itself that it is alive every 1000 s."""
    desk = SimpleNamespace(outgoing=list, running=lambda: (-1, 0.0), skip=lambda *_: None)
    return WorkerLoop(Transport(2), desk, None, None, Backend(), 3, "float64", 1000.0, Injector())


def turn(loop, messages):
    loop._transport.arrived = [Control(0, record(Kind.SKIP, 0, 0)) for _ in range(messages)]
    loop._poll()
    loop._send_outbox()


def test_who_is_told_much_and_says_nothing_says_that_it_reads(loop):
    turn(loop, UNHEARD // 2 - 1)
    assert loop._transport.sent == []
    turn(loop, 1)
    assert loop._transport.sent == [(0, ["ALIVE"])]
    turn(loop, UNHEARD // 2 - 1)
    assert loop._transport.sent == [(0, ["ALIVE"])]


# a worker that computes


class Worker:
    """Worker 1 of two, transfer `combined`; the test computes its chunks."""

    def __init__(self, num_chunks):
        self.transport = Transport(2)
        encoder = Encoder(Backend(), np.ones((2, 1)), 3, "float64")
        self.state = WorkerState(1, range(num_chunks), num_chunks, combined=True)
        self.desk = Desk(self.state, encoder)
        self.loop = WorkerLoop(self.transport, self.desk, encoder, None, Backend(), 3, "float64", 1000.0, Injector())

    def turn(self, *messages):
        """The loop turns once, and finds these."""
        self.transport.arrived = list(messages)
        self.loop._poll()
        self.loop._send_outbox()
        self.loop._send_vectors()

    def begin(self, iteration, standings=0):
        self.turn(Vector(0, iteration, standings, np.zeros(3), 3))

    def told(self, *records):
        self.turn(Control(0, np.concatenate(records)))

    def does(self, value):
        """The next chunk, whose gradient has this value in every entry."""
        work = self.desk.take()
        self.desk.finished(work, Result(np.full(3, value), 0.0, 0.0, 0.1))
        return work.chunk

    def delivered(self):
        return {role: vector.tolist() for _, _, role, vector in self.transport.vectors}


def test_an_accumulator_that_still_waits_behind_other_vectors_is_not_used_again():
    worker = Worker(2)
    worker.begin(0)
    worker.transport.on_the_way[0] = 1 << 30  # the server does not take what was sent before
    for value in (5.0, 7.0):
        worker.does(value)
    worker.told(record(Kind.COMMIT, 0, 0, worker=1, role=1), record(Kind.COLLECT, 0, role=1))
    # others are lost: this worker does their chunks in their roles
    worker.told(record(Kind.REOPEN, 0, 1, again=1), record(Kind.NEXT, 0, 1))
    assert worker.does(7.0) == 1
    worker.told(record(Kind.COMMIT, 0, 1, worker=2, role=2), record(Kind.COLLECT, 0, role=2))
    assert worker.transport.vectors == []
    worker.transport.on_the_way.clear()
    worker.turn()
    assert worker.delivered() == {1: [5.0] * 3, 2: [7.0] * 3}


def test_an_accumulator_of_an_iteration_before_that_still_waits_is_not_used_again():
    worker = Worker(1)
    worker.begin(0)
    worker.transport.on_the_way[0] = 1 << 30
    worker.does(5.0)
    worker.told(record(Kind.COMMIT, 0, 0, worker=1, role=1), record(Kind.COLLECT, 0, role=1))
    worker.begin(1)
    worker.does(9.0)
    worker.told(record(Kind.COMMIT, 1, 0, worker=1, role=1))
    worker.transport.on_the_way.clear()
    worker.turn()
    assert worker.delivered() == {1: [5.0] * 3}


@pytest.mark.parametrize("before", [0, STANDINGS - 1])
@pytest.mark.parametrize("behind", [1, UNHEARD])
def test_parameters_wait_for_every_standing_queue_that_they_count(before, behind):
    worker = Worker(2)

    def read(queues):
        for _ in range(queues):
            worker.told(record(Kind.STANDING, 0, 0, last=False), record(Kind.STANDING, 0, 1))

    read(before)
    worker.begin(0, standings=(before + behind) % STANDINGS)
    read(behind - 1)
    assert worker.state.iteration == -1
    read(1)
    assert worker.state.iteration == 0


def test_parameters_that_were_overtaken_by_newer_standing_queues_begin_at_once():
    worker = Worker(2)
    for _ in range(STANDINGS // 2 - 1):
        worker.told(record(Kind.STANDING, 1, 1))
    worker.begin(0, standings=0)
    assert worker.state.iteration == 0
