"""The server's loop without MPI: what it sends to whom, against a transport that only listens."""

from itertools import count, repeat
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import Coding
from psgc.errors import RunFailed, UserError
from psgc.messages import UNDER_WAY, Kind, record
from psgc.plan import make_plan
from psgc.server import loop
from psgc.server.events import Begin
from psgc.server.iteration_log import IterationLog
from psgc.server.loop import Server
from psgc.server.optimizer import make_optimizer
from psgc.server.settings import ServerSettings
from psgc.transport import Control, Text
from tests.unit.scripted import Transport, done, said

WORKERS = 4


@pytest.fixture
def server():
    observer = SimpleNamespace(lost=lambda *_: None)
    plan = make_plan(Coding(chunks_per_worker=2, replication=2), "static", WORKERS, 0)
    optimizer = make_optimizer("sgd", 0.5)
    settings = ServerSettings(schedule="static", dtype="float64", combined=False, collect_timeout=30.0)
    return Server(Transport(WORKERS + 1), plan, Backend(), optimizer, observer, settings)


def test_what_a_silent_worker_was_sending_takes_no_buffer_from_the_others(server):
    server._failure_detector.asked(3, 0.0)
    server._clock.now = 40.0
    server._lose(1, "not heard")
    assert server._transport.posted == UNDER_WAY
    for worker in (2, 3, 4):
        server._failure_detector.heard(worker, 69.0)
    assert server._failure_detector.missing(69.0) == []  # who was held up has its time once more
    assert [worker for worker, _ in server._failure_detector.missing(70.1)] == [3]


@pytest.mark.parametrize("how", ["dead", "failed"])
def test_a_worker_that_died_or_failed_holds_no_buffer(server, how):
    server._lose(1, "its process died", **{how: True})
    assert server._transport.posted == 0


def test_a_worker_that_is_lost_once_more_needs_no_more_buffers(server):
    server._lose(1, "not heard")
    server._failure_detector.heard(1, 50.0)
    assert server._failure_detector.welcome(50.0) == [1]
    server._coordinator.rebalance(server._everybody.without([]), server._rules)
    server._lose(1, "not heard")
    assert server._transport.posted == UNDER_WAY


# failures


@pytest.fixture
def reasons(server):
    """Why which workers were lost."""
    vars(server._observer).update(
        lost=lambda worker, host, iteration, reason: found.__setitem__(worker, reason),
        failure_text=lambda worker, text: text or "no reason",
        chunk=lambda *_: None,
    )
    server._coordinator.handle(Begin(0))
    server._log.begin(0, 0)
    server._decoder = SimpleNamespace(hold=lambda *_: None, commit=lambda *_: None, message_length=3)
    found = {}
    return found


def hear(server, *messages):
    server._transport.arrived = list(messages)
    server._poll(0)


def test_the_reason_of_a_failure_is_what_was_sent_before_it_in_pieces(server, reasons):
    hear(server, Text(1, b"it ra"), Text(2, b"another"), Text(1, b"ises"), Control(1, record(Kind.FAILED, 0, 0)))
    assert reasons == {1: "chunk 0: it raises"}


def test_a_failure_without_a_text_is_not_waited_for(server, reasons):
    hear(server, Control(1, record(Kind.FAILED, 0, 0)))  # the transport here has no way to wait
    assert reasons == {1: "chunk 0: no reason"}


def test_a_second_failure_of_a_chunk_ends_the_run_unless_somebody_has_done_it_since(server, reasons):
    holders = server._plan.holders()
    first, second = holders[0]
    hear(server, Control(first, record(Kind.FAILED, 0, 0)))
    hear(server, done(second, 0, 0, np.ones(3)))
    third = next(worker for worker in range(1, WORKERS + 1) if worker not in holders[0])
    hear(server, Control(third, record(Kind.FAILED, 0, 0)))
    assert reasons.keys() == {first, third}
    with pytest.raises(RunFailed, match=f"as before on worker {third}"):
        hear(server, Control(second, record(Kind.FAILED, 0, 0)))


# the record


def chunk_by_chunk(plan, events):
    """Each chunk is done in a poll of its own; in every iteration the first poll finds nothing."""
    for iteration in count():
        yield []
        for chunk, holders in enumerate(plan.holders()):
            events.append(f"chunk of {iteration}")
            yield [done(holders[0], iteration, chunk, 1.0)]


@pytest.fixture
def trained(server, monkeypatch):
    """What happens in what order in a run of so many iterations, at a time when `interrupted` says nothing."""

    def run(settled, iterations, interrupted=lambda: None):
        events = []
        monkeypatch.setattr(loop, "SETTLED", settled)
        server._transport.script, server._interrupted = chunk_by_chunk(server._plan, events), interrupted
        vars(server._observer).update(
            chunk=lambda *_: None,
            iteration=lambda row: events.append(f"row {row.iteration}, {row.redundant} redundant"),
            stepped=lambda done: events.append(f"step {done}"),
        )
        try:
            server.run(np.zeros(1), iterations)
        except RunFailed as error:
            events.append(str(error))
        return events

    return run


@pytest.mark.parametrize("settled", [60, -1])
def test_a_row_is_written_when_the_workers_have_begun_the_next_iteration(trained, settled):
    first, second = ["chunk of 0"] * 2 * WORKERS, ["chunk of 1"] * 2 * WORKERS
    # once one of them has done something, or some time has passed
    second.insert(1 if settled > 0 else 0, "row 0, 0 redundant")
    assert trained(settled, 2) == [*first, "step 1", *second, "step 2", "row 1, 0 redundant"]


def test_a_run_that_ends_early_has_the_row_of_the_last_whole_iteration(trained):
    told = iter([None] * (2 * WORKERS + 1))
    events = trained(60, 2, lambda: next(told, "asked to stop"))
    assert events[-3:] == ["step 1", "row 0, 0 redundant", "asked to stop"]


# the loss


def losses_of(plan, losses):
    """An iteration in which chunk 1 has the loss that is given, and every other one 1."""
    for iteration, loss in enumerate(losses):
        yield []
        for chunk, holders in enumerate(plan.holders()):
            yield [done(holders[0], iteration, chunk, 1.0, loss=loss if chunk == 1 else 1.0)]


@pytest.fixture
def followed(server):
    """The rows of a run in which chunk 1 has these losses, the parameters at its end, and why it failed."""

    def run(losses):
        rows = []
        server._transport.script = losses_of(server._plan, losses)
        vars(server._observer).update(chunk=lambda *_: None, iteration=rows.append, stepped=lambda _: None)
        try:
            server.run(np.zeros(1), len(losses))
        except RunFailed as error:
            return rows, server.params, str(error)
        return rows, server.params, ""

    return run


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(followed, loss):
    rows, params, reason = followed([1.0, 1.0, float(loss), 1.0])
    assert reason.startswith(f"the loss of iteration 2 is {loss} (that of chunk 1 is {loss}); ")
    assert [row.iteration for row in rows] == [0, 1, 2]
    assert repr(rows[-1].loss) == loss
    assert params == [-2 * 0.5 * 2 * WORKERS]  # two steps


def test_a_problem_without_a_loss_has_none_in_its_rows(server, followed):
    server._log = IterationLog(server._observer, server._plan.num_chunks, has_loss=False)
    rows, _, reason = followed([float("nan")] * 2)
    assert reason == ""
    assert [row.loss for row in rows] == [None, None]


# wrong data


def test_data_that_is_wrong_for_everybody_ends_the_run(server):
    def wrong(chunk):
        raise UserError(f"data.npz: chunk {chunk} is wrong")

    server._check_data = wrong
    server._coordinator.handle(Begin(0))
    with pytest.raises(UserError, match=r"data\.npz: chunk 5 is wrong"):
        server._handle(said(1, Kind.FAILED, 0, 5))


def test_data_that_is_wrong_for_one_worker_only_is_the_workers(server):
    lost = []
    vars(server._observer).update(lost=lambda *what: lost.append(what), failure_text=lambda worker, text: text)
    server._coordinator.handle(Begin(0))
    server._handle(Text(1, b"data.npz: row 3, column 0 of X is nan"))
    server._handle(said(1, Kind.FAILED, 0, 5))
    assert [(worker, reason) for worker, _, _, reason in lost] == [
        (1, "chunk 5: data.npz: row 3, column 0 of X is nan")
    ]


# the end


def test_an_error_before_the_first_iteration_is_not_hidden_by_the_end_of_the_run(server, monkeypatch):
    """The server has no room for its own vectors: it can still have the workers stop."""

    def no_memory(*_):
        raise MemoryError("no room for the gradient")

    params = np.zeros(3)
    monkeypatch.setattr(loop.Decoder, "__init__", no_memory)
    with pytest.raises(MemoryError, match="no room for the gradient"):
        server.run(params, 1)
    server._transport.script = repeat([said(worker, Kind.GOODBYE) for worker in range(1, WORKERS + 1)])
    assert server.stop_workers(1.0)
