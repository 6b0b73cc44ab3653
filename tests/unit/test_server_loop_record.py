"""Whole runs of the server's loop against a script: what is written down of them."""

import numpy as np
import pytest

from psgc.messages import Kind
from psgc.run_rows import Outcome
from psgc.transport import Died
from tests.unit.scripted import done, said
from tests.unit.scripted_run import WORKERS, approximate


def test_what_became_of_each_chunk_that_was_worked_on(make_run):
    run = make_run(replication=WORKERS)

    def script():
        yield [done(1, 0, chunk, 1.0) for chunk in range(7)]
        yield [done(2, 0, 0, 1.0), done(3, 0, 1, 1.0), said(4, Kind.ABANDONED, 0, 2), Died(3)]
        yield [done(1, 0, 7, 1.0)]
        yield [done(2, 0, 1, 1.0), said(4, Kind.ABANDONED, 0, 3)]  # when iteration 0 is over
        yield [done(2, 1, chunk, 1.0) for chunk in range(8)]

    run.follow(script(), 2)
    outcomes = {
        (worker, chunk): outcome for (worker, chunk, iteration), outcome in run.outcomes.items() if iteration == 0
    }
    used = {(1, chunk): Outcome.USED for chunk in range(8)}
    late, abandoned = dict.fromkeys([(2, 0), (2, 1)], Outcome.LATE), dict.fromkeys([(4, 2), (4, 3)], Outcome.ABANDONED)
    assert outcomes == used | late | abandoned | {(3, 1): Outcome.LOST}
    assert [(row.iteration, row.redundant, row.lost) for row in run.rows] == [(0, 2, 1), (1, 0, 1)]


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
            yield [coded(2, chunk, 1.0 + chunk)]
        assert run.rows == []
        yield [coded(2, 5, 6.0)]  # twelve are there

    run.follow(script(), 1, dim=2)
    (row,) = run.rows
    assert (row.recovered, row.missing, row.error_measure) == (6, 2, 0.25)
    assert row.loss == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) * 8 / 6)
    (approximation,) = run.gradient_error
    assert approximation.used == pytest.approx([6.0, 12.0])
