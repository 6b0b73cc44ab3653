"""The server's step: it is made to its end, whatever happens meanwhile."""

from dataclasses import replace

import numpy as np
import pytest

from psgc.aggregation.replica import Replica
from psgc.errors import RunFailed
from psgc.messages import Kind
from psgc.vectors import BlockName, pack_block
from tests.unit.given_states import block_of
from tests.unit.scripted import done, said
from tests.unit.scripted_run import WORKERS

CHUNKS = 2 * WORKERS


def everything(gradient, iteration=0):
    return [done(2, iteration, chunk, gradient) for chunk in range(CHUNKS)]


@pytest.mark.parametrize("where", ["wait", "poll"])
def test_a_run_that_is_stopped_during_a_step_has_made_it(make_run, where, monkeypatch):
    """Before the poll that finds it made, or in that one."""
    reasons, looks, look = ["stopped by SIGTERM"], iter([False]), Replica.poll

    def is_closed():
        return any(entry["kind"] == Kind.CLOSE for entry in run.transport.records[1])

    def interrupted():
        return reasons.pop() if where == "poll" and is_closed() else None

    def wait(*_, **__):
        if where == "wait" and is_closed():
            raise RunFailed(reasons.pop())

    def made(replica, wait=False):
        return (wait or not replica.is_stepping or next(looks, True)) and look(replica, wait)

    monkeypatch.setattr(Replica, "poll", made)  # not at the first look
    run = make_run(replication=WORKERS, given={"interrupted": interrupted})
    run.transport.wait = wait
    with pytest.raises(RunFailed, match="stopped by SIGTERM"):
        run.follow(iter([everything(1.0), []]), 1)
    assert (run.steps, run.server.params.tolist()) == (1, [-0.5 * CHUNKS])


def test_after_a_short_step_the_end_of_an_iteration_goes_with_the_beginning_of_the_next(make_run):
    run = make_run(replication=WORKERS)
    run.follow(iter([everything(1.0), everything(1.0, 1), []]), 2)
    told = [kinds for dest, kinds in run.transport.sent if dest == 2 and isinstance(kinds, list)]
    assert ["MAP", "CLOSE", "BEGIN"] in told
    assert told[-1] == ["MAP", "CLOSE"]  # nothing follows the last one


def test_workers_are_woken_once_for_the_sum_and_the_next_iteration(make_run):
    run = make_run("uncoded", workers=2, chunks_per_worker=1, combined=True)
    woken = run.transport.woken

    def script():
        for iteration in (0, 1):
            yield [said(worker, Kind.REPORT, iteration, run.plan.queues[worker][0]) for worker in (1, 2)]
            before = len(woken)
            name = [pack_block(BlockName(0, 0, role, 0)) for role in (0, 1, 2)]
            yield [replace(block_of(iteration, np.ones(1)), source=worker, chunk=name[worker]) for worker in (1, 2)]
            if not iteration:
                yield []
                assert woken[before:] == [{1, 2}]

    run.follow(script(), 2)


def test_a_step_that_cannot_be_made_ends_the_run(make_run):
    run = make_run(replication=WORKERS)
    with pytest.raises(RunFailed, match="makes parameters NaN or infinite"), np.errstate(over="ignore"):
        run.follow(iter([everything(1e308), []]), 1)
    assert (run.steps, run.server.params.tolist()) == (0, [0.0])
