"""Problems by name: labels are checked before anything starts, a user's problem is found or refused."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.data import Dataset
from psgc.errors import UserError
from psgc.problems import LeastSquares, Logistic, Mlp, Softmax, check_labels, load_python, make_problem


def dataset(labels):
    labels = np.asarray(labels)
    return Dataset("data/train.npz", len(labels), 5, False, np.zeros((len(labels), 5)), labels)


def test_the_named_problem_is_made_for_the_data():
    classes = dataset([2, 0, 1, 1])
    squares = make_problem("least_squares", dataset=classes, l2=0.1)
    logistic = make_problem("logistic", dataset=dataset([1.0, -1.0]), l2=0.2)
    softmax = make_problem("softmax", dataset=classes, l2=0.3)
    mlp = make_problem("mlp", dataset=classes, l2=0.4, hidden=7, seed=3)
    problems = [squares, logistic, softmax, mlp]
    assert [type(problem) for problem in problems] == [LeastSquares, Logistic, Softmax, Mlp]
    assert [problem.dim for problem in problems] == [6, 6, 18, 6 * 7 + 8 * 3]
    assert [problem.l2 for problem in problems] == [0.1, 0.2, 0.3, 0.4]
    assert np.array_equal(mlp.initial_params(), Mlp(5, 3, hidden=7, seed=3).initial_params())


@pytest.mark.parametrize(
    ("kind", "labels", "said"),
    [
        ("logistic", [0, 1, 2], "data/train.npz: the labels are 0, 1, 2; logistic needs 0/1 or -1/+1"),
        ("logistic", list(range(9)), "are 0, 1, 2, 3, ..., 8; logistic"),
        ("softmax", [1, 2, 3], "data/train.npz: the labels are 1, 2, 3; softmax needs all the whole numbers 0..C-1"),
        ("softmax", [0, 0.5, 1], "are 0, 0.5, 1; softmax needs"),
        ("softmax", [0, 2], "are 0, 2; softmax needs"),
        ("mlp", [0, 0], "are 0; mlp needs"),
        ("mlp", [-1, 1], "are -1, 1; mlp needs"),
        ("least_squares", [0.5, np.nan], "data/train.npz: the label of row 1 is nan, expected finite numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(kind, labels, said):
    with pytest.raises(UserError) as caught:
        make_problem(kind, dataset=dataset(labels))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_are_no_vectors_are_for_problems_of_ones_own():
    images = Dataset("data/train.npz", 2, 12, False, np.zeros((2, 3, 4)), np.array([0, 1]))
    with pytest.raises(
        UserError, match=r"X has the shape \(2, 3, 4\), but mlp needs \(rows, features\); reshape it to"
    ):
        make_problem("mlp", dataset=images)


def test_a_test_set_may_miss_classes_but_not_bring_new_ones():
    assert check_labels("softmax", dataset([0, 2]), num_classes=3) == 3
    assert check_labels("logistic", dataset([1, 1]), num_classes=2) == 2
    with pytest.raises(UserError, match=r"are 0, 3; the training data has 0\.\.2"):
        check_labels("softmax", dataset([0, 3]), num_classes=3)


MODULE = """
import numpy as np

class Shift:
    def __init__(self, dim=2):
        self.dim = dim
    def initial_params(self):
        return np.zeros(self.dim)
    def gradient(self, params, chunk, rng):
        return chunk.weight * params

ready = Shift(4)
class Outer:
    inner = ready
def make(dim):
    return Shift(dim)
def leaves():
    raise SystemExit("enough")
class NoDim(Shift):
    def __init__(self):
        pass
class NoStart:
    dim = 1
    def gradient(self, params, chunk, rng):
        return params
number = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_problem.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    (tmp_path / "own_needs.py").write_text("import not_there_at_all\n")
    (tmp_path / "own_leaves.py").write_text("raise SystemExit('enough')\n")
    yield
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("own")
def test_an_instance_a_class_and_a_function_are_taken():
    assert load_python("own_problem:ready", {}).dim == load_python("own_problem:Outer.inner", {}).dim == 4
    assert load_python("own_problem:Shift", {}).dim == 2
    assert load_python("own_problem:Shift", {"dim": 3}).dim == 3
    assert load_python("own_problem:make", {"dim": 5}).dim == 5


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("own_problem", {}, "expected 'module:object'"),
        (":ready", {}, "expected 'module:object'"),
        ("own_missing:ready", {}, "no module 'own_missing' installed, beside the YAML or here"),
        ("own_problem.sub:ready", {}, "problem.python: own_problem.sub:ready: "),
        ("own_problem:absent", {}, "own_problem (OWN/own_problem.py) has no absent"),
        ("own_problem:NoStrat", {}, "has no NoStrat, did you mean NoStart?"),
        ("sys:Model", {}, "sys (built into Python) has no Model"),
        ("own_problem:ready", {"dim": 3}, "is a problem already and takes no options, got {'dim': 3}"),
        ("own_problem:make", {}, "calling it with {} failed: TypeError: make() missing"),
        ("own_problem:leaves", {}, "calling it with {} failed: SystemExit: enough"),
        ("own_problem:number", {}, "expected a problem, or a class or function that makes one"),
        ("own_problem:Shift", {"dim": 0}, "Shift.dim: expected a whole number >= 1, got 0"),
        ("own_leaves:x", {}, "importing own_leaves failed: SystemExit: enough"),
        ("own_problem:NoDim", {}, "NoDim.dim: expected a whole number >= 1, got None"),
        ("own_problem:NoStart", {}, "NoStart has no method initial_params"),
        ("own_broken:x", {}, "importing own_broken failed: ZeroDivisionError: division by zero"),
        ("own_needs:x", {}, "importing own_needs failed: ModuleNotFoundError: No module named 'not_there_at_all'"),
    ],
)
def test_what_is_no_problem_is_refused_in_one_line(target, options, said):
    with pytest.raises(UserError) as caught:
        load_python(target, options)
    assert said.replace("OWN", os.getcwd()) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own")
def test_a_model_lies_beside_the_yaml_and_takes_no_modules_place(monkeypatch):
    """It may import what lies beside it later on, too."""
    beside = Path("beside")
    beside.mkdir()
    (beside / "own_model.py").write_text(f"{MODULE}\ndef late():\n    import own_helper\n    return own_helper.text\n")
    (beside / "own_helper.py").write_text("text = 'beside'\n")
    for folder in (beside, Path()):
        (folder / "colorsys.py").write_text("Path = 'planted'\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before = list(sys.path)
    load_python("own_model:ready", {}, "beside")
    load_python("own_problem:ready", {}, "beside")  # the current directory's
    here = os.getcwd()
    assert sys.path == [*before, f"{here}/beside", here]
    assert sys.modules["own_model"].late() == "beside"
    with pytest.raises(UserError, match=r"colorsys \(.*lib/python.*/colorsys\.py\) has no Path"):
        load_python("colorsys:Path", {}, "beside")
