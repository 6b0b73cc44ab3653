"""open_data: four formats give the same rows, and any damage gives one line of UserError and nothing else."""

import gzip

import numpy as np
import pytest

from psgc.data import open_data, write_dense, write_sparse
from psgc.errors import UserError

X = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [4.0, 5.0, 6.0]])
y = np.array([0, 1, 1, 0])


def files(folder):
    """The same data in every format: (path, labels)."""
    write_dense(folder / "dense.npz", X, y)
    write_sparse(folder / "sparse.npz", X, y)
    np.savez_compressed(folder / "packed.npz", X=X, y=y)
    (folder / "packed.npz").rename(folder / "packed.NPZ")
    np.save(folder / "X.npy", X)
    np.save(folder / "y.npy", y)
    np.savez(folder / "features.npz", X=X)
    lines = (
        " ".join([str(label), *(f"{j + 1}:{value}" for j, value in enumerate(row) if value)])
        for row, label in zip(X, y, strict=True)
    )
    (folder / "text.svm").write_text("\n".join(lines))
    labels = str(folder / "y.npy")
    names = ("dense.npz", "sparse.npz", "packed.NPZ", "text.svm")
    return [(str(folder / name), None) for name in names] + [
        (str(folder / "X.npy"), labels),
        (str(folder / "features.npz"), labels),
    ]


def test_every_format_gives_the_same_rows(tmp_path):
    for path, labels in files(tmp_path):
        dataset = open_data(path, labels)
        assert (dataset.num_rows, dataset.num_features, dataset.path) == (4, 3, path)
        assert dataset.sparse == ("sparse" in path or "text" in path)
        for lo, hi in ((0, 4), (1, 2), (1, 4)):
            rows, row_labels = dataset.rows(lo, hi)
            assert np.array_equal(rows.toarray() if dataset.sparse else rows, X[lo:hi])
            assert np.array_equal(row_labels, y[lo:hi])


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


CSR = {
    "data": np.ones(2), "indices": np.array([0, 2]), "indptr": np.array([0, 1, 2]),
    "shape": np.array([2, 3]), "y": np.ones(2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"A": X}, "expected X and y, or data, indices, indptr, shape and y"),
        ({"X": X}, "holds features only"),
        ({"X": X[0], "y": y}, r"expected X of shape \(rows, features\) or with more dimensions, found \(3,\)"),
        ({"X": np.zeros((4, 2, 0)), "y": y}, "holds no data: 4 rows of 0 features"),
        ({"X": X, "y": y, "weights": y}, "holds 'weights' besides, which would not be used"),
        ({**CSR, "X": X}, "holds 'X' besides, which would not be used"),
        ({"X": X, "y": y[:3]}, r"one label for each of 4 rows, found y of shape \(3,\)"),
        ({"X": X, "y": y[:, None]}, r"one label for each of 4 rows, found y of shape \(4, 1\)"),
        ({"X": X, "y": np.array([b"a", b"b", b"c", b"d"])}, "expected numbers in y, found dtype"),
        ({"X": X * 1j, "y": y}, "complex128"),
        ({"X": X[:0], "y": y[:0]}, "holds no data: 0 rows of 3 features"),
        ({**CSR, "indptr": np.array([0, 2, 1])}, "expected indptr of 3 entries ascending from 0 to 2"),
        ({**CSR, "indptr": np.array([0, 3, 2])}, "expected indptr of 3 entries ascending from 0 to 2"),
        ({**CSR, "indptr": np.array([0, 2])}, "expected indptr of 3 entries ascending from 0 to 2"),
        ({**CSR, "indices": np.ones(2)}, "expected whole numbers in indices, found dtype float64"),
        ({**CSR, "data": np.ones(3)}, "data and indices of one length"),
        ({**CSR, "shape": np.array([2, 3, 1])}, r"expected shape \(2,\)"),
        ({**CSR, "shape": np.array([2, -3])}, r"expected shape \(2,\)"),
        ({**CSR, "format": np.array(b"csc")}, "expected sparse format csr, found b'csc'"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, said):
    path = save(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=said) as caught:
        open_data(path)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("column", [-1, 3])
def test_a_column_that_does_not_exist_is_refused_when_its_rows_are_read(tmp_path, column):
    path = save(tmp_path / "a.npz", **{**CSR, "indices": np.array([0, column])})
    dataset = open_data(path)
    dataset.rows(0, 1)
    with pytest.raises(UserError, match=r"rows 1 to 1 hold columns outside 0\.\.2"):
        dataset.rows(1, 2)
    with pytest.raises(UserError, match=r"rows 1 to 1 hold columns outside 0\.\.2"):
        dataset.take(np.array([1]))


def test_labels_given_twice_or_not_at_all_are_refused(tmp_path):
    files(tmp_path)
    labels = str(tmp_path / "y.npy")
    for name in ("dense.npz", "text.svm"):
        with pytest.raises(UserError, match="leave out labels"):
            open_data(str(tmp_path / name), labels)
    with pytest.raises(UserError, match=r"name the \.npy file with y as labels"):
        open_data(str(tmp_path / "X.npy"))


def test_a_test_set_must_have_the_features_of_its_training_set(tmp_path):
    write_dense(tmp_path / "wide.npz", np.ones((4, 5)), y)
    wide = open_data(str(tmp_path / "wide.npz"))
    for path, labels in files(tmp_path):
        if path.endswith(".svm"):
            assert open_data(path, like=wide).rows(0, 4)[0].shape == (4, 5)
        else:
            with pytest.raises(
                UserError, match=r"has 3 features, but .*wide\.npz, which it must match, has 5 features"
            ):
                open_data(path, labels, wide)


def test_rows_of_any_shape_are_opened_as_they_are(tmp_path):
    images = np.arange(4.0 * 2 * 3 * 5).reshape(4, 2, 3, 5)
    write_dense(tmp_path / "images.npz", images, y)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "y.npy", y)
    dataset = open_data(str(tmp_path / "images.npz"))
    assert (dataset.num_rows, dataset.num_features, dataset.row_shape) == (4, 30, (2, 3, 5))
    assert np.array_equal(dataset.rows(1, 3)[0], images[1:3])
    alone = open_data(str(tmp_path / "images.npy"), str(tmp_path / "y.npy"), dataset)
    assert np.array_equal(alone.rows(0, 4)[0], images)
    write_dense(tmp_path / "flat.npz", images.reshape(4, 30), y)
    with pytest.raises(UserError, match=r"flat\.npz: has 30 features, but .* has rows of shape \(2, 3, 5\)"):
        open_data(str(tmp_path / "flat.npz"), like=dataset)


ONE, ZERO = "1 1:5 3:7\n0 2:6\n", "1 0:5 2:7\n0 1:6\n"  # the same rows
MATRIX = [[5, 0, 7], [0, 6, 0]]


@pytest.mark.parametrize(
    ("content", "index_base", "like", "base", "rows"),
    [
        (ONE, "auto", None, 1, MATRIX),
        (ONE, 1, None, 1, MATRIX),
        (ZERO, "auto", None, 0, MATRIX),
        (ZERO, 0, None, 0, MATRIX),
        ("1 1:5\n", "auto", None, 1, [[5]]),  # it could be either
        ("1 1:5\n", 0, None, 0, [[0, 5]]),
        ("1 2:3\n", "auto", ZERO, 0, [[0, 0, 3]]),  # as its training text
        ("1 2:3\n", "auto", ONE, 1, [[0, 3, 0]]),
        ("1 2:3\n", 1, ZERO, 1, [[0, 3, 0]]),  # unless it is told
        ("1 1:5\n1 0:5\n", 1, None, None, "row 1 holds the index 0, but data.index_base is 1"),
        ("1\n1 0:3\n", "auto", ONE, None, "row 1 holds the index 0, but FOLDER/train.svm holds none and counts from 1; "
         "give data.index_base: 0 if both count from 0"),
        ("1 3:3\n", "auto", ZERO, None, "holds the index 3, counted from 0 (data.index_base), but FOLDER/train.svm has "
         "3 features"),
    ],
)  # fmt: skip
def test_a_text_counts_from_0_or_from_1(tmp_path, content, index_base, like, base, rows):
    def opened(name, content, **how):
        (tmp_path / name).write_text(content)
        return open_data(str(tmp_path / name), **how)

    train = opened("train.svm", like) if like else None
    if base is None:
        with pytest.raises(UserError) as caught:
            opened("a.svm", content, like=train, index_base=index_base)
        assert str(caught.value) == f"{tmp_path}/a.svm: {rows.replace('FOLDER', str(tmp_path))}"
    else:
        dataset = opened("a.svm", content, like=train, index_base=index_base)
        assert dataset.index_base == base
        assert dataset.rows(0, len(rows))[0].toarray().tolist() == rows


@pytest.mark.parametrize("zero_based", [True, False])
@pytest.mark.parametrize("query_id", [None, np.array([3, 3, 7, 7])])
@pytest.mark.parametrize("name", ["a.svm", "a.svm.gz"])
def test_what_scikit_learn_writes_is_read_as_scikit_learn_reads_it(tmp_path, zero_based, query_id, name):
    datasets = pytest.importorskip("sklearn.datasets")
    path = str(tmp_path / name)
    with gzip.open(path, "wb") if name.endswith(".gz") else open(path, "wb") as file:
        datasets.dump_svmlight_file(X, y, file, zero_based=zero_based, query_id=query_id, comment="made by a test")
    theirs, their_labels = datasets.load_svmlight_file(path)
    dataset = open_data(path)
    ours, labels = dataset.rows(0, 4)
    assert np.array_equal(ours.toarray(), theirs.toarray())
    assert np.array_equal(ours.toarray(), X)
    assert np.array_equal(labels, their_labels)
    assert labels.dtype == np.int64
    assert dataset.index_base == (0 if zero_based else 1)
