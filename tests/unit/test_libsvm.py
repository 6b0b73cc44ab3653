"""LIBSVM text: what is wrong is named by file and line. tests/unit/test_fuzz_data.py reads any text."""

import gzip
import os
import re

import numpy as np
import pytest

from psgc.data import libsvm
from psgc.data.libsvm import read_libsvm
from psgc.errors import UserError


def read(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "data.svm"
    path.write_text(text, encoding="utf-8")
    return read_libsvm(str(path))


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


LINE = "expected 'label index:value index:value ...' (finite numbers), got "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 1:2\nx 1:2\n", f"2: {LINE}label 'x'"),
        ("1 1:2\n\n0 1:2 7\n", f"3: {LINE}'7'"),
        ("1 1:2 qid:3\n", f"1: {LINE}'qid:3'"),
        ("1 1:nan\n", f"1: {LINE}'1:nan'"),
        ("1 1:1e999\n", f"1: {LINE}'1:1e999'"),
        ("-1e999 1:1\n", f"1: {LINE}label '-1e999'"),
        ("1\x85 1:2\n", f"1: {LINE}'1\\x85 1:2"),
        ("1 -0:1\n", "1: index -0: indices count from 0 or 1"),
        ("1 2:2 2:3\n", "1: index 2: indices count from 0 or 1, ascend"),
        ("1 2147483648:2\n", "stay below 2^31"),
    ],
)
def test_what_is_wrong_is_named(tmp_path_factory, text, said):
    with pytest.raises(UserError, match=rf"data\.svm:.*{re.escape(said)}"):
        read(tmp_path_factory, text)


def test_what_is_no_text_of_lines_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.dat").write_bytes(b"\x93NUMPY\x01\xff")
    with pytest.raises(UserError, match=r"a\.dat: expected LIBSVM text"):
        read_libsvm(str(tmp_path / "a.dat"))
    monkeypatch.setattr(libsvm, "_LONGEST_LINE", 16)
    (tmp_path / "a.dat").write_text("1 1:2\n1 1:2 2:3 3:4 4:5\n")
    with pytest.raises(UserError, match=r"a\.dat:2: .*, got a line of more than 16 characters"):
        read_libsvm(str(tmp_path / "a.dat"))
