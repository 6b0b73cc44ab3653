"""`psgc train --check-gradient`: what is wrong with a gradient is found, and nothing else."""

import numpy as np
import pytest

from psgc.cli import main
from psgc.data import Chunk, write_dense
from psgc.errors import ModelError, UserError
from psgc.problems import LeastSquares, Logistic, Mlp, Softmax, check_gradient

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
Y = (X[:, 0] > 0).astype(np.int64)


def chunk(rows=40):
    return Chunk(0, X[:rows], Y[:rows], 0.25)


class Wrong(Logistic):
    """change: what is returned instead of the gradient."""

    def __init__(self, change, l2=0.0):
        super().__init__(3, l2)
        self.change = change

    def loss_and_gradient(self, params, chunk, rng=None):
        loss, gradient = super().loss_and_gradient(params, chunk)
        return loss, self.change(gradient, params)


@pytest.mark.parametrize("problem", [LeastSquares(3, 0.1), Logistic(3, 0.1), Softmax(3, 2, 0.1), Mlp(3, 2, 5, 0.1, 0)])
def test_the_models_of_psgc_are_right(problem):
    said = check_gradient(problem, np.asarray(problem.initial_params(), np.float64), chunk())
    assert said.startswith("the gradient of 40 rows is that of the loss, up to ")
    assert ", and the sum over two halves, up to " in said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda gradient, params: 2 * gradient, "^the gradient is 2 times that of the loss; expected the same"),
        (lambda gradient, params: -gradient, "^the gradient is -1 times that of the loss"),
        (lambda gradient, params: 0 * gradient, "^the gradient is 0 times that of the loss"),
        (lambda gradient, params: gradient + 0.01 * params, "^entry [0-3] of the gradient is "),
        (
            lambda gradient, params: gradient * [1, 1, 1, 0],
            "^entry 3 of the gradient is 0, but the loss .* changes by ",
        ),
        (lambda gradient, params: gradient[:3], r"^the gradient has the shape \(3,\), expected \(4,\)$"),
        (lambda gradient, params: gradient * np.nan, "NaN or infinite near the initial parameters"),
        (lambda gradient, params: gradient.no_such, "^the model raised AttributeError: .*test_gradient_check.py:"),
    ],
)
def test_what_is_wrong_is_named(change, text):
    with pytest.raises(UserError, match=text):
        check_gradient(Wrong(change), np.zeros(4), chunk())


def test_a_mean_over_the_rows_is_found_although_its_loss_fits_the_gradient():
    class Mean(Logistic):
        def loss_and_gradient(self, params, chunk, rng=None):
            return tuple(figure / chunk.weight for figure in super().loss_and_gradient(params, chunk))

    with pytest.raises(ModelError, match="a mean over its rows; expected the mean times"):
        check_gradient(Mean(3), np.zeros(4), chunk())


class Dropout:
    """Random rows: the gradient as they are drawn, and the loss of all of them."""

    dim = 4

    def gradient(self, params, chunk, rng):
        kept = chunk.sample(20, rng)
        return Logistic(3).gradient(params, kept, rng)

    def loss(self, params, chunk):
        return Logistic(3).loss(params, chunk)


def test_a_random_gradient_needs_the_loss_of_the_same_numbers():
    with pytest.raises(UserError, match="draws random numbers, which loss does not get"):
        check_gradient(Dropout(), np.zeros(4), chunk())

    class Together(Dropout):
        def loss_and_gradient(self, params, chunk, rng):
            kept = chunk.sample(20, rng)
            return self.loss(params, kept), self.gradient(params, kept, rng)

    assert check_gradient(Together(), np.zeros(4), chunk()).startswith("the gradient of 40 rows is that of the loss")


def test_what_depends_on_the_other_rows_is_told():
    class Normalised(Logistic):
        def loss_and_gradient(self, params, chunk, rng=None):
            own = Chunk(chunk.index, chunk.X / chunk.X.std(0), chunk.y, chunk.weight)
            return super().loss_and_gradient(params, own)

    said = check_gradient(Normalised(3), np.zeros(4), chunk())
    assert "what is trained depends on how the data is cut" in said


def test_without_a_loss_there_is_nothing_to_compare():
    class Bare:
        dim = 4
        gradient = Logistic(3).gradient

    with pytest.raises(UserError, match=r"no loss to compare .*; expected a method loss\(params, chunk\)$"):
        check_gradient(Bare(), np.zeros(4), chunk())


def test_the_command_says_it_of_the_model_of_a_yaml(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_dense("data.npz", X, Y)
    (tmp_path / "run.yaml").write_text(
        "problem: {kind: logistic}\ndata: {path: data.npz}\noptimizer: {kind: sgd, lr: 1}\niterations: 1\noutput: out\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", "run.yaml", "--check-gradient"])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("logistic: the gradient of 30 rows is that of the loss")
    assert not (tmp_path / "out").exists()


def test_a_torch_problem_is_refused(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("problem: {torch: my_model:build}\noptimizer: {torch: SGD, lr: 0.1}\nbatch: {size: 8, epochs: 1}\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(path), "--check-gradient"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("psgc: --check-gradient: the problem is a torch problem")
