"""The deadline of approximate recovery, above all the one that follows the run."""

from math import inf

import numpy as np
import pytest

from psgc.server.recovery import AT_FIRST, DEVIATIONS, LEAST_DEVIATION, LOOKED_BACK, TimeLimit, tolerated, weights


@pytest.mark.parametrize(("given", "seconds"), [(0.5, 0.5), (None, inf)])
def test_a_given_deadline_stays(given, seconds):
    deadline = TimeLimit(given)
    deadline.took(3.0, 0.0)
    assert deadline.seconds == seconds


def test_an_automatic_deadline_first_looks():
    deadline = TimeLimit("auto")
    for _ in range(AT_FIRST - 1):
        deadline.took(1.0, 0.0)
        assert deadline.seconds == inf
    deadline.took(1.0, 0.0)
    assert deadline.seconds == pytest.approx(1 + DEVIATIONS * LEAST_DEVIATION)


def test_it_is_the_median_and_a_multiple_of_the_median_absolute_deviation():
    times = np.random.default_rng(0).exponential(1.0, LOOKED_BACK)
    deadline = TimeLimit("auto")
    for time in [100.0] * 30 + times.tolist():  # what is long past does not count
        deadline.took(time, 0.0)
    median = np.median(times)
    assert deadline.seconds == pytest.approx(median + DEVIATIONS * np.median(np.abs(times - median)))


def test_it_follows_a_run_that_becomes_slower_although_its_iterations_are_cut_off():
    deadline = TimeLimit("auto")
    for _ in range(LOOKED_BACK):
        deadline.took(1.0, 0.0)
    for _ in range(2 * LOOKED_BACK):  # from now on an iteration takes 4 s, if it may
        took = min(4.0, deadline.seconds)
        deadline.took(took, 1 - took / 4.0)
    assert deadline.seconds > 4.0


@pytest.mark.parametrize("whole", [False, True])
def test_empty_queues_change_no_weight(whole):
    queues, reported = {2: [0, 1], 4: [2, 3]}, [(2, 0), (2, 1), (4, 2)]
    recovered = [0, 1] if whole else [0, 1, 2]
    found = [weights(more | queues, reported, recovered, 4, 1, whole, (0, 7)) for more in ({}, {1: [], 3: [], 5: []})]
    assert found[0] == found[1]


@pytest.mark.parametrize("copies", [1, 7, 10, 64, 100, 1000])
def test_the_tolerated_copies_are_rounded_down_but_not_by_the_representation(copies):
    for missing in range(copies):
        assert tolerated(missing / copies, copies) == missing
        assert tolerated((missing + 0.5) / copies, copies) == missing
