"""The trial: gradients of the same chunk must be the same, whoever computed them and whenever it is told."""

from math import inf, nan

import numpy as np

from psgc.coding.sketch import sketch
from psgc.server.trial import Difference, TrialComparison

ONE, OTHER = sketch(np.array([1.0, 2.0])), sketch(np.array([1.0, 2.1]))
FAILED = (nan, nan, nan)


def test_equal_gradients_are_fine_and_different_ones_are_told_with_both_workers():
    trial = TrialComparison({1: 4, 2: 0}, 1e-9)
    assert trial.told(1, 0, 0, ONE) is None
    assert trial.told(2, 0, 0, ONE) is None
    difference = trial.told(3, 0, 0, OTHER)
    assert difference == Difference(0, 0, (1, 3), difference.relative)
    assert 1e-3 < difference.relative < 1


def test_the_tolerance_is_for_rounding():
    for tolerance, differs in ((inf, False), (1.0, False), (1e-9, True)):
        trial = TrialComparison({}, tolerance)
        trial.told(1, 0, 0, ONE)
        assert bool(trial.told(2, 0, 0, OTHER)) == differs


def test_only_the_first_iteration_of_the_run_has_a_trial():
    trial = TrialComparison({1: 4}, 1e-9, first=3)
    trial.reported(1, 4)
    assert trial.awaited == set()


def test_other_chunks_and_other_iterations_are_not_compared():
    trial = TrialComparison({}, 1e-9)
    assert [trial.told(1, *what, s) for what, s in (((0, 0), ONE), ((0, 1), OTHER), ((1, 0), OTHER))] == [None] * 3


def test_a_gradient_that_could_not_be_had_is_not_compared():
    trial = TrialComparison({1: 4}, 1e-9)
    assert [trial.told(worker, 0, 4, found) for worker, found in ((1, FAILED), (2, ONE), (3, FAILED))] == [None] * 3
    assert trial.told(4, 0, 4, OTHER)
