"""The closed forms against plain loops over workers and chunks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc import coding
from psgc.plan import default_queues
from psgc.simulation import closed_form as cf
from tests.unit.small_assignments import shuffled


@st.composite
def clusters(draw):
    """(assignment, parts, seconds): anything in which every chunk has `parts` holders; some workers have failed."""
    n, m, trials = draw(st.integers(1, 7)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    parts = draw(st.integers(1, m))
    matrix = rng.random((n, m)) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    for row in matrix:
        row[rng.permutation(m)[:parts]] = True
    seconds = rng.exponential(size=(trials, m))
    seconds[rng.random((trials, m)) < draw(st.sampled_from([0.0, 0.2]))] = np.inf
    return coding.from_matrix(matrix), parts, seconds


def copies(queues, seconds, whole):
    """(when, chunk) of every copy that ever counts, worker by worker."""
    return [
        ((len(queue) if whole else place) * s, chunk)
        for queue, s in zip(queues, seconds, strict=True)
        for place, chunk in enumerate(queue, start=1)
        if np.isfinite(s)
    ]


def recovered_at(events, n, parts):
    when = [sorted(time for time, chunk in events if chunk == i) for i in range(n)]
    return max(times[parts - 1] if len(times) >= parts else np.inf for times in when)


def error_at(events, n, parts, deadline):
    there = [sum(chunk == i and time <= deadline for time, chunk in events) for i in range(n)]
    return np.sqrt(np.maximum(0, parts - np.array(there)).sum())


@settings(max_examples=50, deadline=None)
@given(clusters(), st.integers(0, 99))
def test_times_errors_and_copies_are_those_of_a_loop_over_the_queues(cluster, seed):
    assignment, parts, seconds = cluster
    n = assignment.shape[0]
    order, random_order = coding.ordering(assignment), shuffled(assignment, seed)
    for positions, queues, whole in (
        (order, coding.queues(order), False),
        (random_order, coding.queues(random_order), False),
        (coding.positions(coding.queues(order), assignment.shape[0], whole_loads=True), coding.queues(order), True),
    ):
        times = cf.completion_times(positions, parts, seconds)
        deadlines = [0.3, 1.0, *(times[np.isfinite(times)][:1])]
        errors = cf.error_measures(positions, parts, seconds, deadlines)
        counted = cf.copies_computed(positions, seconds, times)
        for t, s in enumerate(seconds):
            events = copies(queues, s, whole)
            assert times[t] == recovered_at(events, n, parts)
            assert whole or counted[t] == sum(time <= times[t] for time, _ in events)
            assert errors[t].tolist() == [error_at(events, n, parts, deadline) for deadline in deadlines]


@settings(max_examples=50, deadline=None)
@given(clusters())
def test_uncoded_takes_as_long_as_the_slowest_share(cluster):
    assignment, parts, seconds = cluster
    order = coding.ordering(assignment)
    primary = coding.primary_copies(assignment, order, parts)
    queues, _ = default_queues("uncoded", order, primary, 0, range(assignment.shape[1]))
    positions = coding.positions([*queues.values()], assignment.shape[0])
    assert (np.diff(positions.indptr) == parts).all()
    loads = np.bincount(positions.indices, minlength=positions.shape[1])
    with np.errstate(invalid="ignore"):
        slowest = np.where(loads > 0, loads * seconds, 0.0).max(axis=1)
    assert cf.completion_times(positions, parts, seconds).tolist() == slowest.tolist()


@settings(max_examples=50, deadline=None)
@given(clusters())
def test_least_squares_errors_are_those_of_least_squares(cluster):
    assignment, _, seconds = cluster
    dense = assignment.toarray().astype(float)
    finished = np.where(dense.sum(axis=0) > 0, dense.sum(axis=0), 1) * seconds
    deadlines = [0.2, 1.0, 3.0, 100.0]
    errors = cf.least_squares_errors(assignment, seconds, deadlines)
    for t in range(len(seconds)):
        for d, deadline in enumerate(deadlines):
            there = dense[:, finished[t] <= deadline]
            weights = np.linalg.lstsq(there, np.ones(len(dense)), rcond=None)[0] if there.size else np.zeros(0)
            assert errors[t, d] == pytest.approx(np.linalg.norm(there @ weights - 1), abs=2e-3)


def test_least_squares_errors_of_dependent_workers_and_of_everybody():
    assignment = coding.fractional(12, 12, 3)
    errors = cf.least_squares_errors(assignment, np.full((1, 12), 1.0), [2.9, 3.0])
    assert errors.tolist() == [[pytest.approx(np.sqrt(12)), 0.0]]


def test_least_squares_errors_of_everybody_are_0_with_many_workers():
    """Where the ridge adds more to a squared error than a fixed cut-off."""
    errors = cf.least_squares_errors(coding.cyclic(6400, 800, 3), np.ones((1, 800)), [1, 24])
    assert errors.tolist() == [[pytest.approx(80), 0.0]]


def test_blocks_of_trials_change_nothing(monkeypatch):
    assignment = coding.graph(20, 20, 4, seed=0)
    order = coding.ordering(assignment)
    seconds = np.random.default_rng(0).exponential(size=(23, 20))

    def everything():
        return (
            cf.completion_times(order, 2, seconds).tolist(),
            cf.error_measures(order, 2, seconds, [1, 2]).tolist(),
            cf.least_squares_errors(assignment, seconds, [1, 2, 8]).tolist(),
        )

    whole = everything()
    monkeypatch.setattr(cf, "_BLOCK", 500)
    assert everything() == whole


def test_a_clock_rounds_up_and_leaves_its_own_multiples():
    times = np.array([0.1, 0.3, 3 * 0.1, 0.30001, 7.0, np.inf])
    assert cf.rounded_up(times, 0.1) == pytest.approx([0.1, 0.3, 0.3, 0.4, 7.0, np.inf])
    assert cf.rounded_up(times, None) is times


def test_a_worker_that_holds_nothing_and_has_failed_is_no_matter():
    assignment = coding.from_matrix([[1, 0], [1, 0]])
    seconds = np.array([[1.0, np.inf]])
    assert cf.least_squares_errors(assignment, seconds, [1, 2]).tolist() == [[pytest.approx(np.sqrt(2)), 0.0]]
    assert cf.completion_times(coding.ordering(assignment), 1, seconds).tolist() == [2.0]
    assert cf.copies_computed(assignment, seconds, np.array([2.0])).tolist() == [2.0]
