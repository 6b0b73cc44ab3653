"""The server's loop when copies are compared: what it makes of instructions, against a transport that only listens."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.checks import is_checked
from psgc.config import Coding
from psgc.messages import TAIL, Kind
from psgc.plan import make_plan
from psgc.server.events import Begin
from psgc.server.optimizer import make_optimizer
from psgc.server.recovery import Recovery
from psgc.server.settings import ServerSettings
from psgc.server.verification import Verification
from psgc.server.verifying_loop import VerifyingServer
from psgc.transport import Vector
from tests.unit.scripted import Transport, done

WORKERS, CHUNKS, DIM = 4, 8, 3


@pytest.fixture(params=[True, False], ids=["combined", "per_chunk"])
def server(request):
    said = []
    observer = SimpleNamespace(wrong=lambda *what: said.append(what), lost=lambda *what: said.append(what))
    plan = make_plan(Coding(chunks_per_worker=2, replication=3), "static", WORKERS, 0)
    settings = ServerSettings(
        schedule="static", dtype="float64", combined=request.param, collect_timeout=30.0,
        verification=Verification(1, 1e-9, 2),
    )  # fmt: skip
    optimizer = make_optimizer("sgd", 0.5)
    server = VerifyingServer(Transport(WORKERS + 1), plan, Backend(), optimizer, observer, settings)
    server.said, server.holders = said, plan.holders()
    server._decoder = server._make_decoder(DIM)
    server._length = DIM + TAIL
    server._log.begin(0, 0)
    server._decoder.begin()
    server._coordinator.handle(Begin(0))
    return server


def arrives(server, worker, chunk, value):
    vector = np.concatenate([np.full(DIM, value), [0.0, 1.0, 7.0]])
    server._handle_vector(Vector(worker, 0, chunk, np.concatenate([vector, [99.0]]), len(vector)))


def test_whose_copy_does_not_fit_is_named_and_the_others_count(server):
    chunk = 0
    one, two, three = server.holders[chunk]
    arrives(server, one, chunk, 5.0)
    arrives(server, two, chunk, 1.0)
    assert server.said == []
    arrives(server, three, chunk, 1.0)
    others = ", ".join(map(str, sorted([two, three])))
    reason = f"chunk 0: its copy does not agree with those of workers {others}"
    assert server.said == [(one, f"h{one}", 0, reason)]
    assert server._decoder.gradient.tolist() == [1.0] * DIM
    server._check()
    assert one in server._coordinator.membership.live


def test_who_is_in_the_wrong_too_often_is_lost_for_good(server):
    wrong = 1
    chunks = [chunk for chunk, of in enumerate(server.holders) if wrong in of][:2]
    for chunk in chunks:
        for worker in server.holders[chunk]:
            arrives(server, worker, chunk, 5.0 if worker == wrong else 1.0)
    server._check()
    assert wrong not in server._coordinator.membership.live
    assert server.said[-1] == (wrong, "h1", 0, "its copies were wrong 2 times (verify.strikes)")
    server._failure_detector.heard(wrong, 1.0)
    assert server._failure_detector.welcome(1.0) == []
    server._check()
    assert len(server.said) == 3  # once


def test_accumulators_have_their_place_after_the_chunks(server):
    heard = []
    server._handle_accumulator = lambda worker, iteration, role, vector: heard.append((worker, role, vector.tolist()))
    server._handle_vector(Vector(2, 0, CHUNKS + 3, np.array([1.0, 2.0, 3.0, 99.0]), 3))
    assert heard == [(2, 3, [1.0, 2.0, 3.0])]


# whole runs


def test_a_disputed_chunk_that_is_left_out_is_not_in_the_gradient(make_run):
    """Unchecked, it was committed to the first copy; the second did not agree, and the deadline came."""
    run = make_run("static", Recovery(deadline=5.0), replication=3, verification=Verification(100, 1e-9))
    chunk = next(chunk for chunk in range(CHUNKS) if not is_checked(chunk, 0, 100))
    holders = run.plan.holders()

    def script():
        yield [done(of[0], 0, c, 1.0) for c, of in enumerate(holders) if c == chunk or not is_checked(c, 0, 100)][:-1]
        yield [done(holders[chunk][1], 0, chunk, 7.0)]
        run.clock.now += 6.0
        yield []

    run.follow(script(), 1)
    (row,), (approximation,) = run.rows, run.gradient_error
    assert chunk in approximation.incomplete
    assert approximation.used == pytest.approx([CHUNKS - row.missing])


def test_a_chunk_that_was_reassigned_to_settle_a_dispute_goes_back_before_the_next_iteration(make_run):
    run = make_run("static", replication=2, verification=Verification(1, 1e-9))
    (one, two), *others = run.plan.holders()

    def script():
        for worker, value in ((one, 1.0), (two, 2.0)):
            yield [done(worker, 0, 0, value)]
        yield []
        (new_holder,) = (
            w for w in range(1, WORKERS + 1) if any(e["kind"] == Kind.REASSIGN for e in run.transport.records[w])
        )
        assert new_holder not in (one, two)
        yield [done(new_holder, 0, 0, 2.0)]
        yield [done(worker, 0, chunk, 1.0) for chunk, of in enumerate(others, start=1) for worker in of]
        yield []
        assert run.transport.queue(new_holder) == run.plan.queues[new_holder]
        yield [done(worker, 1, chunk, 1.0) for chunk, of in enumerate(run.plan.holders()) for worker in of]

    run.follow(script(), 2)
    assert run.lost == {}
