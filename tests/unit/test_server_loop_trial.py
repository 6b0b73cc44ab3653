"""The server's loop and the trial of the first iteration, against a transport without MPI."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.coding.sketch import sketch
from psgc.config import Coding
from psgc.errors import RunFailed
from psgc.messages import Kind
from psgc.plan import make_plan
from psgc.server.loop import Server
from psgc.server.optimizer import make_optimizer
from psgc.server.settings import ServerSettings
from psgc.server.trial import Trial
from psgc.transport import Died, Text
from tests.unit.scripted import Transport, done, said

WORKERS, CHUNKS = 3, 3
SETTINGS = ServerSettings(schedule="static", dtype="float64", combined=False, collect_timeout=30.0)
TRIED = {1: 1, 2: 2, 3: 0}  # each does the next one's own chunk
ONE, OTHER = sketch(np.array([1.0])), sketch(np.array([1.5]))


def told(worker, chunk, found, iteration=0):
    start, seconds, loss = found
    return said(worker, Kind.TRIAL, iteration, chunk, start=start, seconds=seconds, loss=loss)


@pytest.fixture
def train():
    """Runs so many iterations by a script of what arrives, and gives back what was recorded."""

    def run(script, iterations=1):
        seen = Counter()
        observer = SimpleNamespace(
            chunk=lambda *_: None,
            iteration=lambda row: None,
            stepped=lambda done: seen.update(steps=1),
            lost=lambda worker, host, iteration, reason: seen.update([reason]),
            failure_text=lambda worker, text: text,
        )
        plan = make_plan(Coding(chunks_per_worker=1, replication=2), "static", WORKERS, 0)
        transport, optimizer = Transport(WORKERS + 1, iter(script)), make_optimizer("sgd", 0.5)
        server = Server(transport, plan, Backend(), optimizer, observer, SETTINGS, trial=Trial(TRIED, 1e-9))
        server.run(np.zeros(1), iterations)
        return seen

    return run


def own(worker, iteration=0):
    plan = make_plan(Coding(chunks_per_worker=1, replication=2), "static", WORKERS, 0)
    return done(worker, iteration, plan.queues[worker][0], 1.0)


ALL_DONE = [[own(worker) for worker in range(1, WORKERS + 1)]]


def test_workers_that_agree_are_let_go_on(train):
    agree = [[told(worker, chunk, ONE) for worker, chunk in TRIED.items()], [told(1, 0, ONE)]]
    assert train([*agree, *ALL_DONE]) == {"steps": 1}


@pytest.mark.parametrize("when", ["before", "after the last chunk"])
def test_workers_that_differ_end_the_run_which_names_both(train, when):
    differ = [[told(1, 0, ONE)], [told(3, 0, OTHER)]]
    script = [*differ, *ALL_DONE] if when == "before" else [*ALL_DONE, *differ]
    expected = r"trial: chunk 0, iteration 0: the gradients of workers 1 on h1 and 3 on h3 differ by [0-9.e-]+ of"
    with pytest.raises(RunFailed, match=expected):
        train(script)


def test_the_run_does_not_end_before_the_trial_has(train):
    script = [*ALL_DONE, [told(1, 1, ONE)], [told(2, 2, ONE)], [], [told(3, 0, ONE)]]
    assert train(script) == {"steps": 1}
    with pytest.raises(AssertionError, match="the loop still waits"):
        train(script[:-1])


def test_it_does_not_wait_for_the_lost(train):
    script = [*ALL_DONE, [told(1, 1, ONE), told(2, 2, ONE)], [Died(3)]]
    assert train(script) == {"steps": 1, "its process died": 1}


def test_it_does_not_wait_for_who_did_nothing_in_the_first_iteration(train):
    by_two = [[own(1), own(2), done(1, 0, TRIED[2], 1.0), told(1, 1, ONE), told(2, 2, ONE)]]
    assert train(by_two) == {"steps": 1}


def test_a_chunk_that_does_not_exist_costs_only_the_worker_that_names_it(train):
    script = [[told(3, CHUNKS, ONE)], [own(1), own(2), done(1, 0, TRIED[2], 1.0)], [told(1, 1, ONE), told(2, 2, ONE)]]
    seen = train(script)
    assert seen["steps"] == 1
    assert [reason for reason in seen if "chunk 3" in reason]


def test_a_model_at_fault_on_every_worker_ends_the_run_at_once(train):
    script = [[Text(2, b"the gradient writes to params"), said(2, Kind.FAILED, 0, 1, attempt=1)]]
    with pytest.raises(RunFailed, match=r"^worker 2 on h2, chunk 1, iteration 0: the gradient writes to params$"):
        train(script)
