"""The mailbox: what two threads share. Threads are joined with a limit, never slept for."""

import random
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.coding.sketch import sketch
from psgc.errors import ModelError
from psgc.messages import Kind
from psgc.vectors import TAIL, stamp_length
from psgc.workers import mailbox
from psgc.workers.encoder import Encoder
from psgc.workers.mailbox import SHORT, Mailbox
from psgc.workers.state import WorkerState
from psgc.workers.work import CodedGradient, Failure, Result
from tests.unit.kept import held_chunks

LIMIT = 20.0  # seconds until a thread counts as stuck
COMBINED = pytest.mark.parametrize("combined", [True, False], ids=["combined", "per_chunk"])
PARAMS = np.array([1.0, 2.0, 3.0])
ONE_PART = np.ones((2, 1))
STAMP = stamp_length("float64")  # room at the end of every message


class Worker:
    def __init__(self, queue, combined, coding_matrix=ONE_PART, every=0):
        self.state = WorkerState(1, queue, 5, combined, every)
        self.encoder = Encoder(Backend(), coding_matrix, 3, "float64")
        self.encoder.begin()
        self.woken = 0
        self.mailbox = Mailbox(self.state, self.encoder, self.wake)
        self.mailbox.begin(0, PARAMS)

    def sum(self, role=1):
        """The accumulator."""
        return self.encoder.accumulators[role, 0].tolist()

    def wake(self):
        self.woken += 1

    def compute(self, start=0.5, seconds=0.25, loss=7.0, held_out=(4.0, 0.5)):
        """One chunk from the queue to the outbox: its work, and a weak reference to its gradient."""
        work = self.mailbox.take()
        gradient = np.full(3, float(work.chunk + 1))
        self.mailbox.finished(work, Result(gradient, loss, start, seconds, sums=held_out))
        return work, weakref.ref(gradient)


def told(mailbox):
    """(kind, iteration, chunk) of the records in the outbox."""
    return [(Kind(r["kind"]), int(r["iteration"]), int(r["chunk"])) for records in mailbox.outgoing() for r in records]


def in_thread(function):
    """Start it; its answer comes from what this returns."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()), daemon=True)
    thread.start()

    def answer():
        thread.join(LIMIT)
        assert not thread.is_alive(), "it still waits"
        return answers[0]

    return answer


def test_a_done_chunk_is_reported_and_its_gradient_encoded_when_it_is_committed():
    worker = Worker([2, 0], combined=True)
    _, gradient = worker.compute()
    (records,) = worker.mailbox.outgoing()
    assert records.tolist() == [(Kind.REPORT, 1, 0, 2, 0, 0, 0, 0.5, 0.25, 7.0, 4.0, 0.5)]
    assert worker.mailbox.outgoing() == []
    assert gradient() is not None
    worker.mailbox.commit(0, 2, (1,), 1)
    assert worker.sum() == [3, 3, 3]


def test_the_sketch_is_that_of_the_gradient_and_an_abandoned_chunk_has_none():
    worker = Worker([2, 0], combined=True, every=1)
    worker.compute()
    sketched, _ = worker.mailbox.outgoing()
    assert tuple(sketched[["start", "seconds", "loss"]][0]) == sketch(np.full(3, 3.0))
    work = worker.mailbox.take()
    worker.mailbox.tell(WorkerState.discard, 0, 0)
    worker.mailbox.finished(work, Result(np.ones(3), 7.0, 0.5, 0.25))
    assert told(worker.mailbox) == [(Kind.ABANDONED, 0, 0)]


def test_what_is_not_committed_is_freed_when_it_is_discarded_and_when_accumulators_are_shared():
    worker = Worker([2, 0, 3, 1], combined=True)
    _, late = worker.compute()
    worker.compute()
    _, kept = worker.compute()
    _, undecided = worker.compute()
    worker.mailbox.tell(WorkerState.discard, 0, 2)
    assert late() is None
    worker.mailbox.commit(0, 0, (1,), 1)
    worker.mailbox.commit(0, 3, (1,), 1)
    assert kept() is None
    assert undecided() is not None
    worker.mailbox.tell(WorkerState.share, 0)
    assert undecided() is None
    assert worker.sum() == [5, 5, 5]


@COMBINED
def test_it_can_be_asked_which_chunk_the_compute_thread_is_in_and_for_how_long(combined, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(mailbox, "time", clock)
    worker = Worker([2, 0], combined)
    clock.now += 5
    assert worker.mailbox.running() == (-1, 0.0)
    work = worker.mailbox.take()
    clock.now += 7
    assert worker.mailbox.running() == (2, 7.0)
    worker.mailbox.begin(1, PARAMS)  # the old chunk still keeps the thread
    clock.now += 2
    assert worker.mailbox.running() == (2, 9.0)
    worker.mailbox.finished(work, Result(np.ones(3), 0.0, 0.0, 0.0))
    assert worker.mailbox.running() == (-1, 0.0)
    work = worker.mailbox.take()
    clock.now += 1
    assert worker.mailbox.running() == (2, 1.0)
    with worker.mailbox.evaluating():  # held-out rows may take longer than any chunk: that is no sign of a hanging one
        clock.now += 90
        assert worker.mailbox.running() == (-1, 91.0)
    clock.now += 1
    assert worker.mailbox.running() == (2, 1.0)
    worker.mailbox.failed(work, "")
    assert worker.mailbox.running() == (-1, 0.0)


def test_per_chunk_sends_the_coded_gradient_with_the_tail_of_its_report_and_keeps_nothing():
    worker = Worker([2], combined=False, coding_matrix=np.ones((2, 3)))
    work, gradient = worker.compute()
    (message,) = worker.mailbox.outgoing()
    assert isinstance(message, CodedGradient)
    assert (message.iteration, message.chunk) == (work.iteration, work.chunk)
    assert message.vector[:-STAMP].tolist() == [9.0, 0.5, 0.25, 7.0, 4.0, 0.5, 0.0]
    assert len(message.vector) == 1 + TAIL + STAMP
    assert gradient() is None


@COMBINED
def test_an_abandoned_chunk_costs_a_record_and_no_memory(combined):
    worker = Worker([2, 0], combined)
    stale = worker.mailbox.take()
    worker.mailbox.begin(1, PARAMS)
    worker.mailbox.finished(stale, Result(np.ones(3), 7.0, 0.5, 0.25))
    (records,) = worker.mailbox.outgoing()
    assert records.tolist() == [(Kind.ABANDONED, 1, 0, 2, 0, 0, 0, 0.5, 0.25, 0.0, 0.0, 0.0)]
    unwanted = worker.mailbox.take()
    worker.mailbox.tell(WorkerState.discard, 1, 2)
    gradient = np.ones(3)
    freed = weakref.ref(gradient)
    worker.mailbox.finished(unwanted, Result(gradient, 7.0, 0.5, 0.25))
    del gradient
    assert freed() is None
    assert told(worker.mailbox) == [(Kind.ABANDONED, 1, 2)]
    assert worker.compute()[0].chunk == 0


@COMBINED
def test_a_failure_is_told_unless_nobody_needs_the_chunk_which_then_was_left(combined):
    worker = Worker([2, 0, 1], combined)
    worker.mailbox.failed(worker.mailbox.take(), "division by zero")
    assert worker.mailbox.outgoing() == [Failure(0, 2, "division by zero")]
    work = worker.mailbox.take()
    worker.mailbox.tell(WorkerState.discard, 0, 0)
    worker.mailbox.failed(work, "nobody minds")
    work = worker.mailbox.take()
    worker.mailbox.begin(1, PARAMS)
    worker.mailbox.failed(work, "nobody minds")
    assert told(worker.mailbox) == [(Kind.ABANDONED, 0, 0), (Kind.ABANDONED, 0, 1)]


@COMBINED
def test_what_comes_for_a_failed_chunk_before_the_run_ends_changes_nothing(combined):
    worker = Worker([1, 0], combined)
    worker.mailbox.failed(worker.mailbox.take(), "division by zero")
    assert not held_chunks(worker.state)
    worker.mailbox.tell(WorkerState.discard, 0, 1)  # somebody else has done it meanwhile
    worker.compute()
    worker.mailbox.tell(WorkerState.share, 0)


def test_a_chunk_of_the_trial_keeps_the_thread_busy_until_it_is_told():
    worker = Worker([0], combined=True)
    work, _ = worker.compute()
    assert not worker.mailbox.busy
    worker.mailbox.trying(3)
    assert worker.mailbox.busy
    assert worker.mailbox.running()[0] == 3
    worker.mailbox.tried(0, 3, (0.0, 0.0, 0.0))
    assert not worker.mailbox.busy
    assert worker.mailbox.running()[0] == -1
    worker.mailbox.broken(work, ModelError("it writes to params"))
    assert worker.mailbox.outgoing()[-1] == Failure(0, 0, "it writes to params", 1)


@COMBINED
def test_the_report_of_a_short_chunk_waits_for_those_of_the_next_ones_and_no_other_message_waits(combined):
    worker = Worker([2, 0, 1, 3], combined)

    def wakes(do):
        worker.woken = 0
        do()
        return worker.woken > 0

    assert not wakes(lambda: worker.compute(seconds=SHORT / 2))
    assert wakes(lambda: worker.compute(seconds=SHORT))
    assert wakes(lambda: worker.mailbox.failed(worker.mailbox.take(), ""))
    assert wakes(lambda: worker.compute(seconds=SHORT / 2))  # it was the last one
    assert wakes(lambda: worker.mailbox.tried(0, 1, (0.0, 0.0, 0.0)))
    assert len(worker.mailbox.outgoing()) == 5


class Watched(threading.Condition):
    """A condition that says when a thread waits for it, and counts how often it is notified."""

    def __init__(self):
        super().__init__()
        self.awaited, self.notified = threading.Event(), 0

    def wait(self, timeout=None):
        self.awaited.set()  # who notifies needs the lock, and gets it when the thread waits
        return super().wait(timeout)

    def notify_all(self):
        self.notified += 1
        super().notify_all()


@pytest.fixture
def idle(monkeypatch):
    """A worker without work in iteration 1, and what its compute thread waits for."""
    made = []
    watched = SimpleNamespace(Condition=lambda: made.append(Watched()) or made[-1])
    monkeypatch.setattr(mailbox, "threading", watched)
    worker = Worker([2], combined=True)
    worker.mailbox.begin(1, PARAMS)
    worker.mailbox.tell(WorkerState.discard, 1, 2)
    made[0].notified = 0
    return worker, made[0]


def waiting_in(function, changed):
    """As `in_thread`, once the thread waits."""
    answer = in_thread(function)
    assert changed.awaited.wait(LIMIT)
    return answer


@pytest.mark.parametrize(
    ("order", "arguments"),
    [
        (WorkerState.queue, ([2],)),
        (WorkerState.default_queue, ([2],)),
        (WorkerState.next, (2,)),
        (WorkerState.check, ([2], False)),
        (WorkerState.check, ([2], True)),
    ],
    ids=["queue", "default queue", "next", "check", "check at once"],
)
def test_a_free_compute_thread_waits_until_there_is_work(idle, order, arguments):
    worker, changed = idle
    answer = waiting_in(worker.mailbox.take, changed)
    worker.mailbox.tell(order, 1, *arguments)
    work = answer()
    assert (work.iteration, work.chunk) == (1, 2)


@pytest.mark.parametrize("early", [False, True], ids=["its default queue", "an order that came before"])
def test_a_free_compute_thread_waits_until_the_next_iteration(idle, early):
    worker, changed = idle
    answer = waiting_in(worker.mailbox.take, changed)
    if early:
        worker.mailbox.tell(WorkerState.default_queue, 1, [])
        worker.mailbox.tell(WorkerState.next, 2, 3)
        assert not changed.notified
    worker.mailbox.begin(2, PARAMS)
    work = answer()
    assert (work.iteration, work.chunk) == (2, 3 if early else 2)


def test_an_order_that_makes_no_work_does_not_wake_the_compute_thread(idle):
    worker, changed = idle
    answer = waiting_in(worker.mailbox.take, changed)
    worker.mailbox.tell(WorkerState.discard, 1, 0)
    worker.mailbox.tell(WorkerState.skip, 1, 0)
    worker.mailbox.tell(WorkerState.share, 1)
    worker.mailbox.tell(WorkerState.closed, 1)
    assert not changed.notified
    worker.mailbox.stop()
    assert answer() is None


def test_a_script_that_waits_for_chunks_is_told_to_look_again(idle):
    worker, changed = idle
    is_over = threading.Event()
    answer = waiting_in(lambda: worker.mailbox.take(is_over.is_set), changed)
    worker.mailbox.tell(WorkerState.closed, 1)
    is_over.set()
    worker.mailbox.look()
    assert answer() is None


def test_stop_ends_every_wait():
    worker = Worker([2], combined=True)
    work = worker.mailbox.take()
    waiting = in_thread(lambda: worker.mailbox.wait_stale(work, 1e6))
    worker.mailbox.stop()
    assert waiting() is None
    assert worker.mailbox.take() is None
    idle = Worker([], combined=True)
    answer = in_thread(idle.mailbox.take)
    idle.mailbox.stop()
    assert answer() is None


def test_an_emulated_delay_ends_with_its_iteration():
    worker = Worker([2], combined=True)
    work = worker.mailbox.take()
    waiting = in_thread(lambda: worker.mailbox.wait_stale(work, 1e6))
    worker.mailbox.begin(1, PARAMS)
    assert waiting() is None
    worker.mailbox.wait_stale(work, 1e6)  # nor does it begin any more
    worker.mailbox.finished(work, Result(np.ones(3), 0.0, 0.0, 0.0))
    worker.mailbox.wait_stale(worker.mailbox.take(), 0.0)


@pytest.fixture
def restless():
    """Threads change places as often as Python allows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@COMBINED
@pytest.mark.usefixtures("restless")
def test_two_threads_at_full_speed_lose_nothing_and_mix_nothing(combined):
    """The compute thread works without a pause while iterations begin, end and discard under it."""
    worker = Worker([0, 1, 2, 3], combined)
    mailbox, mixed = worker.mailbox, []

    def compute():
        taken = 0
        while (work := mailbox.take()) is not None:
            taken += 1
            if work.params[0] != work.iteration:
                mixed.append(work)
            mailbox.finished(work, Result(np.full(3, work.iteration * 10.0 + work.chunk), 0.0, 0.0, 0.0))
        return taken

    def heard():
        for message in mailbox.outgoing():
            if isinstance(message, CodedGradient):
                assert (message.vector[:3] == message.iteration * 10 + message.chunk).all()
                yield Kind.REPORT, message.iteration, message.chunk
            else:
                yield from ((Kind(r["kind"]), int(r["iteration"]), int(r["chunk"])) for r in message)

    mailbox.begin(1, np.full(3, 1.0))
    answer = in_thread(compute)
    rng = random.Random(5)
    messages = 0
    for iteration in range(2, 200):
        worker.encoder.begin()
        mailbox.begin(iteration, np.full(3, float(iteration)))
        unwanted, reported = rng.randrange(4), []
        for _ in range(rng.randrange(20)):
            mailbox.tell(WorkerState.discard, iteration, unwanted)
            for kind, when, chunk in heard():
                messages += 1
                if (kind, when) == (Kind.REPORT, iteration) and chunk != unwanted:
                    reported.append(chunk)
                    if combined:
                        mailbox.commit(iteration, chunk, (1,), 1)
        assert len(reported) == len(set(reported))
        mailbox.tell(WorkerState.share, iteration)
        if combined and reported:
            assert worker.sum() == [sum(iteration * 10 + chunk for chunk in reported)] * 3
        assert not held_chunks(worker.state)
    mailbox.stop()
    assert answer() == messages + len(list(heard()))
    assert not mixed
