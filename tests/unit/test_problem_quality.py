"""Loss and accuracy after a run: what goes wrong in measuring them costs nothing but the measure."""

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.data import Dataset
from psgc.problems import Softmax
from psgc.problems.quality import quality

X, y = np.eye(3), np.arange(3)
DATA = Dataset("train.npz", 3, 3, False, X, y)
PARAMS = np.vstack([np.eye(3), np.zeros((1, 3))]).ravel()  # every row has the largest score for its label


def measured(dataset=DATA, test=None, dtype="float64"):
    return quality(Softmax(3, 3), PARAMS.astype(dtype), dataset, test, dtype, Backend())


def test_the_test_set_is_measured_where_there_is_one():
    assert measured() == {"training_accuracy": 1.0}
    test = Dataset("test.npz", 4, 3, False, X[[0, 0, 1, 2]], np.array([0, 1, 1, 2]))
    found = measured(test=test)
    assert found == {"test_loss": pytest.approx(np.log(2 + np.e) - 3 / 4), "test_accuracy": 0.75}
    assert measured(None) == {}


def test_damaged_data_is_reported_and_the_run_goes_on(capsys):
    indices = np.array([0, 7, 2], np.int32)
    damaged = Dataset("test.npz", 3, 3, True, (np.ones(3), indices, np.arange(4, dtype=np.int32)), y)
    assert measured(test=damaged) == {}
    said = "UserError: test.npz: damaged: rows 0 to 2 hold columns outside 0..2\n"
    assert capsys.readouterr().err == f"psgc: no test loss: {said}psgc: no test accuracy: {said}"
