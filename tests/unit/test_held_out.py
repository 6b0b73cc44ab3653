"""Held-out rows on a worker: the parts add up to the whole, and state of one worker alone gives no figures."""

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.data import ChunkSource, Dataset
from psgc.errors import ModelError
from psgc.problems import Softmax
from psgc.workers.held_out import HeldOut

X, y = np.random.default_rng(0).normal(size=(7, 3)), np.array([0, 1, 2, 0, 1, 2, 0])
DATA = Dataset("rows.npz", 7, 3, False, X, y)
PARAMS = np.linspace(-1, 1, 12)


class Normalised(Softmax):
    """A gradient moves what the figures depend on, as the running statistics of batch normalisation."""

    shift = 0.0

    def loss(self, params, chunk):
        return super().loss(params * (1 + self.shift), chunk)

    def disturb(self):
        self.shift += 0.5


class Prepared(Normalised):
    prepared = 0

    def prepare_evaluation(self, params, chunks):
        assert sum(chunk.weight for chunk in chunks) == pytest.approx(1)
        self.shift, self.prepared = 0.25 * params[0], self.prepared + 1


def source(chunks):
    return ChunkSource(DATA, chunks, "float64", Backend())


def total(problem, parts=4, chunks=6, iteration=10):
    """The sums over all chunks, each evaluated before its gradient."""
    held_out = HeldOut(problem, source(parts), source(5), every=10)
    disturb = getattr(problem, "disturb", lambda: None)
    sums = np.zeros(2)
    for chunk in range(chunks):
        sums += held_out.evaluate(iteration, chunk, PARAMS, disturb)
        disturb()
    return sums.tolist()


@pytest.mark.parametrize("parts", [1, 4, 7])
def test_the_parts_add_up_to_the_figures_of_all_rows(parts):
    problem = Softmax(3, 3)
    whole = source(1).chunk(0)
    expected = [problem.loss(PARAMS, whole), problem.accuracy(PARAMS, whole)]
    assert total(problem, parts, chunks=7) == pytest.approx(expected, rel=1e-14)


def test_a_problem_whose_state_gradients_change_is_refused():
    with pytest.raises(ModelError, match=r"no held-out figures.*the loss went from .* when a gradient was computed"):
        total(Normalised(3, 3))


def test_one_that_prepares_itself_is_prepared_once_an_iteration_for_all_parts():
    problem = Prepared(3, 3)
    whole = source(1).chunk(0)
    expected = [Softmax(3, 3).loss(PARAMS * (1 + 0.25 * PARAMS[0]), whole), problem.accuracy(PARAMS, whole)]
    assert total(problem) == pytest.approx(expected, rel=1e-14)
    assert problem.prepared == 3  # twice to find out whether gradients change anything


def test_only_every_so_often_and_not_before_the_first_step():
    held_out = HeldOut(Softmax(3, 3), source(4), source(5), every=10)
    assert [iteration for iteration in range(31) if held_out.is_due(iteration)] == [10, 20, 30]
