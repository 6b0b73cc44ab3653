"""Loss and accuracy after a run: what goes wrong in measuring them costs nothing but the measure.

No figure is shown of a problem whose state gradients change.
"""

import sys

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.data import ChunkSource, Dataset
from psgc.problems import Logistic, Softmax
from psgc.problems.quality import quality

module = sys.modules["psgc.problems.quality"]  # psgc.problems has the function under that name
X, y = np.eye(3), np.arange(3)
DATA = Dataset("train.npz", 3, 3, False, X, y)
TEST = Dataset("test.npz", 4, 3, False, X[[0, 0, 1, 2]], np.array([0, 1, 1, 2]))
PARAMS = np.vstack([np.eye(3), np.zeros((1, 3))]).ravel()  # every row has the largest score for its label


def measured(dataset=DATA, test=None, problem=None, params=PARAMS, dtype="float64"):
    """As after a run: the gradient is that of the first of two chunks."""
    problem = problem or Softmax(3, 3)

    chunks = ChunkSource(dataset, 2, dtype, Backend())

    def gradient():
        return problem.gradient(params, chunks.chunk(0), np.random.default_rng(0))

    return quality(problem, params.astype(dtype), dataset, test, dtype, Backend(), gradient, chunks.each)


def test_the_test_set_is_measured_where_there_is_one():
    assert measured() == {"training_accuracy": 1.0}
    found = measured(test=TEST)
    assert found == {"test_loss": pytest.approx(np.log(2 + np.e) - 3 / 4), "test_accuracy": 0.75}
    assert measured(None) == {}


def test_a_set_is_measured_in_pieces(monkeypatch):
    whole = measured(test=TEST)
    monkeypatch.setattr(module, "EVALUATION_ROWS", 3)
    monkeypatch.setattr(module, "PROBED_ROWS", 1)
    assert measured(test=TEST) == pytest.approx(whole)


def test_damaged_data_is_reported_and_the_run_goes_on(capsys, monkeypatch):
    indices = np.array([0, 1, 7], np.int32)
    damaged = Dataset("test.npz", 3, 3, True, (np.ones(3), indices, np.arange(4, dtype=np.int32)), y)
    assert measured(test=damaged) == {}
    said = "UserError: test.npz: damaged: rows 0 to 2 hold columns outside 0..2\n"
    assert capsys.readouterr().err == f"psgc: no held-out figures: {said}"
    monkeypatch.setattr(module, "EVALUATION_ROWS", 1)
    monkeypatch.setattr(module, "PROBED_ROWS", 1)  # which are right
    assert measured(test=damaged) == {}
    said = said.replace("0 to 2", "2 to 2")
    assert capsys.readouterr().err == f"psgc: no held-out loss: {said}psgc: no held-out accuracy: {said}"


class Stateful(Logistic):
    """Normalises each chunk by its own mean, and rows that it evaluates by a running mean, as batch normalisation."""

    def __init__(self, rate):
        super().__init__(1)
        self.rate, self.mean, self.seen = rate, np.zeros(1), 0

    def gradient(self, params, chunk, rng):
        self.mean = (1 - self.rate) * self.mean + self.rate * chunk.X.mean(axis=0)
        self.seen += 1
        return super().gradient(params, chunk, rng)

    def loss(self, params, chunk):
        return self.accuracy(params, chunk) + float(((chunk.X - self.mean) ** 2).mean())

    def accuracy(self, params, chunk):
        return float((((chunk.X - self.mean) @ params[:-1] > 0) == (chunk.y > 0)).mean())


ROWS = np.random.default_rng(1).normal(100.0, 30.0, (40, 1))
SHIFTED = Dataset("train.npz", 40, 1, False, ROWS, (ROWS[:, 0] > 100).astype(int))


@pytest.mark.parametrize(("test", "name"), [(None, "training"), (SHIFTED, "held-out")])
@pytest.mark.parametrize("rate", [0.1, 0.001])
def test_a_problem_whose_gradients_change_its_state_has_no_figures(capsys, test, name, rate):
    problem = Stateful(rate)
    assert measured(SHIFTED, test, problem, np.ones(2)) == {}
    assert problem.seen == 1
    said = capsys.readouterr().err
    assert said.startswith(f"psgc: no {name} figures: with the same rows and parameters the loss went from ")
    assert said.count("\n") == 1


class Prepared(Stateful):
    """Its mean is that of the first chunk."""

    def prepare_evaluation(self, params, chunks):
        self.taken = next(chunks)
        self.mean = self.taken.X.mean(axis=0)


@pytest.mark.parametrize("test", [None, SHIFTED])
def test_a_problem_that_computes_its_state_anew_has_figures(capsys, test):
    problem, asked = Prepared(0.5), Stateful(0.0)
    found = measured(SHIFTED, test, problem, np.ones(2))
    assert problem.seen == 1
    assert (ROWS[:20] == problem.taken.X).all()
    asked.mean = ROWS[:20].mean(axis=0)
    whole = ChunkSource(SHIFTED, 1, "float64", Backend()).chunk(0)
    name = "test" if test else "training"
    assert found[f"{name}_accuracy"] == asked.accuracy(np.ones(2), whole)
    assert capsys.readouterr().err == ""


def test_a_problem_that_only_adds_to_its_state_has_none(capsys):
    class Adds(Prepared):
        def prepare_evaluation(self, params, chunks):
            self.mean = 0.9 * self.mean + 0.1 * next(chunks).X.mean(axis=0)

    assert measured(SHIFTED, SHIFTED, Adds(0.5), np.ones(2)) == {}
    assert "The result of prepare_evaluation must depend on its arguments alone" in capsys.readouterr().err


def test_state_that_changes_no_figure_raises_no_alarm(capsys):
    assert set(measured(SHIFTED, SHIFTED, Stateful(0.0), np.ones(2))) == {"test_loss", "test_accuracy"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("noise", "told"),
    [(1e-7, False), (1e-3, True)],  # a library that adds up in another order; dropout
)
def test_a_loss_that_is_random_is_told_and_rounding_is_not(capsys, noise, told):
    rng = np.random.default_rng(3)

    class Noisy(Logistic):
        def loss(self, params, chunk):
            return super().loss(params, chunk) * (1 + noise * rng.random())

    assert (measured(SHIFTED, SHIFTED, Noisy(1), np.ones(2)) == {}) == told
    assert ("or it is random" in capsys.readouterr().err) == told


def test_a_gradient_that_fails_leaves_no_figures_and_a_loss_of_nan_is_one(capsys):
    class Fails(Logistic):
        def gradient(self, params, chunk, rng):
            raise MemoryError("no GPU here")

    assert measured(SHIFTED, SHIFTED, Fails(1), np.ones(2)) == {}
    assert capsys.readouterr().err == "psgc: no held-out figures: MemoryError: no GPU here\n"

    class Nan(Logistic):
        def loss(self, params, chunk):
            return float("nan")

    assert np.isnan(measured(SHIFTED, SHIFTED, Nan(1), np.ones(2))["test_loss"])
    assert capsys.readouterr().err == ""
