"""The trial of the first iteration: gradients of the same chunk must be the same, whoever computed them, and when."""

from math import inf, nan

import numpy as np
import pytest

from psgc.coding.sketch import sketch
from psgc.config import Coding
from psgc.errors import ModelError, RunFailed
from psgc.messages import Kind
from psgc.plan import make_plan
from psgc.server.trial import TrialComparison
from psgc.transport import Died, Text
from tests.unit.scripted import done, said
from tests.unit.scripted_run import SEED

WORKERS, CHUNKS = 3, 3
TRIED = {1: 1, 2: 2, 3: 0}  # each does the next one's own chunk
ONE, OTHER = sketch(np.array([1.0])), sketch(np.array([1.5]))


def told(worker, chunk, found, iteration=0):
    start, seconds, loss = found
    return said(worker, Kind.TRIAL, iteration, chunk, start=start, seconds=seconds, loss=loss)


@pytest.fixture
def train(make_run):
    """Runs so many iterations by a script of what arrives."""

    def follow(script, iterations=1, first=0):
        run = make_run(workers=WORKERS, chunks_per_worker=1, given={"tried": TRIED})
        run.follow(iter(script), iterations, first=first)
        return run

    return follow


PLAN = make_plan(Coding(chunks_per_worker=1, replication=2), "static", WORKERS, SEED)


def own(worker, iteration=0):
    return done(worker, iteration, PLAN.queues[worker][0], 1.0)


def for_worker_3():
    """Its chunk, done by another worker."""
    (chunk, *_) = PLAN.queues[3]
    (other,) = set(PLAN.holders()[chunk]) - {3}
    return done(other, 0, chunk, 1.0)


ALL_DONE = [[own(worker) for worker in range(1, WORKERS + 1)]]


def test_workers_that_agree_are_let_go_on(train):
    agree = [[told(worker, chunk, ONE) for worker, chunk in TRIED.items()], [told(1, 0, ONE)]]
    assert train([*agree, *ALL_DONE]).steps == 1


@pytest.mark.parametrize("when", ["before", "after the last chunk"])
def test_workers_that_differ_end_the_run_which_names_both(train, when):
    differ = [[told(1, 0, ONE)], [told(3, 0, OTHER)]]
    script = [*differ, *ALL_DONE] if when == "before" else [*ALL_DONE, *differ]
    expected = r"trial: chunk 0, iteration 0: the gradients of workers 1 on h1 and 3 on h3 differ by [0-9.e-]+ of"
    with pytest.raises(RunFailed, match=expected):
        train(script)


@pytest.mark.parametrize("first", [0, 5])
def test_the_run_does_not_end_before_the_trial_has(train, first):
    """Also one that goes on from a checkpoint."""
    tried = [[told(worker, chunk, ONE, first)] for worker, chunk in TRIED.items()]
    script = [[own(worker, first) for worker in TRIED], *tried[:2], [], tried[2]]
    assert train(script, first + 1, first).steps == first + 1
    with pytest.raises(AssertionError, match="the loop still waits"):
        train(script[:-1], first + 1, first)


def test_it_does_not_wait_for_the_lost(train):
    script = [*ALL_DONE, [told(1, 1, ONE), told(2, 2, ONE)], [Died(3)]]
    run = train(script)
    assert (run.steps, run.lost) == (1, {3: (0, "its process died")})


def test_it_does_not_wait_for_who_did_nothing_in_the_first_iteration(train):
    by_two = [[own(1), own(2), for_worker_3(), told(1, 1, ONE), told(2, 2, ONE)]]
    assert train(by_two).steps == 1


def test_a_chunk_that_does_not_exist_costs_only_the_worker_that_names_it(train):
    script = [[told(3, CHUNKS, ONE)], [own(1), own(2), for_worker_3()], [told(1, 1, ONE), told(2, 2, ONE)]]
    run = train(script)
    assert run.steps == 1
    assert "chunk 3" in run.lost[3][1]


def test_a_model_at_fault_on_every_worker_ends_the_run_at_once(train):
    script = [[Text(2, b"the gradient writes to params"), said(2, Kind.FAILED, 0, 1, attempt=1)]]
    with pytest.raises(ModelError, match=r"^worker 2 on h2, chunk 1, iteration 0: the gradient writes to params$"):
        train(script)


def test_the_tolerance_is_for_rounding():
    for tolerance, differs in ((inf, False), (1.0, False), (1e-9, True)):
        trial = TrialComparison({}, tolerance)
        trial.told(1, 0, 0, ONE)
        difference = trial.told(2, 0, 0, OTHER)
        assert bool(difference) == differs
        assert not differs or 0.1 < difference.relative < 1


def test_only_equal_chunks_of_the_first_iteration_of_the_run_are_compared():
    trial = TrialComparison({1: 4}, 1e-9, first=3)
    trial.reported(1, 4)
    assert trial.awaited == set()
    assert [trial.told(1, *what, s) for what, s in (((0, 0), ONE), ((0, 1), OTHER), ((1, 0), OTHER))] == [None] * 3


def test_a_gradient_that_could_not_be_had_is_not_compared():
    trial = TrialComparison({1: 4}, 1e-9)
    failed = (nan, nan, nan)
    assert [trial.told(worker, 0, 4, found) for worker, found in ((1, failed), (2, ONE), (3, failed))] == [None] * 3
    assert trial.told(4, 0, 4, OTHER)
