"""The server's step: it is made to its end, whatever happens meanwhile."""

import numpy as np
import pytest

from psgc.errors import RunFailed
from psgc.messages import Kind
from tests.unit.scripted import done
from tests.unit.scripted_run import WORKERS

CHUNKS = 2 * WORKERS


def everything(gradient):
    return [done(2, 0, chunk, gradient) for chunk in range(CHUNKS)]


@pytest.mark.parametrize("where", ["wait", "poll"])
def test_a_run_that_is_stopped_during_a_step_has_made_it(make_run, where):
    """Before the poll that finds it made, or in that one."""
    reasons = ["stopped by SIGTERM"]

    def is_closed():
        return any(entry["kind"] == Kind.CLOSE for entry in run.transport.records[1])

    def interrupted():
        return reasons.pop() if where == "poll" and is_closed() else None

    def wait(*_, **__):
        if where == "wait" and is_closed():
            raise RunFailed(reasons.pop())

    run = make_run(replication=WORKERS, given={"interrupted": interrupted})
    run.transport.wait = wait
    with pytest.raises(RunFailed, match="stopped by SIGTERM"):
        run.follow(iter([everything(1.0), []]), 1)
    assert (run.steps, run.server.params.tolist()) == (1, [-0.5 * CHUNKS])


def test_a_step_that_cannot_be_made_ends_the_run(make_run):
    run = make_run(replication=WORKERS)
    with pytest.raises(RunFailed, match="makes parameters NaN or infinite"), np.errstate(over="ignore"):
        run.follow(iter([everything(1e308), []]), 1)
    assert (run.steps, run.server.params.tolist()) == (0, [0.0])
