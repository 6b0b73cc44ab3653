"""A worker of a script, without MPI: which sums and states reach its script, what it says, and what it gives away."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from psgc.aggregation.blocks import Sums
from psgc.backend import Backend
from psgc.errors import ModelError, UserError
from psgc.messages import Kind, SumsReader, digest_in, entries, record, sums_records
from psgc.run.ending import CalledOff
from psgc.run.inputs import Given
from psgc.torch import working
from psgc.torch.calls import Call
from psgc.torch.generators import Generators
from psgc.torch.hand_over import HandOver, ScriptState
from psgc.torch.memory import Memory
from psgc.torch.program import TorchProgram
from psgc.torch.serving import ScriptReplica, blob_of, vector_of
from psgc.torch.settings import settings_of
from psgc.torch.tensor_files import from_bytes
from psgc.torch.working import LAST_SUM, ScriptLoop, ScriptThread, ScriptWorker
from psgc.transport import Control
from psgc.workers.chunk_runner import ChunkRunner, Trial
from psgc.workers.emulation import Emulation
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.loop import Duties
from psgc.workers.mailbox import Mailbox
from psgc.workers.reports import SignsOfLife
from psgc.workers.state import WorkerState
from tests.simulation.network import Clock
from tests.unit.given_states import block_of, map_of, state_of
from tests.unit.scripted import Transport

CPU, CHUNKS = torch.device("cpu"), 2
TIMEOUT = 30.0  # seconds; only a defect takes as long
GIVEN = {"replication": 1, "chunks": CHUNKS, "micro_batch": 8, "buffers": "chunk"}


def computing(dim, hand_over, begins=lambda: None):
    """What computes the chunks of worker 1, which has all of them, and their mailbox."""
    encoder = Encoder(Backend(), np.ones((1, 1)), dim, np.float32)
    mailbox = Mailbox(WorkerState(1, range(CHUNKS), CHUNKS, combined=True), encoder)
    nothing, trial = Injector(), Trial(-1, None, frozenset())
    worker = ScriptWorker(dim, np.float32, hand_over, Memory(CPU), None, begins)
    worker.computing(mailbox, ChunkRunner(mailbox, Backend(), Emulation("none", 1, 0), nothing, trial))
    return worker, mailbox


def test_a_term_begins_for_the_script_when_its_loop_is_there():
    """A script that ends at once asks the loop whether rank 0 reports its error."""
    hand_over, begun_with = HandOver(0), []
    worker, mailbox = computing(3, hand_over, begins=lambda: begun_with.append(worker.current))
    transport, encoder = Transport(3), Encoder(Backend(), np.ones((2, 1)), 3, np.float32)
    duties = Duties(sums=Sums(np.ones((2, 1)), 3, np.dtype("float32"), 0, 99), alike=True, signs=SignsOfLife(1000.0))
    others = encoder, ScriptThread(5), Backend(), worker.own, Injector(), duties
    assert begun_with == [worker.loop(transport, mailbox, *others)]


class Rank:
    """Worker 1 of a run, which has all chunks, with batch normalisation whose statistics are known; it is in call 0.

    Its other thread asks for a state in each chunk, until it has one. Then the run ends.
    """

    rank, num_workers, num_chunks, iteration, record, state = 1, 1, CHUNKS, 0, None, None
    is_tried = False

    def __init__(self):
        self.model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
        with torch.no_grad():
            self.model[0].running_mean.fill_(5.0)
            self.model[0].num_batches_tracked.fill_(100)
        data = [(torch.randn(3), torch.randn(1)) for _ in range(64)]
        self.program = TorchProgram(self.model, data, self.loss, settings_of(GIVEN), None, None, Given("train.py"))
        self.program.run.begin(self)
        self.hand_over = HandOver(0, wake=self.ask, state=self.program.run.standing.state)
        self.replica = ScriptReplica(self.hand_over, np.float32, Backend())
        self.replica.start(0, np.empty(0))
        self.worker, self.mailbox = computing(self.program.dim, self.hand_over)
        self.is_in_chunks = False
        self.given, self.asked_in_chunks = None, 0

    def loss(self, model, batch):
        self.asked_in_chunks += 1
        thread = threading.Thread(target=self.ask)
        thread.start()
        thread.join()
        assert self.given is None
        x, y = batch
        return nn.functional.mse_loss(model(x), y, reduction="sum"), len(y)

    def ask(self):
        """The thread that does MPI looks whether there is a state."""
        if self.is_in_chunks and (snapshot := self.replica.snapshot()) is not None:
            self.given = from_bytes(blob_of(snapshot.vectors[0]), "the state")
            self.hand_over.stop(SystemExit(0))

    def sum(self, iteration, call):
        """As Session.sum; one chunk is done before there is a state."""
        self.hand_over.call(iteration, call.is_whole, call.signature)
        self.mailbox.begin(iteration, None)
        self.is_in_chunks = True
        self.worker.answer(call)
        raise SystemExit


def test_a_state_has_the_statistics_and_the_random_numbers_of_the_script_not_those_of_its_chunk():
    rank = Rank()
    optimizer = torch.optim.SGD(rank.model.parameters(), 0.1)
    rank.program.run.attach(optimizer)
    before = None
    try:
        for batch in rank.program.run.batches(64):
            before = Generators.now(CPU)
            torch.rand(1)  # a scale for the batch, for example
            rank.program.run.backward(batch)
    except SystemExit:
        pass
    assert rank.asked_in_chunks
    assert rank.given["model"]["0.running_mean"].tolist() == [5.0] * 3
    assert rank.given["model"]["0.num_batches_tracked"] == 100
    assert Generators.of(rank.given["psgc"]["random"]).contents() == before.contents()
    assert rank.model[0].running_mean.tolist() == [5.0] * 3


def call_of(vector, num_sums=0):
    """expected: the chunks that were said to come next."""
    expected = []
    call = Call(vector, expected.append, lambda _: None, 7.0, True, list, num_sums)
    return call, expected


@pytest.mark.parametrize("num_sums", [0, 2])
def test_chunks_are_reported_with_the_signature_of_their_call(num_sums):
    hand_over = HandOver(0)
    worker, mailbox = computing(3, hand_over)
    hand_over.call(0, True, 7.0)

    def vector(chunks, wanted):
        if chunks == (1,):
            hand_over.stop(CalledOff())
        return torch.tensor([0.5, *chunks]) if num_sums else torch.ones(3)

    call, expected = call_of(vector, num_sums)
    mailbox.begin(0, None)
    worker.answer(call)
    told = [entry for records in mailbox.outgoing() for entry in entries(records)]
    assert [entry["loss"] for entry in told if entry["kind"] == Kind.REPORT] == [7.0, 7.0]
    reader = SumsReader()
    assert [reader.read(entry) for entry in told if entry["kind"] == Kind.SUMS] == [(0.5, 0.0), (0.5, 1.0)][:num_sums]
    assert expected == [(1,)]


def test_a_script_may_be_asked_for_states_between_its_chunks_again_and_again():
    made = []

    def state():
        made.append(len(made))
        if len(made) == 3:
            hand_over.stop(CalledOff())
        return b"state"

    hand_over = HandOver(0, state=state)
    worker, mailbox = computing(3, hand_over)
    hand_over.call(0, True, 7.0)
    mailbox.begin(0, None)

    def vector(chunks, wanted):
        hand_over.state(0)  # the one that was made before is taken, another one is asked for
        hand_over.state(0)
        return torch.ones(3)

    hand_over.state(0)
    worker.answer(call_of(vector)[0])
    assert made == [0, 1, 2]


def test_errors_of_a_chunk_are_told_to_rank_0_and_an_exit_is_none():
    worker, _ = computing(3, HandOver(0))
    for kind in UserError, ModelError:
        error = kind("one line")
        assert worker.told(error) is error
    assert worker.told(KeyError(3)).startswith("KeyError: 3\n")
    for error in SystemExit(3), KeyboardInterrupt():
        with pytest.raises(type(error)):
            worker.told(error)


class Worker:
    """Worker 1 of two; the test is its script, which calls for iteration `first`. Rank 0 has all gradients.

    Its loop goes on, in a thread, while the test is in `turn`.
    """

    def __init__(self, first=0, digest=b""):
        self.transport = Transport(3)
        self.transport.rank, self.transport.wait = 1, self.rests
        self.turns, self.rest = threading.Semaphore(0), threading.Semaphore(0)
        self.hand_over = HandOver(first)
        replica = ScriptReplica(self.hand_over, np.float32, Backend())
        encoder = Encoder(Backend(), np.ones((2, 1)), 3, np.float32)
        mailbox = Mailbox(WorkerState(1, [0], 1, combined=False), encoder)
        sums = Sums(np.ones((2, 1)), 3, np.dtype("float32"), first, 99)
        duties = Duties(sums=sums, alike=True, signs=SignsOfLife(1000.0))
        arguments = self.transport, mailbox, encoder, ScriptThread(5), Backend(), replica, Injector(), duties
        self.loop = ScriptLoop(*arguments, hand_over=self.hand_over)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        assert self.rest.acquire(timeout=TIMEOUT)
        self.call(first, digest)

    def rests(self, *_, **__):
        self.rest.release()
        assert self.turns.acquire(timeout=TIMEOUT)
        return True

    def end(self):
        self.transport.arrived = [Control(0, record(Kind.STOP, -1)), Control(0, record(Kind.LEAVE))]
        self.turns.release(99)
        self.thread.join(TIMEOUT)

    def call(self, iteration, digest=b""):
        self.hand_over.call(iteration, True, 0.0, digest=digest)
        self.turn()

    def turn(self, *messages):
        self.transport.arrived = list(messages)
        self.turns.release()
        assert self.rest.acquire(timeout=TIMEOUT)

    def is_over(self):
        self.turn()
        self.turn()  # it says goodbye after the turn in which it stops
        return bool(self.said(Kind.GOODBYE))

    def summed(self, *iterations, ranks=3):
        """These are over: the entries of each sum say which it is. ranks: the first ones, which get it."""
        for iteration in iterations:
            begin, close = record(Kind.BEGIN, iteration), record(Kind.CLOSE, iteration, -1)
            self.turn(Control(0, begin), map_of(iteration, ranks, (0, 1, 0)), Control(0, close))
            if ranks > 1:
                self.turn(block_of(iteration, np.full(3, iteration, np.float32)))

    def said(self, kind):
        return [entry for one in self.transport.records[0] for entry in entries(one[None]) if entry["kind"] == kind]

    def sum(self):
        assert self.hand_over.is_answered()
        return self.hand_over.answer()[0]


@pytest.fixture
def begin():
    """Makes workers, and ends them."""
    workers = []
    yield lambda *arguments, **others: workers.append(Worker(*arguments, **others)) or workers[-1]
    for worker in workers:
        worker.end()


def test_a_script_gets_every_sum_in_order_to_write_to(begin):
    worker = begin()
    worker.summed(0, 1, 2)
    for iteration in range(3):
        assert worker.sum() == iteration
        worker.hand_over.answer()[:] = 7
        worker.call(iteration + 1)
    assert [entry["iteration"] for entry in worker.said(Kind.STEPPED)] == [1, 2, 3]
    assert not worker.said(Kind.BEHIND)


def test_an_evaluation_comes_as_numbers_and_is_a_step_like_others(begin):
    worker = begin()
    worker.summed(0)
    worker.turn(Control(0, record(Kind.BEGIN, 1)), Control(0, sums_records(1, -1, [1.5] * 7)))  # before it is there
    worker.call(1)
    assert worker.hand_over.answer().tolist() == [1.5] * 7
    worker.call(2)
    worker.summed(2)
    assert worker.sum() == 2
    assert [entry["iteration"] for entry in worker.said(Kind.STEPPED)] == [1, 2]


def test_a_script_that_is_left_out_says_so_and_goes_on_from_a_state(begin):
    worker = begin(first=5)
    worker.summed(5)
    worker.call(6)
    worker.summed(6, ranks=1)
    assert [entry["iteration"] for entry in worker.said(Kind.BEHIND)] == [6]
    assert not worker.hand_over.is_answered()
    worker.turn(*state_of(8, vector_of(b"the state of rank 0", np.dtype(np.float32))))
    assert worker.hand_over.answer() == ScriptState(8, b"the state of rank 0")
    worker.summed(8)
    worker.call(8)
    assert worker.sum() == 8
    assert len(worker.said(Kind.BEHIND)) == 1


def test_digests_are_told_where_ranks_are_compared(begin):
    digests = [b"how it begins...", b"sixteen of bytes", b""]
    worker = begin(4, digests[0])
    for iteration in (5, 6):
        worker.summed(iteration - 1)
        worker.call(iteration, digests[iteration - 4])
    told = [(entry["iteration"], digest_in(entry)) for entry in worker.said(Kind.STEPPED)]
    assert told == [(4, digests[0]), (5, digests[1]), (6, b"")]


def test_after_the_end_of_the_run_a_script_gets_the_last_sums(begin):
    worker = begin()
    worker.summed(0)
    worker.turn(Control(0, record(Kind.STOP, 2)))
    assert worker.loop.calls == 2
    assert not worker.is_over()
    worker.call(1)
    worker.summed(1)
    assert worker.is_over()


def test_a_script_that_cannot_have_the_last_sums_ends_with_the_run(begin):
    worker = begin()
    worker.summed(0, ranks=1)
    worker.turn(Control(0, record(Kind.STOP, 2)))
    with pytest.raises(CalledOff):
        worker.hand_over.answer()


def test_a_script_that_has_ended_is_not_waited_for(begin):
    worker = begin()
    worker.turn(Control(0, record(Kind.STOP, 3)))
    assert not worker.is_over()
    worker.hand_over.end()
    assert worker.is_over()


def test_a_worker_does_not_wait_for_ever_for_the_last_sums(begin, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(working, "time", clock)
    worker = begin()
    worker.turn(Control(0, record(Kind.STOP, 1)))
    clock.now += LAST_SUM
    worker.turn()
    assert not worker.is_over()
    clock.now += 1.0
    worker.turn()
    assert worker.is_over()


def test_after_a_run_that_failed_nothing_is_waited_for(begin):
    worker = begin()
    worker.turn(Control(0, record(Kind.STOP, -1)))
    assert worker.is_over()
    assert worker.loop.calls is None
