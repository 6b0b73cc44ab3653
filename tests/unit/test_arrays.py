"""Arrays that a reader of the user's returns, as a data set."""

import re

import numpy as np
import pytest
import scipy.sparse

from psgc.data import from_arrays
from psgc.data.dataset import EXPECTED_ARRAYS
from psgc.errors import UserError

X = np.arange(24.0).reshape(6, 4)
y = np.arange(6)
WHERE = "data.python: my_data:read"


def test_what_a_reader_may_return():
    for returned in ((X, y), {"X": X, "y": y}, {"X": X, "y": y, "X_test": None}):
        dataset = from_arrays(WHERE, returned)
        assert (dataset.path, dataset.num_rows, dataset.num_features, dataset.sparse) == (WHERE, 6, 4, False)
        assert np.shares_memory(dataset.features, X)
        assert not dataset.features.flags.writeable
        assert (dataset.y == y).all()
        assert dataset.held_out is None
    assert X.flags.writeable  # his own array is as it was
    assert from_arrays(WHERE, X).y is None
    assert from_arrays(WHERE, (X.reshape(6, 2, 2), [1, 0] * 3)).row_shape == (2, 2)


def test_test_rows_come_with_the_others():
    dataset = from_arrays(WHERE, {"X": X, "y": y, "X_test": X[:2], "y_test": y[:2]})
    assert (dataset.held_out.num_rows, dataset.held_out.y.tolist()) == (2, [0, 1])
    assert dataset.held_out.path == f"{WHERE}, the test data"
    assert from_arrays(WHERE, {"X": X, "X_test": X[:2]}).held_out.y is None


def test_a_memory_map_stays_one(tmp_path):
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.shares_memory(from_arrays(WHERE, stored).features, stored)


def test_a_sparse_matrix_of_any_layout():
    for layout in (scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_array):
        dataset = from_arrays(WHERE, (layout(X), y))
        assert (dataset.sparse, dataset.num_features) == (True, 4)
        assert (dataset.rows(1, 3)[0].toarray() == X[1:3]).all()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, f"returned a NoneType; {EXPECTED_ARRAYS}"),
        ([X, y], f"returned a list of 2; {EXPECTED_ARRAYS}"),
        ((X, y, X, y), f"returned a tuple of 4; {EXPECTED_ARRAYS}"),
        ({"x": X}, f"returned a mapping with x; {EXPECTED_ARRAYS}"),
        ({"X": None, "y": y}, f"returned a mapping without X; {EXPECTED_ARRAYS}"),
        ({"X": X, "y_test": y}, "returned a mapping with y_test, but without X_test"),
        ({"X": X, "y": y, "X_test": X}, "returned a mapping with y, but without y_test"),
        ({"X": X, "X_test": X, "y_test": y}, "returned a mapping with y_test, but without y"),
        ({"X": X, "X_test": X[:, 1:]}, ", the test data: has 3 features, but data.python: my_data:read, which it "),
        (y, ": expected X of shape (rows, features) or with more dimensions, found (6,)"),
        ((X, y[1:]), ": expected one label for each of 6 rows, found y of shape (5,)"),
        ((X, ["a"] * 6), ": expected numbers in y, found dtype <U1"),
        ((X.astype(object), y), ": expected numbers in X, found dtype object"),
        (([[1], [1, 2]], y), ": X is a list, no array: ValueError: "),
        (X[:0], ": holds no data: 0 rows of 4 features"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(returned, said):
    with pytest.raises(UserError, match=f"^{re.escape(WHERE)} ?{re.escape(said.lstrip())}") as refused:
        from_arrays(WHERE, returned)
    assert len(str(refused.value).splitlines()) == 1
