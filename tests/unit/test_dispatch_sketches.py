"""Whole runs of the server's loop with `verify` and `combined`: sketches that workers send are what it compares."""

import numpy as np
import pytest

from psgc.coding.sketch import sketch
from psgc.config import Verify
from psgc.messages import Kind
from tests.unit.scripted import said


@pytest.fixture
def ordered(make_run):
    """Who is ordered what of chunk 0 in iteration 0, which does not end, and the run."""

    def follow(*arrivals):
        run = make_run(workers=3, chunks_per_worker=1, replication=3, combined=True, verify=Verify(every=1))
        with pytest.raises(AssertionError, match="the loop still waits"):
            run.follow(iter([[arrival] for arrival in arrivals] + [[]]), 1)
        waiting = run.server.links.outbox.orders  # with a short gradient a commit waits for other orders
        told = {
            worker: [*sent, *(e for _, records in waiting.get(worker, ()) for e in records)]
            for worker, sent in run.transport.records.items()
        }
        orders = [(worker, Kind(e["kind"]).name) for worker, entries in told.items() for e in entries]
        return [order for order in orders if order[1] in ("COMMIT", "DISCARD", "NEXT")], run

    return follow


def sketched(worker, value, iteration=0, chunk=0):
    start, seconds, loss = sketch(np.full(3, value))
    return said(worker, Kind.SKETCH, iteration, chunk, start=start, seconds=seconds, loss=loss)


def report(worker):
    return said(worker, Kind.REPORT, 0, 0)


@pytest.mark.parametrize("first", [1.0, 1.0 + 1e-12])
def test_copies_whose_sketches_agree_count(ordered, first):
    orders, run = ordered(sketched(1, first), report(1), sketched(3, 1.0), report(3))
    assert orders == [(1, "COMMIT"), (3, "DISCARD")]
    assert (run.wrong, run.lost) == ([], {})


def test_the_odd_one_is_named(ordered):
    copies = [(sketched(worker, value), report(worker)) for worker, value in ((1, 1.0), (2, 2.0), (3, 2.0))]
    orders, run = ordered(*[arrival for copy in copies for arrival in copy])
    assert [worker for worker, *_ in run.wrong] == [1]
    assert orders == [(1, "DISCARD"), (2, "COMMIT"), (3, "NEXT"), (3, "DISCARD")]


@pytest.mark.parametrize("before", [[], [sketched(1, 1.0, chunk=1)]])
def test_a_worker_that_sends_no_sketch_before_its_report_is_lost(ordered, before):
    _, run = ordered(*before, report(1))
    assert run.lost == {1: (0, "it sent a report of chunk 0 without its sketch; it does not come back")}
