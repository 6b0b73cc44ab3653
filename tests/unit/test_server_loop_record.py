"""Whole runs of the server's loop against a script: what is written down of them."""

import numpy as np
import pytest

from psgc.config import Evaluate
from psgc.iteration import is_evaluated
from psgc.messages import Kind
from psgc.run_rows import Outcome
from psgc.server.recovery import LOOKED_BACK
from psgc.transport import Died
from tests.unit.scripted import done, said
from tests.unit.scripted_run import WORKERS, approximate


def test_what_became_of_each_chunk_that_was_worked_on(make_run):
    run = make_run(replication=WORKERS)

    def script():
        yield [done(1, 0, chunk, 1.0) for chunk in range(7)]
        yield [done(2, 0, 0, 1.0), done(3, 0, 1, 1.0), said(4, Kind.ABANDONED, 0, 2), Died(3)]
        yield [done(1, 0, 7, 1.0)]
        # when iteration 0 is over: a copy, a pass, and a copy that was not sent any more
        yield [done(2, 0, 1, 1.0), said(4, Kind.ABANDONED, 0, 3), said(2, Kind.REPORT, 0, 2)]
        yield [done(2, 1, chunk, 1.0) for chunk in range(8)]

    run.follow(script(), 2)
    outcomes = {
        (worker, chunk): outcome for (worker, chunk, iteration), outcome in run.outcomes.items() if iteration == 0
    }
    used = {(1, chunk): Outcome.USED for chunk in range(8)}
    late = dict.fromkeys([(2, 0), (2, 1), (2, 2)], Outcome.LATE)
    abandoned = dict.fromkeys([(4, 2), (4, 3)], Outcome.ABANDONED)
    assert outcomes == used | late | abandoned | {(3, 1): Outcome.LOST}
    # a copy that is reported after its iteration counts in the one in which it comes
    assert [(row.iteration, row.redundant, row.lost) for row in run.rows] == [(0, 2, 1), (1, 2, 1)]
    unused = [outcome for outcome in run.outcomes.values() if outcome in (Outcome.LATE, Outcome.LOST)]
    assert sum(row.redundant for row in run.rows) == len(unused)


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_an_iteration_that_lacks_something_says_how_much(make_run, schedule):
    """With parts 2 a chunk takes two copies: 16 in all, of which a quarter may be missing."""
    run = make_run(schedule, recovery=approximate(max_error=0.25), replication=WORKERS, parts=2)
    gradient = np.array([[1.0], [2.0]])

    def coded(worker, chunk, loss):
        return done(worker, 0, chunk, run.plan.coding_matrix[worker - 1] @ gradient, loss=loss)

    def script():
        yield [coded(1, chunk, 1.0 + chunk) for chunk in range(6)]
        for chunk in range(5):
            yield [coded(2, chunk, 99.0)]  # the first report counts
        assert run.rows == []
        yield [coded(2, 5, 6.0)]  # twelve are there

    run.follow(script(), 1, dim=2)
    (row,) = run.rows
    assert (row.recovered, row.missing, row.error_measure) == (6, 2, 0.25)
    assert row.loss == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) * 8 / 6)
    (approximation,) = run.gradient_error
    assert approximation.used == pytest.approx([6.0, 12.0])


HELD_OUT = {"held_out": ["test_loss"]}


def evaluated(worker, iteration, chunk, held_out):
    return done(worker, iteration, chunk, 1.0, held_out=held_out)


def test_held_out_figures_are_the_sums_of_the_first_reports_in_the_order_of_chunks(make_run):
    parts = [0.1, 0.2, 0.3, 1e9, -1e9, 0.7, 0.8, 0.9]
    run = make_run(replication=WORKERS, evaluate=Evaluate(every=2), given=HELD_OUT)
    kept = []
    run.is_enough = lambda row, params: kept.append((row.params, params))

    def script():
        for iteration in range(3):
            yield [evaluated(2, iteration, 3, (parts[3], 0.5))]
            yield [evaluated(1, iteration, 3, (7.0, 0.5))]  # a worker whose sums differ in rounding, say
            yield [evaluated(1, iteration, chunk, (parts[chunk], 0.5)) for chunk in (7, 6, 5, 4, 2, 1, 0)]

    run.follow(script(), 3)
    assert [row.test_loss for row in run.rows] == [None, None, sum(parts)]
    assert [row.test_accuracy for row in run.rows] == [None] * 3  # which the problem does not have
    assert [before for before, _ in kept] == [None, None, kept[1][1]]  # those that the step begins with


@pytest.mark.parametrize("recovery", [{"max_error": 0.25}, {"deadline": 3.0}])
def test_an_iteration_that_evaluates_is_exact(make_run, recovery):
    run = make_run(recovery=approximate(**recovery), evaluate=Evaluate(every=1), given=HELD_OUT)

    def script():
        for iteration in range(2):
            own = {worker: run.plan.queues[worker][:2] for worker in range(1, WORKERS + 1)}
            yield [evaluated(worker, iteration, c, (1.0, 0.0)) for worker in (1, 2, 3) for c in own[worker]]
            yield from run.seconds(10)
            if iteration:
                yield [evaluated(4, iteration, c, (1.0, 0.0)) for c in own[4]]

    run.follow(script(), 2)
    assert [(row.missing > 0, row.test_loss) for row in run.rows] == [(True, None), (False, 8.0)]


def test_an_automatic_deadline_learns_nothing_from_iterations_that_evaluate(make_run):
    """They take ten times as long. The last iteration does, too, and evaluates nothing: it is cut off."""
    last = LOOKED_BACK + 1
    run = make_run("static", recovery=approximate(deadline="auto"), evaluate=Evaluate(every=2), given=HELD_OUT)

    def script():
        while True:
            iteration = run.iteration
            yield []
            for chunk, holders in enumerate(run.plan.holders()):
                if run.iteration > iteration:
                    break
                evaluates = is_evaluated(iteration, 2)
                run.clock.now += 1.0 if evaluates or iteration == last else 0.1
                report = done(holders[0], iteration, chunk, 1.0)
                yield [evaluated(holders[0], iteration, chunk, (1.0, 0.0)) if evaluates else report]

    run.follow(script(), last + 1)
    assert [row.iteration for row in run.rows if row.error_measure > 0] == [last]
