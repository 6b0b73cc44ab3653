"""Whole runs of the server's loop against a script: what is written down of them."""

import numpy as np
import pytest

from psgc.messages import Kind
from psgc.run_rows import Outcome
from psgc.transport import Died, Vector
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


def test_a_chunk_with_some_of_its_copies_is_missing_as_a_chunk_and_counts_by_its_copies(make_run):
    run = make_run("static", recovery=approximate(max_error=0.5), replication=WORKERS, parts=2)

    def script():
        yield [done(1, 0, chunk, np.ones(1)) for chunk in range(8)]

    run.follow(script(), 1, dim=2)
    (row,) = run.rows
    assert (row.recovered, row.missing, row.error_measure) == (0, 8, 0.5)


def test_a_gradient_of_two_parts_is_decoded_by_accumulators_that_the_commits_ask_for(make_run):
    """Each of two contributors is told of both, in the order of S_i, and whose copy its own is."""
    run = make_run(replication=WORKERS, parts=2, combined=True)
    matrix, gradient = run.plan.coding_matrix, np.array([[1.0], [2.0]])

    def script():
        for worker in (3, 1):
            yield [said(worker, Kind.REPORT, 0, chunk, seconds=1.0, loss=1.0) for chunk in range(8)]
        for worker in (1, 3):
            entries = [entry for entry in run.transport.records[worker] if entry["kind"] == Kind.COMMIT]
            for chunk in range(8):
                told = [(int(e["worker"]), int(e["role"]), bool(e["last"])) for e in entries if e["chunk"] == chunk]
                assert told == [(3, worker, False), (1, worker, True)]
        both = np.linalg.inv(matrix[[2, 0]]).T  # of y = X g, with sum over j of R[j]^T y_j = g
        for place, worker in enumerate((3, 1)):
            yield [Vector(worker, 0, worker, 8 * (both[place] @ gradient), 1)]

    run.follow(script(), 1, dim=2)
    assert run.server.params == pytest.approx(-0.5 * 8 * gradient.ravel())
