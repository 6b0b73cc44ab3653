"""What both sides of a run open, and how ranks are compared."""

import json
import os
import sys

import numpy as np
import pytest
import scipy.sparse

from psgc.backend import Backend
from psgc.config import from_yaml_text
from psgc.data import ChunkSource, Dataset, from_arrays, open_data, write_dense, write_sparse
from psgc.errors import UserError
from psgc.problems import Logistic
from psgc.run import inputs
from psgc.run.inputs import Given, description, fingerprint, open_held_out, open_problem
from psgc.run.meeting import check_same

SAME = "problem: {KIND}\noptimizer: {kind: sgd, lr: 1}\niterations: 1\noutput: out\ndata: {path: d.npz}\n"
HOSTS = ["a", "b", "c"]


class Problem:
    def __init__(self, dim):
        self.dim = dim


def of(values):
    return Dataset("d.npz", len(values), 1, False, values[:, None], np.arange(len(values)))


def described(rows=20, dim=3, model=None, read=None):
    kind = "python: 'the_model:Model'" if model else "kind: logistic"
    dataset = read or of(np.arange(float(rows)))
    settings = SAME.replace("path: d.npz", "python: 'the_model:read'") if read else SAME
    return json.dumps(description(from_yaml_text(settings.replace("KIND", kind)), dataset, Problem(dim), None))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Makes the module the_model from this text."""

    def make(text):
        file = tmp_path / "the_model.py"
        file.write_text(text)
        monkeypatch.setitem(sys.modules, "the_model", type("Module", (), {"__file__": str(file)}))
        return True

    return make


def test_whole_numbers_reach_a_users_model_as_they_are_and_a_built_in_one_as_floats():
    class Own(Logistic):
        pass

    config = from_yaml_text(
        "problem: {kind: script, script: a.py}\niterations: 1\noptimizer: {kind: sgd, lr: 1}\noutput: o"
    )
    pixels = of(np.arange(6, dtype=np.uint8))
    for problem, kind in ((Own(1), "uint8"), (Logistic(1), "float32")):
        dataset, _ = open_problem(config, "a.py", given=Given("a.py", config, problem, pixels))
        assert ChunkSource(dataset, 2, "float32", Backend()).chunk(0).X.dtype == kind


WHAT = "psgc, model and data"


def test_the_first_rank_that_differs_is_named_with_what_it_has(monkeypatch, model):
    ours = described()
    check_same([ours] * 3, HOSTS, WHAT)
    first = r"^rank 2 on c differs from rank 0 on a: number of parameters: 4, not 3; all ranks need"
    with pytest.raises(UserError, match=first):
        check_same([ours, ours, described(dim=4)], HOSTS, WHAT)
    with pytest.raises(UserError, match=r"^rank 1 on b .*: data: 21 rows of 1 features \(\w+\), not 20 rows of 1"):
        check_same([ours, described(rows=21), described(dim=4)], HOSTS, WHAT)
    same, others = (described(model=model(text)) for text in ("x = 1", "x = 2"))  # and not the place of the file
    check_same([same, described(model=model("x = 1"))], HOSTS, WHAT)
    with pytest.raises(UserError, match=r"^rank 1 on b .*: model: the_model\.py with the SHA-256 \w{12}, not the_mod"):
        check_same([same, others, same], HOSTS, WHAT)
    monkeypatch.setattr(inputs, "__version__", "0.0.1")
    with pytest.raises(UserError, match=r"psgc: 0\.0\.1, not "):
        check_same([ours, described(), ours], HOSTS, WHAT)


def test_other_held_out_rows_on_a_rank_are_noticed():
    config = from_yaml_text(
        SAME.replace("d.npz", "d.npz, test: t.npz").replace("KIND", "kind: logistic") + "evaluate: {every: 1}"
    )
    ours, others = (
        json.dumps(description(config, of(np.arange(20.0)), Problem(3), of(test)))
        for test in (np.arange(5.0), np.arange(1.0, 6.0))
    )
    with pytest.raises(UserError, match=r"^rank 1 on b .*: test data: 5 rows of 1 features \(\w+\), not 5 rows"):
        check_same([ours, others], HOSTS, WHAT)


def test_a_description_fits_into_what_is_gathered(model):
    assert len(described(model=model("x = 1"), read=from_arrays("r", X_AND_TEST)).encode()) < 400


ROWS = np.arange(4000.0).reshape(1000, 4)
X_AND_TEST = {"X": ROWS, "X_test": ROWS[:50]}


def test_readers_that_read_something_else_are_noticed(model):
    ours = described(model=model("x = 1"), read=from_arrays("r", X_AND_TEST))
    other_rows = np.random.default_rng(0).permutation(ROWS)
    for other, what in (
        ({"X": other_rows, "X_test": ROWS[:50]}, "data: 1000 rows of 4 features"),
        ({"X": ROWS, "y": np.arange(1000), "X_test": ROWS[:50], "y_test": np.arange(50)}, "data: 1000 rows"),
        ({"X": ROWS, "X_test": ROWS[1:51]}, "test data: 50 rows of 4 features"),
        ({"X": ROWS}, "test data: none, not 50 rows"),
    ):
        with pytest.raises(UserError, match=rf"^rank 1 on b .*: {what}"):
            check_same([ours, described(model=True, read=from_arrays("r", other)), ours], HOSTS, WHAT)
    other = described(model=model("x = 2"), read=from_arrays("r", X_AND_TEST))
    assert json.loads(ours)["file of the reader"] != json.loads(other)["file of the reader"]


def test_held_out_rows_are_those_of_the_reader_or_of_their_file(tmp_path):
    settings = SAME.replace("KIND", "kind: logistic")
    read = from_arrays("r", X_AND_TEST)
    assert open_held_out(from_yaml_text(settings), read).num_rows == 50
    assert open_held_out(from_yaml_text(settings), None) is None
    write_dense(tmp_path / "t.npz", ROWS[:7], np.ones(7))
    in_file = from_yaml_text(settings.replace("path: d.npz", f"path: d.npz, test: {tmp_path}/t.npz"))
    assert open_held_out(in_file, read).num_rows == 7


def test_data_are_known_by_what_they_are(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.random((300, 4)), rng.random(300)
    prints = set()
    for number, (rows, labels) in enumerate([(X, y), (X[:299], y[:299]), (X[:, :3], y), (X + 1, y), (X, y + 1)]):
        write_dense(tmp_path / f"{number}.npz", rows, labels)
        prints.add(fingerprint(open_data(str(tmp_path / f"{number}.npz"))))
    write_sparse(tmp_path / "sparse.npz", scipy.sparse.csr_array(X * (X > 0.5)), y)
    prints.add(fingerprint(open_data(str(tmp_path / "sparse.npz"))))
    assert len(prints) == 6
    os.rename(tmp_path / "0.npz", tmp_path / "moved.npz")
    assert fingerprint(open_data(str(tmp_path / "moved.npz"))) in prints
    assert fingerprint(None) == "none"


def test_with_reproducible_ranks_that_round_in_another_way_differ(monkeypatch):
    settings = SAME.replace("KIND", "kind: logistic") + "\nreproducible: true"
    first, second = (description(from_yaml_text(settings), of(np.arange(20.0)), Problem(3), None) for _ in range(2))
    assert first == second
    exp = np.exp
    monkeypatch.setattr(np, "exp", lambda values: np.nextafter(exp(values), np.inf))
    other = description(from_yaml_text(settings), of(np.arange(20.0)), Problem(3), None)
    assert [name for name in first if first[name] != other[name]] == [
        "rounding of NumPy (processor or OPENBLAS_CORETYPE)"
    ]
