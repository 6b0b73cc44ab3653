"""LIBSVM text, a row a line, `label index:value index:value ...`, indices ascending from 1; `#` comments."""

import io
from array import array
from collections.abc import Iterable
from math import isinf

import numpy as np
import scipy.sparse

from psgc.errors import UserError
from psgc.regular_files import open_regular

_LARGEST_INDEX = 2**31 - 1
_LONGEST_LINE = 2**26  # characters; a file of zeros is one line
_EXPECTED = "expected 'label index:value index:value ...'"


def read_libsvm(path: str, num_features: int | None = None) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """X, (num_rows, num_features) CSR float64, and y, (num_rows,) float64.

    num_features: columns of X; without it, the largest index that occurs.
    Every process that opens a text parses all of it: convert large data once, with `write_sparse`.

    Raises UserError with file and line.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            return _parse(path, iter(lambda: file.readline(_LONGEST_LINE), ""), num_features)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected LIBSVM text (or .npz or .npy), found binary data") from error


def _parse(path: str, lines: Iterable[str], num_features: int | None) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    labels, values = array("d"), array("d")
    indices, indptr = array("i"), array("q", [0])
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if len(line) == _LONGEST_LINE:
            raise UserError(f"{where}: {_EXPECTED}, got a line of more than {_LONGEST_LINE} characters")
        text = line.partition("#")[0]
        fields = text.split()
        if not fields:
            continue
        if "_" in text or not text.isascii():  # Python would read 1_0 as 10, and the digits of any script
            strange = next((field for field in fields if "_" in field or not field.isascii()), text)
            raise UserError(f"{where}: {_EXPECTED}, got {strange[:40]!r}")
        try:
            labels.append(_number(fields[0]))
        except ValueError:
            raise UserError(f"{where}: {_EXPECTED}, got label {fields[0][:40]!r}") from None
        previous = 0
        for field in fields[1:]:
            left, _, right = field.partition(":")
            try:
                index, value = int(left), _number(right)
            except ValueError:
                raise UserError(f"{where}: {_EXPECTED}, got {field[:40]!r}") from None
            if index <= previous or index > _LARGEST_INDEX:
                raise UserError(f"{where}: index {left[:40]}: indices count from 1, ascend, stay below 2^31")
            previous = index
            indices.append(index - 1)
            values.append(value)
        indptr.append(len(values))
    columns = max(indices, default=-1) + 1
    if num_features is not None and columns > num_features:
        raise UserError(f"{path}: feature {columns} occurs, but the data it must match has {num_features}")
    shape = (len(labels), columns if num_features is None else num_features)
    X = scipy.sparse.csr_array(
        (np.frombuffer(values), np.frombuffer(indices, np.intc), np.frombuffer(indptr, np.int64)), shape=shape
    )
    return X, np.frombuffer(labels)


def _number(text: str) -> float:
    """As `float` has it, but what only rounding makes infinite is no number. Raises ValueError."""
    value = float(text)
    if isinf(value) and "n" not in text.lower():  # an infinity that is meant has an n
        raise ValueError
    return value
