"""Figures of a chunk against those of its halves: `chunk.weight` in the wrong place is found, and nothing else."""

import numpy as np
import pytest
import scipy.sparse

from psgc.backend import Backend
from psgc.data import Chunk, ChunkSource, Dataset
from psgc.errors import ModelError
from psgc.problems import ChunkCheck, Logistic, Mlp, quality

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
Y = (X[:, 0] + 0.3 * RNG.standard_normal(60) > 0).astype(np.int64)
PARAMS = np.array([0.5, -0.2, 0.1, 0.3])


def chunk(rows=10, weight=0.25):
    return Chunk(2, X[:rows], Y[:rows], weight)


class Model(Logistic):
    """wrong: what it returns without the weight, or with it."""

    def __init__(self, wrong=()):
        super().__init__(3)
        self.wrong = wrong

    def loss_and_gradient(self, params, chunk, rng=None):
        gradient = super().loss_and_gradient(params, chunk)[1]
        return self.loss(params, chunk), gradient / (chunk.weight if "gradient" in self.wrong else 1)

    def loss(self, params, chunk):
        return super().loss(params, chunk) / (chunk.weight if "loss" in self.wrong else 1)

    def accuracy(self, params, chunk):
        return super().accuracy(params, chunk) * (chunk.weight if "accuracy" in self.wrong else 1)


def looked_at(problem, of=None):
    return ChunkCheck(problem).check(PARAMS, of or chunk())


@pytest.mark.parametrize("rows", [2, 9, 10])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("loss", ": a mean over its rows; expected the mean times chunk.weight, in all terms, so that the chunks add"),
        ("gradient", ": a mean over its rows; expected the mean times chunk.weight, in all terms, so that the chunks "),
        ("accuracy", ": a sum over its rows; expected the fraction of its rows that are right, without chunk.weight"),
    ],
)  # fmt: skip
def test_a_weight_in_the_wrong_place(wrong, told, rows):
    with pytest.raises(ModelError) as caught:
        looked_at(Model([wrong]), chunk(rows))
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"the {wrong} of a chunk ")


def test_it_is_said_what_was_returned():
    model, of = Model(["loss"]), chunk()
    rows = (slice(0, 10), slice(0, 5), slice(5, 10))
    whole, one, other = (f"{model.loss(PARAMS, Chunk(2, X[part], Y[part], 0.1)):.4g}" for part in rows)
    with pytest.raises(
        ModelError, match=f"^the loss of a chunk is {whole}, and those of its halves {one} and {other}:"
    ):
        looked_at(model, of)


class Reusing:
    """Its gradient has the same memory each time."""

    def __init__(self):
        self.memory = np.zeros(4)

    def gradient(self, params, chunk, rng):
        self.memory[:] = Logistic(3).gradient(params, chunk, rng)
        return self.memory


class Random(Model):
    """Its rows are drawn, and of two halves often the same ones."""

    def loss_and_gradient(self, params, chunk, rng=None):
        return float(rng.random()), rng.standard_normal(4)


class Normalised(Model):
    """Its rows depend on each other."""

    def loss_and_gradient(self, params, chunk, rng=None):
        own = Chunk(chunk.index, (chunk.X - chunk.X.mean(0)) / chunk.X.std(0), chunk.y, chunk.weight)
        return super().loss_and_gradient(params, own)


class Pairs(Model):
    """A sum over pairs of rows."""

    def loss_and_gradient(self, params, chunk, rng=None):
        loss, gradient = super().loss_and_gradient(params, chunk)
        return loss * len(chunk.y), gradient * len(chunk.y)


class NeedsRows(Model):
    def loss_and_gradient(self, params, chunk, rng=None):
        assert len(chunk.y) == 10
        return super().loss_and_gradient(params, chunk)


class Total(Model):
    """A sum over the rows, whatever their weight."""

    def loss_and_gradient(self, params, chunk, rng=None):
        loss, gradient = super().loss_and_gradient(params, chunk)
        return loss * len(chunk.y) / chunk.weight, gradient * len(chunk.y) / chunk.weight

    def loss(self, params, chunk):
        return 0.0


class Tiny(Model):
    """Its loss is nothing but rounding errors."""

    def loss_and_gradient(self, params, chunk, rng=None):
        return 1e-12, super().loss_and_gradient(params, chunk)[1]


class Prepared(Model):
    """Its accuracy means something after `prepare_evaluation` alone."""

    prepare_evaluation = None

    def accuracy(self, params, chunk):
        return float(len(chunk.y))


@pytest.mark.parametrize("kind", [Model, Tiny, Prepared, Reusing, Random, Normalised, Pairs, NeedsRows, Total])
def test_right_models_and_those_of_which_nothing_can_be_said(kind):
    assert looked_at(kind())


@pytest.mark.parametrize(
    ("of", "done"),
    [(Chunk(0, None, None, 0.5), True), (chunk(1), False), (chunk(10, weight=1.0), True)],
    ids=["own data", "one row", "all rows"],
)
def test_chunks_of_which_nothing_can_be_said(of, done):
    assert looked_at(Model(["gradient"]), of) == done


class ZeroAtFirst(Model):
    """A mean where a sum is expected, and at first nothing."""

    calls = 0

    def loss_and_gradient(self, params, chunk, rng=None):
        self.calls += 1
        _, gradient = super().loss_and_gradient(params, chunk)
        return float("nan"), gradient / chunk.weight * (self.calls > 3)


def test_figures_that_show_nothing_are_followed_by_those_of_another_chunk():
    check = ChunkCheck(ZeroAtFirst())
    assert not check.check(PARAMS, chunk())
    with pytest.raises(ModelError, match="the gradient of a chunk has the length"):
        check.check(PARAMS, chunk())


def test_after_a_few_chunks_that_show_nothing_it_is_left():
    class Zero(Model):
        def loss_and_gradient(self, params, chunk, rng=None):
            return 0.0, np.zeros(4)

    check = ChunkCheck(Zero())
    assert [check.check(PARAMS, chunk()) for _ in range(8)] == 7 * [False] + [True]


def test_sparse_rows_and_a_network():
    of = Chunk(0, scipy.sparse.csr_matrix(X[:10]), Y[:10], 0.2)
    looked_at(Model(), of)
    with pytest.raises(ModelError):
        looked_at(Model(["gradient"]), of)
    network = Mlp(3, 2, 4, l2=0.1)
    assert ChunkCheck(network).check(network.initial_params(), chunk())


@pytest.mark.parametrize("wrong", ["loss", "accuracy"])
def test_no_figures_are_shown_that_are_wrong(capsys, wrong):
    data = Dataset("train.npz", 60, 3, False, X, Y)
    chunks = ChunkSource(data, 6, "float64", Backend())
    test = Dataset("test.npz", 2400, 3, False, np.tile(X, (40, 1)), np.tile(Y, 40))
    found = quality(Model([wrong]), PARAMS, data, test, "float64", Backend(), lambda: None, chunks.each)
    assert found == {}
    assert f"psgc: no held-out figures: the {wrong} of a chunk is " in capsys.readouterr().err
