"""LIBSVM text: what is written comes back exactly, and what is wrong is named by file and line."""

import gzip
import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.data import libsvm
from psgc.data.libsvm import read_libsvm
from psgc.errors import UserError

values = st.floats(allow_nan=False, allow_infinity=False)
rows = st.lists(st.tuples(values, st.dictionaries(st.integers(0, 40), values)), min_size=1, max_size=8)


def read(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "data.svm"
    path.write_text(text, encoding="utf-8")
    return read_libsvm(str(path))


def entries(values, indices, indptr):
    """A dictionary for each row."""
    pairs = list(zip(indices.tolist(), values.tolist(), strict=True))
    return [dict(pairs[lo:hi]) for lo, hi in itertools.pairwise(indptr.tolist())]


@given(rows=rows)
def test_round_trip(tmp_path_factory, rows):
    text = "".join(
        " ".join([repr(label), *(f"{index}:{row[index]!r}" for index in sorted(row))]) + "\n" for label, row in rows
    )
    *arrays, labels = read(tmp_path_factory, text)
    assert entries(*arrays) == [row for _, row in rows]
    assert labels.tolist() == [label for label, _ in rows]


def test_comments_blank_lines_and_query_numbers_are_skipped(tmp_path_factory):
    *arrays, labels = read(tmp_path_factory, "# made by hand\n\n+1 qid:7 2:3 # first\n-1 qid:8\n")
    assert entries(*arrays) == [{2: 3}, {}]
    assert labels.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (["1", "-2", "+3"], np.int64),
        (["9007199254740993", "0"], np.int64),  # 2^53 + 1, which is no float64
        (["1", "2.0"], np.float64),
        (["1.5", "2"], np.float64),
        (["9223372036854775808"], np.float64),
    ],
)
def test_labels_are_whole_numbers_when_all_are_written_so(tmp_path_factory, labels, dtype):
    found = read(tmp_path_factory, "".join(f"{label} 1:0.5\n" for label in labels))[-1]
    assert found.dtype == dtype
    assert found.tolist() == [int(label) if dtype == np.int64 else float(label) for label in labels]


def test_a_damaged_gzip_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.svm.gz"
    whole = gzip.compress(b"1 1:2\n" * 1000)
    for content in (whole[:-20], b"1 1:2\n", whole[:20] + b"\xff" * 20 + whole[40:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.svm\.gz: (damaged gzip file|cannot read it|expected)") as caught:
            read_libsvm(str(path))
        assert "\n" not in str(caught.value)


def test_a_text_that_all_processes_of_a_host_cannot_hold_is_refused_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(libsvm, "_CHECK_EVERY", 100)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 20, "SC_PAGE_SIZE": 1000}[name])
    path = tmp_path / "a.svm.gz"
    path.write_bytes(gzip.compress(b"1 1:2\n" * 150))  # 36 bytes a row
    assert len(read_libsvm(str(path), 2)[-1]) == 150
    with pytest.raises(UserError, match=r"a\.svm\.gz: it cannot be mapped .* each of the 9 processes on this host"):
        read_libsvm(str(path), 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 1:2\nx 1:2\n", "data.svm:2: expected 'label index:value index:value ...' (finite numbers), got label 'x'"),
        ("1 1:2\n\n0 1:2 7\n", "data.svm:3: expected 'label index:value index:value ...' (finite numbers), got '7'"),
        ("1 1:2 qid:3\n", "data.svm:1: expected 'label index:value index:value ...' (finite numbers), got 'qid:3'"),
        ("1 1:nan\n", "data.svm:1: expected 'label index:value index:value ...' (finite numbers), got '1:nan'"),
        ("1 -0:1\n", "data.svm:1: index -0: indices count from 0 or 1"),
        ("1\x85 1:2\n", "data.svm:1: expected 'label index:value index:value ...' (finite numbers), got '1\\x85 1:2"),
        ("1 1:1e999\n", "data.svm:1: expected 'label index:value index:value ...' (finite numbers), got '1:1e999'"),
        (
            "-1e999 1:1\n",
            "data.svm:1: expected 'label index:value index:value ...' (finite numbers), got label '-1e999'",
        ),
        ("1 2:2 2:3\n", "data.svm:1: index 2: indices count from 0 or 1, ascend"),
        ("1 99999999999:2\n", "stay below 2^31"),
    ],
)
def test_what_is_wrong_is_named(tmp_path_factory, text, said):
    with pytest.raises(UserError) as caught:
        read(tmp_path_factory, text)
    assert said in str(caught.value)


def test_binary_data_is_no_text(tmp_path):
    (tmp_path / "a.dat").write_bytes(b"\x93NUMPY\x01\xff")
    with pytest.raises(UserError, match=r"a\.dat: expected LIBSVM text"):
        read_libsvm(str(tmp_path / "a.dat"))
