"""The server's loop without MPI: what it sends to whom, against a transport that only listens."""

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import Coding
from psgc.errors import RunFailed, UserError
from psgc.messages import BATCH, UNDER_WAY, UNHEARD, Kind, record
from psgc.plan import make_plan
from psgc.server import loop
from psgc.server.loop import AHEAD, Server
from psgc.server.optimizer import make_optimizer
from psgc.transport import Control, Text
from tests.unit.scripted import Transport, done, said

WORKERS = 4


@pytest.fixture
def server():
    observer = SimpleNamespace(lost=lambda *_: None)
    plan = make_plan(Coding(chunks_per_worker=2, replication=2), "static", WORKERS, 0)
    optimizer = make_optimizer("sgd", 0.5)
    server = Server(
        Transport(WORKERS + 1), plan, "static", Backend(), optimizer, observer, "float64", False, 30.0, True,
        lambda: None, None,
    )  # fmt: skip
    server._message = np.zeros(AHEAD)  # eight times AHEAD bytes
    server._length = 3
    server._unsent = dict.fromkeys(range(1, WORKERS + 1))
    return server


def test_who_does_not_take_what_was_sent_gets_nothing_new_until_it_does(server):
    transport = server._transport
    transport.on_the_way.update({1: 2 * server._message.nbytes, 2: 2 * server._message.nbytes - 1})
    server._send_params(7)
    assert transport.sent == [(2, 7), (3, 7), (4, 7)]
    server._send_params(7)
    assert len(transport.sent) == 3
    transport.on_the_way[1] -= 1
    server._send_params(7)
    assert transport.sent[3:] == [(1, 7)]


def test_small_parameters_are_sent_beside_orders_that_are_still_on_their_way(server):
    server._message = np.zeros(3)
    server._transport.on_the_way.update({1: AHEAD, 2: AHEAD - 1})
    server._send_params(7)
    assert server._transport.sent == [(2, 7), (3, 7), (4, 7)]


def test_who_is_lost_gets_no_parameters(server):
    server._transport.on_the_way[1] = 1 << 40
    server._send_params(7)
    server._lose(1, "not heard")
    server._transport.on_the_way.clear()
    server._send_params(7)
    assert 1 not in [dest for dest, _ in server._transport.sent]


def test_what_a_silent_worker_was_sending_takes_no_buffer_from_the_others(server):
    server._rollcall.asked(3, 0.0)
    server._clock.now = 40.0
    server._lose(1, "not heard")
    assert server._transport.posted == UNDER_WAY
    for worker in (2, 3, 4):
        server._rollcall.heard(worker, 69.0)
    assert server._rollcall.missing(69.0) == []  # who was held up has its time once more
    assert [worker for worker, _ in server._rollcall.missing(70.1)] == [3]


@pytest.mark.parametrize("how", ["dead", "failed"])
def test_a_worker_that_died_or_failed_holds_no_buffer(server, how):
    server._lose(1, "its process died", **{how: True})
    assert server._transport.posted == 0


def test_a_worker_that_is_lost_once_more_needs_no_more_buffers(server):
    server._lose(1, "not heard")
    server._rollcall.heard(1, 50.0)
    assert server._rollcall.welcome(50.0) == [1]
    server._coordinator.regroup(server._everybody.without([]), server._rules)
    server._lose(1, "not heard")
    assert server._transport.posted == UNDER_WAY


def test_who_is_not_heard_gets_so_many_messages_and_what_still_matters_once_it_is(server):
    transport = server._transport
    server._message = np.zeros(3)
    alive = record(Kind.ALIVE, chunk=-1)
    for iteration in range(UNHEARD):  # two messages each
        server._drop_old_orders()
        for worker in (1, 2):
            server._tell(worker, record(Kind.ADOPT if iteration == UNHEARD - 5 else Kind.SKIP, iteration, 0))
        server._unsent = dict.fromkeys((1, 2))
        transport.arrived = [Control(2, alive)]
        server._poll(iteration)
    got = [what for dest, what in transport.sent if dest == 1]
    assert len(got) == UNHEARD
    assert len([dest for dest, _ in transport.sent if dest == 2]) == 2 * UNHEARD
    transport.arrived = [Control(1, alive)]
    server._poll(UNHEARD - 1)
    assert [what for dest, what in transport.sent if dest == 1][UNHEARD:] == [["ADOPT", "SKIP"], UNHEARD - 1]


def test_orders_of_an_iteration_that_are_still_waiting_are_dropped_with_it(server):
    server.params, server._decoder = np.zeros(3), SimpleNamespace(begin=lambda: None)
    server._interrupted = lambda: "enough"
    server._unheard[1] = UNHEARD
    server._tell(1, record(Kind.SKIP, 3, 0))
    with pytest.raises(RunFailed, match="enough"):
        server._gradient(4)
    assert 1 not in server._outbox


def test_orders_that_take_several_messages_count_as_such(server):
    server._unsent = {}
    for _ in range(BATCH * UNHEARD):
        server._tell(1, record(Kind.SKIP, 0, 0))
    server._poll(0)
    server._tell(1, record(Kind.SKIP, 0, 0))
    server._poll(0)
    assert len(server._transport.sent) == 1


@pytest.mark.parametrize("how", [{}, {"dead": True}, {"failed": True}])
def test_who_may_come_back_does_not_miss_a_standing_queue_that_it_was_counted_for(server, how):
    server._unsent = {}
    server._unheard[1] = UNHEARD
    server._tell(1, record(Kind.SKIP, 3, 0))
    server._tell_list(1, Kind.STANDING, 3, [0, 1])
    server._send_outbox()
    server._lose(1, "not heard", **how)
    waiting = [] if how else [Kind.STANDING, Kind.STANDING]
    assert [entry["kind"][0] for entry in server._outbox.get(1, [])] == waiting


# failures


@pytest.fixture
def reasons(server):
    """Why which workers were lost."""
    server._observer = SimpleNamespace(
        lost=lambda worker, host, iteration, reason: found.__setitem__(worker, reason),
        failure_text=lambda worker, text: text or "no reason",
        chunk=lambda *_: None,
    )
    server._unsent = {}
    server._coordinator.begin(0)
    server._row.iteration = 0
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
        server._observer = SimpleNamespace(
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
        server._observer = SimpleNamespace(chunk=lambda *_: None, iteration=rows.append, stepped=lambda _: None)
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
    server._has_loss = False
    rows, _, reason = followed([float("nan")] * 2)
    assert reason == ""
    assert [row.loss for row in rows] == [None, None]


# wrong data


def test_data_that_is_wrong_for_everybody_ends_the_run(server):
    def wrong(chunk):
        raise UserError(f"data.npz: chunk {chunk} is wrong")

    server._check_data = wrong
    server._coordinator.begin(0)
    with pytest.raises(UserError, match=r"data\.npz: chunk 5 is wrong"):
        server._handle(said(1, Kind.FAILED, 0, 5))


def test_data_that_is_wrong_for_one_worker_only_is_the_workers(server):
    lost = []
    server._observer = SimpleNamespace(lost=lambda *what: lost.append(what), failure_text=lambda worker, text: text)
    server._coordinator.begin(0)
    server._handle(Text(1, b"data.npz: row 3, column 0 of X is nan"))
    server._handle(said(1, Kind.FAILED, 0, 5))
    assert [(worker, reason) for worker, _, _, reason in lost] == [
        (1, "chunk 5: data.npz: row 3, column 0 of X is nan")
    ]
