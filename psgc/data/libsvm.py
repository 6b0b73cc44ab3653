"""LIBSVM text, a row a line, `label index:value index:value ...`, indices ascending; `#` comments, `qid:`, gzip.

A query number, `qid:7` after the label, is ignored.
"""

import gzip
import io
import re
import zlib
from array import array
from collections.abc import Iterable
from math import isfinite
from typing import TypeAlias

import numpy as np

from psgc.data.npz import check_memory
from psgc.disk import open_regular
from psgc.errors import UserError

_LARGEST_INDEX = 2**31 - 1
_LONGEST_LINE = 2**26  # characters; a file of zeros is one line
_CHECK_EVERY = 1 << 20  # labels and values between two checks of the memory
_EXPECTED = "expected 'label index:value index:value ...' (finite numbers)"
_WHOLE = re.compile("[+-]?[0-9]+")
_QUERY = re.compile("qid:-?[0-9]+")


Arrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read_libsvm(path: str, copies: int = 1) -> Arrays:
    """The rows of a text as CSR arrays, and their labels. A file called `.gz` is decompressed.

    copies: number of processes of this host that read the file; each keeps all of it

    Returns values (n,) float64, indices (n,) int32 as written, indptr (rows + 1,) int64, and labels (rows,), int64 if
    all are written as whole numbers, else float64. Raises UserError with file and line.
    """
    try:
        with open_regular(path) as file:
            stream = gzip.GzipFile(fileobj=file) if path.lower().endswith(".gz") else file
            with io.TextIOWrapper(stream, encoding="utf-8") as lines:
                return _parse(path, iter(lambda: lines.readline(_LONGEST_LINE), ""), copies)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {(error.strerror or str(error)).lower()}") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected LIBSVM text (or .npz or .npy), found binary data") from error


def _parse(path: str, lines: Iterable[str], copies: int) -> Arrays:
    values, indices, indptr = array("d"), array("i"), array("q", [0])
    labels, whole_labels = array("d"), array("q")
    next_check = _CHECK_EVERY
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if len(line) == _LONGEST_LINE:
            raise UserError(f"{where}: {_EXPECTED}, got a line of more than {_LONGEST_LINE} characters")
        text = line.partition("#")[0]
        fields = text.split()
        if not fields:
            continue
        if "_" in text or not text.isascii():  # Python would read 1_0 as 10, and the digits of any script
            raise UserError(f"{where}: {_EXPECTED}, got {text[:40]!r}")
        label = fields[0]
        try:
            labels.append(_number(label))
            if len(whole_labels) == len(labels) - 1 and _WHOLE.fullmatch(label) and abs(labels[-1]) < 2**63:
                whole_labels.append(int(label))
        except ValueError:
            raise UserError(f"{where}: {_EXPECTED}, got label {label[:40]!r}") from None
        previous = -1
        for field in fields[2 if len(fields) > 1 and _QUERY.fullmatch(fields[1]) else 1 :]:
            left, _, right = field.partition(":")
            try:
                index, value = int(left), _number(right)
            except ValueError:
                raise UserError(f"{where}: {_EXPECTED}, got {field[:40]!r}") from None
            if index <= previous or index > _LARGEST_INDEX or left.startswith("-"):
                raise UserError(f"{where}: index {left[:40]}: indices count from 0 or 1, ascend, stay below 2^31")
            previous = index
            indices.append(index)
            values.append(value)
        indptr.append(len(values))
        if len(values) + len(labels) >= next_check:
            next_check += _CHECK_EVERY
            needed = sum(len(part) * part.itemsize for part in (values, indices, indptr, labels, whole_labels))
            check_memory(path, needed, copies, "convert it once with psgc.data.write_sparse, then it is mapped")
    whole = len(whole_labels) == len(labels)
    found = np.frombuffer(whole_labels, np.int64) if whole else np.frombuffer(labels)
    return np.frombuffer(values), np.frombuffer(indices, np.intc), np.frombuffer(indptr, np.int64), found


def _number(text: str) -> float:
    """The finite float that `text` is. Raises ValueError."""
    value = float(text)
    if not isfinite(value):
        raise ValueError
    return value
