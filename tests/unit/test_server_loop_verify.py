"""Whole runs of the server's loop in which copies are compared (`verify`), against a script."""

from psgc.config import Verify
from psgc.messages import Kind
from psgc.server.failure_detector import CHANCES
from tests.unit.scripted import done, said
from tests.unit.scripted_run import WORKERS

CHUNKS = 2 * WORKERS


def copies(run, iteration, wrong=(), without=None):
    """Every holder does all of its chunks; wrong: (worker, chunk) of copies that are."""
    return [
        done(worker, iteration, chunk, 5.0 if (worker, chunk) in wrong else 1.0)
        for chunk, holders in enumerate(run.plan.holders())
        for worker in holders
        if worker != without
    ]


def test_a_copy_that_does_not_agree_is_named_and_the_others_count(make_run):
    run = make_run(replication=3, verify=Verify(every=1, strikes=2))
    one, *others = run.plan.holders()[0]
    run.follow(iter([copies(run, 0, wrong=[(one, 0)])]), 1)
    reason = f"chunk 0: its copy does not agree with those of workers {', '.join(map(str, sorted(others)))}"
    assert run.wrong == [(one, f"h{one}", 0, reason)]
    assert run.server.params == [-0.5 * CHUNKS]
    assert run.lost == {}


def test_copies_that_differ_by_less_than_the_tolerance_agree(make_run):
    run = make_run(replication=3, verify=Verify(every=1, tolerance=10.0))
    run.follow(iter([copies(run, 0, wrong=[(run.plan.holders()[0][0], 0)])]), 1)
    assert run.wrong == []


def test_a_worker_with_too_many_wrong_copies_is_lost_for_good(make_run):
    run = make_run(replication=WORKERS, verify=Verify(every=1, strikes=2))
    alive = said(1, Kind.ALIVE, chunk=-1)
    script = [copies(run, 0, wrong=[(1, 0), (1, 1)]), [alive, *copies(run, 1, without=1)], copies(run, 2, without=1)]
    run.follow(iter(script), 3)
    assert run.lost == {1: (0, "its copies were wrong 2 times (verify.strikes); it does not come back")}
    assert run.returned == []


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
        assert run.server.cluster.membership.holders == run.plan.holders()
        orders = run.transport.records[new_holder]
        assert not any(order["kind"] == Kind.DEFAULT_QUEUE for order in orders)  # it is the same
        yield copies(run, 1)

    run.follow(script(), 2)
    assert run.lost == {}


def test_wrong_copies_that_are_found_in_time_are_strikes_and_count_for_nothing_else(make_run):
    """With `verify: {idle: true}` their worker is lost until the next iteration, more often than others may be."""
    run, often = make_run(replication=WORKERS, verify=Verify(every=100, strikes=10)), CHANCES + 2

    def script():
        for iteration in range(often):
            run.server._dispatcher.wrong(1, 0, (2,), "taken out", 0)
            yield [said(1, Kind.ALIVE, chunk=-1), *copies(run, iteration, without=1)]

    run.follow(script(), often)
    assert run.returned == [(1, iteration) for iteration in range(1, often)]
