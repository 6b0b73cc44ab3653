"""Makes a data set from the arrays that a user's function returns."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse

from psgc.data.dataset import Dataset, checked_like, dense, sparse
from psgc.errors import UserError, one_line

KEYS = ("X", "y", "X_test", "y_test")
EXPECTED = f"expected (X, y), X, or a mapping with some of {', '.join(KEYS)}"


def from_arrays(where: str, returned: Any) -> Dataset:
    """A data set of the rows in `returned`, which are not copied. `held_out` has X_test and y_test. Raises UserError.

    where: the name of the function, for errors
    returned: (X, y), X, or a mapping with X and perhaps y, X_test, y_test. X is an array (rows, features), or with more
        dimensions, or a sparse matrix of SciPy; y (rows,) contains numbers.
    """
    if isinstance(returned, tuple) and len(returned) == 2:
        returned = {"X": returned[0], "y": returned[1]}
    elif not isinstance(returned, Mapping):
        if not hasattr(returned, "shape"):
            size = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
            raise UserError(f"{where} returned a {type(returned).__name__}{size}; {EXPECTED}")
        returned = {"X": returned}
    given = {name: value for name, value in returned.items() if value is not None}
    if unknown := [str(name) for name in given if name not in KEYS]:
        raise UserError(f"{where} returned a mapping with {', '.join(unknown)[:200]}; {EXPECTED}")
    if "X" not in given:
        raise UserError(f"{where} returned a mapping without X; {EXPECTED}")
    dataset = _from(where, given["X"], given.get("y"))
    if "X_test" not in given:
        if "y_test" in given:
            raise UserError(f"{where} returned a mapping with y_test, but without X_test")
        return dataset
    if ("y" in given) != ("y_test" in given):
        one, other = ("y", "y_test") if "y" in given else ("y_test", "y")
        raise UserError(f"{where} returned a mapping with {one}, but without {other}")
    test = _from(f"{where}, the test data", given["X_test"], given.get("y_test"))
    return replace(dataset, held_out=checked_like(test, dataset))


def _from(where: str, X: Any, y: Any) -> Dataset:
    labels = None if y is None else _array(where, "y", y)
    is_sparse: bool = scipy.sparse.issparse(X)
    if not is_sparse:
        return dense(where, _array(where, "X", X), labels)
    csr = scipy.sparse.csr_array(X)
    return sparse(where, csr.data, csr.indices, csr.indptr, np.array(csr.shape), labels)


def _array(where: str, name: str, value: Any) -> np.ndarray:
    """`value` as a read-only array; a view if it is an array or a memory map."""
    try:
        array = np.asarray(value).view()
    except Exception as error:  # a user's class may raise anything
        raise UserError(f"{where}: {name} is a {type(value).__name__}, no array: {one_line(error)}") from error
    array.setflags(write=False)
    return array
