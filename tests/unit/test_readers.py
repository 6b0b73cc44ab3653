"""`data: {python: "module:function"}`: a reader of the user's, as a rank calls it."""

import re
import sys

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import PythonData, from_yaml_text
from psgc.data import ChunkSource, write_dense
from psgc.errors import UserError
from psgc.run.inputs import open_problem, open_test

RUN = """\
problem: {kind: logistic}
data: {python: "my_reader:read", options: {n: 4}}
optimizer: {kind: sgd, lr: 1}
iterations: 1
output: out
"""
OF_USERS = RUN.replace("{kind: logistic}", "{python: 'my_reader:Model'}")
READER = """
import numpy as np

X = np.arange(48, dtype=np.uint8).reshape(12, 4)


class Model:
    dim = 1

    def initial_params(self): ...
    def gradient(self, params, chunk, rng): ...


def read(n):
    return {"X": X[n:], "y": X[n:, 0] // 4 % 2, "X_test": X[:n], "y_test": X[:n, 0] // 4 % 2}
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_reader", None)


def opened(folder, yaml=RUN, reader=READER):
    """The rows, the test rows and the problem of a rank that has this module beside its YAML."""
    (folder / "my_reader.py").write_text(reader)
    config = from_yaml_text(yaml)
    dataset, problem = open_problem(config, str(folder / "run.yaml"))
    return dataset, open_test(config, problem, dataset, Backend()), problem


@pytest.mark.parametrize(("yaml", "dtype"), [(RUN, np.float32), (OF_USERS, np.uint8)])
def test_held_out_rows_in_a_file_are_numbers_of_the_same_kind(tmp_path, yaml, dtype):
    rows = np.arange(12, dtype=np.uint8).reshape(6, 2)
    write_dense(tmp_path / "rows.npz", rows, rows[:, 0] % 2)
    files = f"{{path: {tmp_path}/rows.npz, test: {tmp_path}/rows.npz}}"
    dataset, test, _ = opened(tmp_path, yaml.replace('{python: "my_reader:read", options: {n: 4}}', files))
    assert first(dataset).X.dtype == first(test).X.dtype == dtype


def first(dataset):
    return ChunkSource(dataset, 2, "float32", Backend()).chunk(0)


@pytest.mark.parametrize(("yaml", "dim", "dtype"), [(RUN, 5, np.float32), (OF_USERS, 1, np.uint8)])
def test_a_built_in_problem_gets_the_rows_of_a_reader_as_floats_and_one_of_the_users_as_they_are(
    tmp_path, yaml, dim, dtype
):
    dataset, test, problem = opened(tmp_path, yaml)
    assert (dataset.num_rows, test.num_rows, problem.dim) == (8, 4, dim)
    assert first(dataset).X.dtype == first(test).X.dtype == dtype


def test_without_test_rows_there_are_none(tmp_path):
    assert opened(tmp_path, OF_USERS, READER + "\ndef read(n):\n    return X\n")[1] is None


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("    return open('/nowhere')", "calling it with {'n': 4} failed: FileNotFoundError: [Errno 2] No such file or "
         "directory: '/nowhere', FOLDER/my_reader.py:18"),
        ("    return X", "gives X without labels, which logistic needs"),
        ("    return X, X[:, 1] * 1.5", ": the labels are "),
        ("    return X.reshape(12, 2, 2), X[:, 0] % 2", ": X has the shape (12, 2, 2), but logistic needs (rows, "),
        ("    return {'X': X, 'y': X[:, 0] // 4 % 2, 'X_test': X, 'y_test': X[:, 0]}", ", the test data: the labels "),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said_in_one_line_with_the_place(tmp_path, added, said):
    with pytest.raises(UserError) as refused:
        opened(tmp_path, reader=f"{READER}\ndef read(n):\n{added}\n")
    line = str(refused.value)
    assert line.startswith("data.python: my_reader:read")
    assert said.replace("FOLDER", str(tmp_path)) in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{python: 'my_reader:rows'}", r"my_reader \(.*my_reader.py\) has no rows"),
        ("{python: 'my_reader:X'}", "data.python: my_reader:X: is a ndarray, expected a function"),
        ("{python: read}", "data.python: expected 'module:function', got 'read'"),
        ("{python: 'm:f', path: d.npz}", "data.path: data.python reads the rows; leave out this key, or python"),
        ("{python: 'm:f', test: d.npz}", "data.test: data.python reads the rows; leave out this key, or python"),
        ("{python: 'm:f', options: 3}", "data.options: expected a mapping of keyword arguments, got 3"),
        ("{path: d.npz, options: {n: 1}}", "data.options: only data: {python: 'module:function'} takes options"),
        ("{}", "data.path: missing, expected a file"),
    ],
)  # fmt: skip
def test_wrong_settings(tmp_path, data, said):
    with pytest.raises(UserError, match=said) as refused:
        opened(tmp_path, RUN.replace('{python: "my_reader:read", options: {n: 4}}', data))
    assert len(str(refused.value).splitlines()) == 1


def test_the_settings_are_written_and_read_again():
    config = from_yaml_text(OF_USERS)
    assert config.data == PythonData(python="my_reader:read", options={"n": 4})
    assert from_yaml_text(config.to_yaml()) == config
    assert re.search("options:\n +n: 4", config.to_yaml())
