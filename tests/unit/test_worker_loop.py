"""The worker's loop without MPI: what it says by itself, and when it sends what it was asked for."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.messages import QUEUE_COUNTS, TAIL, UNDER_WAY, UNHEARD, Kind, record, stamp_length
from psgc.transport import Control, Died, Vector
from psgc.workers import loop as worker_loop
from psgc.workers import mailbox as worker_mailbox
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.loop import WorkerLoop
from psgc.workers.mailbox import Mailbox, Result
from psgc.workers.replicated import ReplicatedLoop
from psgc.workers.state import WorkerState
from tests.simulation.network import Clock
from tests.unit.scripted import Transport


class Worker:
    """Worker 1 of two; the test computes its chunks."""

    def __init__(self, num_chunks, combined=True, silence=1000.0, first_role=0, long=1000.0):
        self.transport = Transport(3)
        encoder = Encoder(Backend(), np.ones((2, 1)), 3, "float64")
        self.state = WorkerState(1, range(num_chunks), num_chunks, combined)
        self.mailbox = Mailbox(self.state, encoder)
        compute = SimpleNamespace(start=lambda: None, ident=5)
        self.loop = WorkerLoop(
            self.transport, self.mailbox, encoder, compute, Backend(), 3, "float64", silence, Injector(),
            first_role=first_role, long=long,
        )  # fmt: skip

    def turn(self, *messages):
        """The loop turns once, and finds these."""
        self.transport.arrived = list(messages)
        self.loop._poll()
        self.loop._send_outbox()
        self.loop._send_vectors()

    def begin(self, iteration, default_queues=0):
        self.turn(Vector(0, iteration, default_queues, np.zeros(3), 3))

    def told(self, *records):
        self.turn(Control(0, np.concatenate(records)))

    def does(self, value):
        """The next chunk, whose gradient has this value in every entry."""
        work = self.mailbox.take()
        self.mailbox.finished(work, Result(np.full(3, value), 0.0, 0.0, 0.1))
        return work.chunk

    def delivered(self):
        return {role: vector.tolist() for _, _, role, vector in self.transport.vectors}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (worker_loop, worker_mailbox):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_who_is_told_much_and_says_nothing_says_that_it_reads():
    worker = Worker(1)

    def turn(messages):
        worker.turn(*(Control(0, record(Kind.SKIP, 0, 0)) for _ in range(messages)))

    turn(UNHEARD // 2 - 1)
    assert worker.transport.sent == []
    turn(1)
    assert worker.transport.sent == [(0, ["ALIVE"])]
    turn(UNHEARD // 2 - 1)
    assert worker.transport.sent == [(0, ["ALIVE"])]


def test_an_accumulator_that_still_waits_behind_other_vectors_is_not_used_again():
    worker = Worker(2)
    worker.begin(0)
    worker.transport.on_the_way[0] = 1 << 30  # the server does not take what was sent before
    for value in (5.0, 7.0):
        worker.does(value)
    worker.told(record(Kind.COMMIT, 0, 0, worker=1, role=1), record(Kind.COLLECT, 0, role=1))
    # others are lost: this worker does their chunks in their roles
    worker.told(record(Kind.INVALIDATE, 0, 1, attempt=1), record(Kind.NEXT, 0, 1))
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


def test_each_failure_has_its_own_text_right_before_it():
    worker = Worker(4)
    worker.begin(0)
    sent = []
    worker.transport.send_text = lambda dest, text: sent.append(text)
    worker.transport.send = lambda dest, records: sent.append([Kind(int(r["kind"][0])).name for r in records])
    worker.does(5.0)
    for text in ("one", "two"):
        worker.mailbox.failed(worker.mailbox.take(), text)
    worker.does(5.0)
    worker.turn()
    assert sent == [["REPORT"], "one", ["FAILED"], "two", ["FAILED", "REPORT"]]


@pytest.mark.parametrize("before", [0, QUEUE_COUNTS - 1])
@pytest.mark.parametrize("behind", [1, UNHEARD])
def test_parameters_wait_for_every_default_queue_that_they_count(before, behind):
    worker = Worker(2)

    def read(queues):
        for _ in range(queues):
            worker.told(record(Kind.DEFAULT_QUEUE, 0, 0, last=False), record(Kind.DEFAULT_QUEUE, 0, 1))

    read(before)
    worker.begin(0, default_queues=(before + behind) % QUEUE_COUNTS)
    read(behind - 1)
    assert worker.state.iteration == -1
    read(1)
    assert worker.state.iteration == 0


def test_parameters_that_were_overtaken_by_newer_default_queues_begin_at_once():
    worker = Worker(2)
    for _ in range(QUEUE_COUNTS // 2 - 1):
        worker.told(record(Kind.DEFAULT_QUEUE, 1, 1))
    worker.begin(0, default_queues=0)
    assert worker.state.iteration == 0


def test_with_verify_an_accumulator_is_told_from_the_coded_gradient_of_a_chunk():
    worker = Worker(2, first_role=7)
    worker.begin(0)
    worker.does(5.0)
    worker.told(record(Kind.COMMIT, 0, 0, worker=1, role=1), record(Kind.COLLECT, 0, role=1))
    assert worker.delivered() == {7 + 1: [5.0] * 3}


def test_two_vectors_are_on_their_way_at_most():
    worker = Worker(3, combined=False)
    worker.begin(0)
    for value in (1.0, 2.0, 3.0):
        worker.does(value)
    size = 8 * (3 + TAIL + stamp_length("float64"))
    worker.transport.on_the_way[0] = UNDER_WAY * size
    worker.turn()
    assert worker.transport.vectors == []
    worker.transport.on_the_way[0] = UNDER_WAY * size - 1
    worker.turn()
    assert [what for _, _, what, _ in worker.transport.vectors] == [0, 1, 2]


def test_small_vectors_travel_together_as_many_as_the_receive_has_room_for(monkeypatch):
    size = 8 * (3 + TAIL + stamp_length("float64"))
    monkeypatch.setattr(worker_loop, "BUNDLE", 3 * size)
    worker, messages = Worker(8, combined=False), []
    worker.transport.send_vectors = lambda dest, vectors: messages.append(len(vectors))
    worker.begin(0)
    for value in range(8):
        worker.does(float(value))
    worker.turn()
    assert messages == [3, 3, 2]


def test_who_computes_says_in_which_chunk_it_is_and_for_how_long(clock):
    worker = Worker(2, silence=5.0)
    worker.begin(0)
    worker.mailbox.take()
    clock.now += 5.0
    worker.turn()
    assert worker.transport.sent == []
    clock.now += 0.5
    worker.turn()
    worker.turn()
    (alive,) = worker.transport.records[0]
    assert (alive["kind"], alive["chunk"], alive["seconds"]) == (Kind.ALIVE, 0, 5.5)


def test_a_chunk_that_takes_very_long_is_told_with_its_line_at_once_and_after_twice_as_long(clock, monkeypatch):
    monkeypatch.setattr(worker_loop, "current_line", lambda thread: f"model.py:3, thread {thread}")
    worker = Worker(2, silence=5.0, long=30.0)
    texts = []
    worker.transport.send_text = lambda dest, text: texts.append((dest, text, len(worker.transport.records[0])))
    worker.begin(0)
    worker.mailbox.take()
    for _ in range(25):
        clock.now += 6.0
        worker.turn()
    told = [(int(entry["kind"]), float(entry["seconds"])) for entry in worker.transport.records[0]]
    assert [seconds for kind, seconds in told if kind == Kind.STUCK] == [36.0, 78.0]
    assert {kind for kind, _ in told} == {Kind.ALIVE, Kind.STUCK}
    assert [(dest, text) for dest, text, _ in texts] == [(0, "model.py:3, thread 5")] * 2
    assert [before for *_, before in texts] == [place for place, (kind, _) in enumerate(told) if kind == Kind.STUCK]


def test_orders_behind_the_queue_that_parameters_wait_for_are_of_their_iteration():
    worker = Worker(2)
    worker.begin(0, default_queues=1)
    worker.told(
        record(Kind.DEFAULT_QUEUE, 0, 1, last=False), record(Kind.DEFAULT_QUEUE, 0, 0), record(Kind.NEXT, 0, 0),
        record(Kind.QUEUE, 0, -1),
    )  # fmt: skip
    assert worker.state.iteration == 0
    assert worker.state.take() is None  # the empty queue was the last word


def test_an_order_to_deliver_that_comes_after_its_iteration_is_not_followed():
    worker = Worker(1)
    worker.begin(0)
    worker.does(5.0)
    worker.told(record(Kind.COMMIT, 0, 0, worker=1, role=1))
    worker.begin(1)
    worker.told(record(Kind.COLLECT, 0, role=1))
    assert worker.delivered() == {}


# how it ends


def test_another_workers_death_is_for_the_server_to_deal_with():
    worker = Worker(1)
    worker.transport.script = iter(
        [[Died(2)], [], [Control(0, record(Kind.STOP))], [], [Control(0, record(Kind.LEAVE))]]
    )
    assert worker.loop.run()


def test_the_servers_death_ends_a_worker_out_of_order():
    worker = Worker(1)
    worker.transport.script = iter([[Died(0)], *[[]] * 4])
    assert not worker.loop.run()


def test_goodbye_is_the_last_thing_that_is_sent():
    """It says that everything is there: what is still under way leaves before it."""
    worker = Worker(1)
    polls = [[Control(0, record(Kind.STOP))], [], [], [], [Control(0, record(Kind.LEAVE, last=False))]]
    left = []

    def script():
        for number, messages in enumerate(polls):
            left.append(number)
            yield messages

    worker.transport.script = script()
    worker.transport.sending = lambda buffer=None: len(left) < 4
    said_at = []
    send = worker.transport.send
    worker.transport.send = lambda dest, records: (said_at.append(len(left)), send(dest, records))
    assert not worker.loop.run()  # the server says so
    assert worker.transport.sent == [(0, ["GOODBYE"])]
    assert said_at == [4]


def test_a_replica_that_has_made_a_step_is_heard_although_nobody_else_rang():
    loop = object.__new__(ReplicatedLoop)
    loop._allreduce = SimpleNamespace(nap=0.0, is_busy=False)
    loop._mailbox, loop._transport = SimpleNamespace(busy=True), SimpleNamespace(wait=lambda **_: False)
    assert loop._wait()
