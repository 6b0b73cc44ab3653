"""Whole runs of the server's loop in which copies are compared (`verify`), against a script."""

import numpy as np
import pytest

from psgc.checks import is_checked
from psgc.config import Verify
from psgc.messages import Kind
from psgc.transport import Vector
from tests.unit.scripted import done, said
from tests.unit.scripted_run import WORKERS, approximate

CHUNKS = 2 * WORKERS
COMBINED = pytest.mark.parametrize("combined", [True, False], ids=["combined", "per_chunk"])


def copies(run, iteration, wrong=(), without=None):
    """Every holder does all of its chunks; wrong: (worker, chunk) of copies that are."""
    return [
        done(worker, iteration, chunk, 5.0 if (worker, chunk) in wrong else 1.0)
        for chunk, holders in enumerate(run.plan.holders())
        for worker in holders
        if worker != without
    ]


@COMBINED
def test_a_copy_that_does_not_agree_is_named_and_the_others_count(make_run, combined):
    run = make_run(replication=3, combined=combined, verify=Verify(every=1, strikes=2))
    one, *others = run.plan.holders()[0]
    run.follow(iter([copies(run, 0, wrong=[(one, 0)])]), 1)
    reason = f"chunk 0: its copy does not agree with those of workers {', '.join(map(str, sorted(others)))}"
    assert run.wrong == [(one, f"h{one}", 0, reason)]
    assert run.server.params == [-0.5 * CHUNKS]
    assert run.lost == {}


@COMBINED
def test_a_worker_with_too_many_wrong_copies_is_lost_for_good(make_run, combined):
    run = make_run(replication=WORKERS, combined=combined, verify=Verify(every=1, strikes=2))
    alive = said(1, Kind.ALIVE, chunk=-1)
    script = [copies(run, 0, wrong=[(1, 0), (1, 1)]), [alive, *copies(run, 1, without=1)], copies(run, 2, without=1)]
    run.follow(iter(script), 3)
    assert run.lost == {1: (0, "its copies were wrong 2 times (verify.strikes)")}
    assert run.returned == []


def test_accumulators_have_their_place_after_the_chunks(make_run):
    every = 100  # chunk 0 is checked in iteration 0, and no other
    run = make_run(replication=WORKERS, combined=True, verify=Verify(every=every))

    def script():
        yield [done(worker, 0, 0, 1.0) for worker in (1, 2)]
        yield [said(3, Kind.REPORT, 0, chunk, seconds=1.0, loss=1.0) for chunk in range(1, CHUNKS)]
        yield [Vector(3, 0, CHUNKS + 3, np.array([CHUNKS - 1.0]), 1)]

    run.follow(script(), 1)
    assert run.server.params == [-0.5 * CHUNKS]


def test_a_disputed_chunk_that_is_left_out_is_not_in_the_gradient(make_run):
    """Unchecked, it was committed to the first copy; the second did not agree, and the deadline came."""
    run = make_run(replication=3, verify=Verify(every=100), recovery=approximate(deadline=5.0))
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
    run = make_run(verify=Verify(every=1))
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
        assert not any(
            order["kind"] == Kind.DEFAULT_QUEUE for order in run.transport.records[new_holder]
        )  # it is the same
        yield copies(run, 1)

    run.follow(script(), 2)
    assert run.lost == {}
