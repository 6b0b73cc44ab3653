"""LIBSVM text: what is written comes back exactly, and what is wrong is named by file and line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.data.libsvm import read_libsvm
from psgc.errors import UserError

values = st.floats(allow_nan=False, allow_infinity=False)
rows = st.lists(st.tuples(values, st.dictionaries(st.integers(1, 40), values)), min_size=1, max_size=8)


def read(tmp_path_factory, text, num_features=None):
    path = tmp_path_factory.getbasetemp() / "data.svm"
    path.write_text(text, encoding="utf-8")
    return read_libsvm(str(path), num_features)


@given(rows=rows)
def test_round_trip(tmp_path_factory, rows):
    text = "".join(
        " ".join([repr(label), *(f"{index}:{row[index]!r}" for index in sorted(row))]) + "\n" for label, row in rows
    )
    X, y = read(tmp_path_factory, text, num_features=40)
    expected = np.zeros((len(rows), 40))
    for i, (_, row) in enumerate(rows):
        for index, value in row.items():
            expected[i, index - 1] = value
    assert np.array_equal(X.toarray(), expected)
    assert y.tolist() == [label for label, _ in rows]


@given(text=st.text(alphabet="0123456789.:-+e# \n\t_nai\u0663\x00", max_size=60))
def test_any_text_is_data_or_a_user_error(tmp_path_factory, text):
    said = ""
    try:
        X, y = read(tmp_path_factory, text)
        assert X.shape[0] == len(y)
    except UserError as error:
        said = str(error)
    assert "\n" not in said


def test_comments_and_blank_lines_are_skipped_and_the_largest_index_counts(tmp_path_factory):
    X, y = read(tmp_path_factory, "# made by hand\n\n+1 2:3 # first\n-1\n")
    assert X.toarray().tolist() == [[0, 3], [0, 0]]
    assert y.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 1:2\nx 1:2\n", "data.svm:2: expected 'label index:value index:value ...', got label 'x'"),
        ("1 1:2\n\n0 1:2 7\n", "data.svm:3: expected 'label index:value index:value ...', got '7'"),
        ("1 qid:3 1:2\n", "data.svm:1: expected 'label index:value index:value ...', got 'qid:3'"),
        ("1\x85 1:2\n", "data.svm:1: expected 'label index:value index:value ...', got '1\\x85 1:2"),
        ("1 1:1e999\n", "data.svm:1: expected 'label index:value index:value ...', got '1:1e999'"),
        ("-1e999 1:1\n", "data.svm:1: expected 'label index:value index:value ...', got label '-1e999'"),
        ("1 0:2\n", "data.svm:1: index 0: indices count from 1"),
        ("1 2:2 2:3\n", "data.svm:1: index 2: indices count from 1, ascend"),
        ("1 99999999999:2\n", "stay below 2^31"),
        ("1 4:2\n", "feature 4 occurs, but the data it must match has 3"),
    ],
)
def test_what_is_wrong_is_named(tmp_path_factory, text, said):
    with pytest.raises(UserError) as caught:
        read(tmp_path_factory, text, num_features=3)
    assert said in str(caught.value)


def test_binary_data_is_no_text(tmp_path):
    (tmp_path / "a.dat").write_bytes(b"\x93NUMPY\x01\xff")
    with pytest.raises(UserError, match=r"a\.dat: expected LIBSVM text"):
        read_libsvm(str(tmp_path / "a.dat"))
