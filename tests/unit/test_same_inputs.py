"""What ranks were built from: equal on equal hosts, and each piece that differs is named with rank and host."""

import sys

import numpy as np
import pytest

from psgc.config import from_yaml_text
from psgc.data import Dataset
from psgc.errors import UserError
from psgc.training import same_inputs

CONFIG = "problem: {KIND}\noptimizer: {kind: sgd, lr: 1}\niterations: 1\noutput: out\ndata: {path: d.npz}\n"
HOSTS = ["a", "b", "c"]


class Problem:
    def __init__(self, dim):
        self.dim = dim


def described(rows=20, dim=3, model=None):
    kind = "python: 'the_model:Model'" if model else "kind: logistic"
    X = np.arange(float(rows))[:, None]
    dataset = Dataset("d.npz", rows, 1, False, X, np.arange(rows))
    return same_inputs.description(from_yaml_text(CONFIG.replace("KIND", kind)), dataset, Problem(dim))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Makes the module the_model from this text."""

    def make(text):
        file = tmp_path / "the_model.py"
        file.write_text(text)
        monkeypatch.setitem(sys.modules, "the_model", type("Module", (), {"__file__": str(file)}))
        return True

    return make


def test_equal_ranks_are_let_through(model):
    same_inputs.check([described()] * 3, HOSTS)
    same_inputs.check([described(model=model("x = 1")) for _ in range(3)], HOSTS)


def test_the_first_rank_that_differs_is_named_with_what_it_has(monkeypatch):
    ours = described()
    first = r"^rank 2 on c was built .* rank 0 on a: number of parameters: 4, not 3; all ranks need"
    with pytest.raises(UserError, match=first):
        same_inputs.check([ours, ours, described(dim=4)], HOSTS)
    with pytest.raises(UserError, match=r"^rank 1 on b .*: data: 21 rows of 1 features \(\w+\), not 20 rows of 1"):
        same_inputs.check([ours, described(rows=21), described(dim=4)], HOSTS)
    monkeypatch.setattr(same_inputs, "__version__", "0.0.1")
    with pytest.raises(UserError, match=r"psgc: 0\.0\.1, not "):
        same_inputs.check([ours, described(), ours], HOSTS)


def test_another_model_file_differs_and_its_place_does_not(model):
    ours, others = described(model=model("x = 1")), described(model=model("x = 2"))
    with pytest.raises(
        UserError, match=r"^rank 1 on b .*: model: the_model\.py with the SHA-256 \w{12}, not the_model"
    ):
        same_inputs.check([ours, others, ours], HOSTS)


def test_a_description_fits_into_what_is_gathered(model):
    assert len(described(model=model("x = 1")).encode()) < 400
