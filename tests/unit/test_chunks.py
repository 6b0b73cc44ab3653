"""Chunks: rows shared out whole, used in place where the file allows, sampled without bias."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.data import Chunk, ChunkSource, Dataset, from_arrays, open_data, write_dense, write_sparse
from psgc.errors import UserError

rng = np.random.default_rng(0)
X = rng.standard_normal((23, 5))
y = rng.integers(0, 2, 23)


def file_backed(array):
    """Whether the memory of `array` is that of a mapped file."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def whole(dataset, num_chunks, dtype="float64"):
    source = ChunkSource(dataset, num_chunks, dtype, Backend())
    return [source.chunk(i) for i in range(num_chunks)]


@given(num_rows=st.integers(1, 60), num_chunks=st.integers(1, 60))
def test_chunks_share_out_every_row_once(num_rows, num_chunks):
    labels = np.arange(num_rows)
    dataset = Dataset("a.npz", num_rows, 1, False, labels[:, None], labels)
    if num_chunks > num_rows:
        with pytest.raises(UserError, match=f"a.npz: {num_rows} rows cannot be cut into {num_chunks} chunks"):
            ChunkSource(dataset, num_chunks, "float64", Backend())
        return
    chunks = whole(dataset, num_chunks)
    assert np.concatenate([chunk.y for chunk in chunks]).tolist() == labels.tolist()
    assert [chunk.index for chunk in chunks] == list(range(num_chunks))
    assert sum(chunk.weight for chunk in chunks) == pytest.approx(1)
    for i, chunk in enumerate(chunks):
        assert chunk.y[0] == i * num_rows // num_chunks
        assert chunk.weight == len(chunk.y) / num_rows


@pytest.mark.parametrize("stored", ["uint8", ">i4", "int64", "uint64", "bool"])
def test_whole_numbers_stay_as_they_are_for_a_model_of_the_users(stored):
    images = np.arange(6 * 3 * 2).reshape(6, 3, 2).astype(stored)
    if stored == "uint64":
        images[5, 2, 1] = 2**64 - 1  # which no float holds
    source = ChunkSource(
        Dataset("a.npz", 6, 6, False, images, np.arange(6), keeps_integers=True), 2, "float32", Backend()
    )
    rows = np.array([4, 1])
    for chunk, expected in ((source.chunk(1), images[3:]), (source.take(0, rows, 0.5), images[rows])):
        assert chunk.X.dtype == np.dtype(stored).newbyteorder("=")
        assert (expected == chunk.X).all()
        assert chunk.y.dtype == np.int64
    drawn = source.sample(0, 2, np.random.default_rng(0))
    assert drawn.X.shape == (2, 3, 2)
    if stored == "uint8":
        assert np.shares_memory(source.chunk(1).X, images)


def test_floats_and_sparse_rows_become_those_of_the_run_for_any_model():
    csr = scipy.sparse.csr_array(np.eye(4, dtype=np.int64))
    arrays = (csr.data, csr.indices, csr.indptr)
    for dataset in (
        Dataset("a.npz", 4, 4, True, arrays, np.arange(4) + 0.5, keeps_integers=True),
        Dataset("a.npz", 4, 4, False, np.eye(4), np.arange(4) + 0.5, keeps_integers=True),
    ):
        chunk = ChunkSource(dataset, 2, "float32", Backend()).chunk(0)
        assert (chunk.X.dtype, chunk.y.dtype) == (np.float32, np.float32)


def test_rows_without_labels():
    source = ChunkSource(Dataset("a.npz", 23, 5, False, X, None), 4, "float64", Backend())
    chunks = [source.chunk(1), source.take(0, np.array([3, 1]), 0.5), source.sample(2, 2, rng), next(source.each())]
    assert [chunk.y for chunk in chunks] == [None] * 4
    broken = X.copy()
    broken[7, 2] = np.inf
    with pytest.raises(UserError, match="row 7, column 2"):
        ChunkSource(Dataset("a.npz", 23, 5, False, broken, None), 4, "float64", Backend()).chunk(1)


def test_each_chunk_in_turn_is_read_when_it_is_taken_and_not_kept(monkeypatch):
    reads, rows, read = [], X.copy(), Dataset.rows
    monkeypatch.setattr(Dataset, "rows", lambda self, lo, hi: reads.append(lo) or read(self, lo, hi))
    source = ChunkSource(Dataset("a.npz", 23, 5, False, rows, y), 4, "float64", Backend())
    kept = source.chunk(1)
    chunks = source.each()
    assert reads == [5]
    first, second = next(chunks), next(chunks)
    assert reads == [5, 0]
    assert second is kept
    assert (X[:5] == first.X).all()
    assert (first.index, first.weight) == (0, 5 / 23)
    assert [chunk.index for chunk in chunks] == [2, 3]
    assert next(source.each()) is not first
    rows[22, 4] = np.nan
    with pytest.raises(UserError, match="row 22, column 4"):
        list(source.each())


def test_files_of_the_right_type_are_used_in_place(tmp_path):
    write_dense(tmp_path / "dense.npz", X, y.astype(float))
    for chunk in whole(open_data(str(tmp_path / "dense.npz")), 4):
        assert file_backed(chunk.X)
        assert file_backed(chunk.y)
        assert chunk.X.flags.aligned
    for index_type in (np.int32, np.int64):
        csr = scipy.sparse.csr_array(np.where(X > 0, X, 0))
        csr.indices, csr.indptr = csr.indices.astype(index_type), csr.indptr.astype(index_type)
        write_sparse(tmp_path / "sparse.npz", csr, y)
        for chunk in whole(open_data(str(tmp_path / "sparse.npz")), 4):
            assert file_backed(chunk.X.data)
            assert file_backed(chunk.X.indices)


@pytest.mark.parametrize("stored", [X.astype("f4"), np.asfortranarray(X), X.astype(">f8")])
def test_anything_else_is_converted_once(tmp_path, stored):
    np.savez(tmp_path / "a.npz", X=stored, y=y)
    source = ChunkSource(open_data(str(tmp_path / "a.npz")), 4, "float64", Backend())
    chunk = source.chunk(2)
    assert source.chunk(2) is chunk
    assert not file_backed(chunk.X)
    assert chunk.X.dtype == np.float64
    assert chunk.X.flags.c_contiguous
    assert np.array_equal(chunk.X, stored[11:17])


@pytest.mark.parametrize("stored", [X.astype("f4"), X])
def test_chunks_that_are_joined_again_and_again_are_kept_once(tmp_path, stored):
    """Single ones and joined ones share the memory, whatever was asked for first."""
    np.savez(tmp_path / "a.npz", X=stored, y=y)
    source = ChunkSource(open_data(str(tmp_path / "a.npz")), 6, "float64", Backend())
    assert source.joins
    ends = [i * len(X) // 6 for i in range(7)]
    for first, many in [(1, 2), (0, 3), (1, 2), (4, 2), (3, 3)]:
        rows, before = slice(ends[first], ends[first + many]), source.joined(first, many)
        again, single = source.joined(first, many), source.chunk(first + 1)
        assert np.array_equal(again.X, stored[rows])
        assert np.array_equal(again.y, y[rows])
        assert again.index == first
        assert again.weight == pytest.approx((rows.stop - rows.start) / len(X))
        assert again.X.flags.c_contiguous
        assert np.shares_memory(again.X, before.X)
        assert np.shares_memory(again.X, single.X)
        assert np.array_equal(single.X, stored[ends[first + 1] : ends[first + 2]])


def test_columns_of_one_array_are_joined_without_a_copy_each_time():
    """A single row of such features would be contiguous."""
    data = np.hstack([y[:, None].astype(float), X])
    source = ChunkSource(from_arrays("data", (data[:, 1:], data[:, 0])), 4, "float64", Backend())
    assert np.shares_memory(source.joined(0, 2).X, source.joined(0, 2).X)


def test_an_unaligned_map_is_copied(tmp_path):
    (tmp_path / "raw").write_bytes(b"x" + X.tobytes())
    mapped = np.memmap(tmp_path / "raw", np.float64, "r", 1, X.shape)
    assert not mapped.flags.aligned
    chunk = whole(Dataset("raw", 23, 5, False, mapped, y), 3)[0]
    assert chunk.X.flags.aligned
    assert np.array_equal(chunk.X, X[:7])


@pytest.mark.parametrize("stored", ["?", "u1", ">i2", "i4", "u4", "i8", "u8"])
def test_labels_that_are_whole_numbers_stay_whole_numbers(tmp_path, stored):
    labels = (y + (2**53 + 1 if stored.endswith("8") else 0)).astype(stored)
    write_dense(tmp_path / "a.npz", X, labels)
    for dtype in ("float64", "float32"):
        chunks = whole(open_data(str(tmp_path / "a.npz")), 4, dtype)
        assert {chunk.y.dtype for chunk in chunks} == {np.dtype(np.int64)}
        assert np.concatenate([chunk.y for chunk in chunks]).tolist() == [int(label) for label in labels]
    assert file_backed(chunks[0].y) == (stored == "i8")


def test_rows_of_any_shape_become_chunks(tmp_path):
    images = rng.random((23, 2, 3, 4))
    write_dense(tmp_path / "a.npz", images, y)
    source = ChunkSource(open_data(str(tmp_path / "a.npz")), 4, "float64", Backend())
    assert file_backed(source.chunk(1).X)
    assert np.array_equal(np.concatenate([source.chunk(i).X for i in range(4)]), images)
    assert source.sample(1, 2, np.random.default_rng(0)).X.shape == (2, 2, 3, 4)
    images[13, 1, 2, 3] = np.nan
    write_dense(tmp_path / "a.npz", images, y)
    with pytest.raises(UserError, match=r"row 13, place \(1, 2, 3\) of X \(counted from 0\) is nan"):
        whole(open_data(str(tmp_path / "a.npz")), 4)


INTEGERS = (10 * X).astype(np.int64)
TOO_LARGE = "is 1e+300, too large for float32; take dtype: float64"
NO_FLOAT32 = "which float32 cannot hold: it would become"
WRONG = [  # a number in the features or the labels, what they are stored as, the dtype of the run, what is said
    ("X", float("nan"), X, "float64", "is nan, expected finite numbers"),
    ("X", float("-inf"), X, "float32", "is -inf, expected finite numbers"),
    ("X", 1e300, X, "float32", TOO_LARGE),
    ("y", float("inf"), y.astype(float), "float64", "is inf, expected finite numbers"),
    ("y", 1e300, y.astype(float), "float32", TOO_LARGE),
    ("y", 2**63, y.astype(np.uint64), "float64", "is 9223372036854775808, expected whole numbers below 2^63"),
    ("X", 2**24 + 1, INTEGERS, "float32", f"is 16777217, {NO_FLOAT32} 16777216; take dtype: float64"),
    ("X", -(2**62) + 1, INTEGERS, "float32", f"is -4611686018427387903, {NO_FLOAT32} -4611686018427387904; store"),
    ("X", 2**63 - 1, INTEGERS, "float64", "is 9223372036854775807, which float64 cannot hold: it would become "
     "9223372036854775808; store X as floats if it may be rounded"),
]  # fmt: skip


@pytest.mark.parametrize("write", [write_dense, write_sparse])
@pytest.mark.parametrize(("where", "value", "stored", "dtype", "said"), WRONG)
def test_the_first_number_that_cannot_be_used_is_named_before_it_reaches_a_model(
    tmp_path, write, where, value, stored, dtype, said
):
    path, arrays = tmp_path / "a.npz", {"X": X, "y": y, where: stored}
    write(path, **arrays)
    assert len(whole(open_data(str(path)), 4, dtype)) == 4
    wrong = stored.copy()
    for row, column in ((13, 2), (17, 0)):
        wrong[(row, column)[: wrong.ndim]] = value
    write(path, **arrays | {where: wrong})
    source = ChunkSource(open_data(str(path)), 4, dtype, Backend())
    for i in (0, 1):
        source.chunk(i)
        source.check(i)
    for i, (row, column) in ((2, (13, 2)), (3, (17, 0))):
        place = f"row {row}, column {column} of X" if where == "X" else f"the label of row {row}"
        for read in (source.chunk, source.chunk, source.check):  # and again, when it is asked for again
            with pytest.raises(UserError) as caught:
                read(i)
            assert str(caught.value).startswith(f"{path}: {place} (counted from 0) {said}")


@pytest.mark.parametrize("write", [write_dense, write_sparse])
def test_of_a_chunk_that_is_sampled_the_rows_that_are_drawn_are_looked_at(tmp_path, write):
    flawed = X.copy()
    flawed[13, 2] = np.nan
    write(tmp_path / "a.npz", flawed, y)
    source = ChunkSource(open_data(str(tmp_path / "a.npz")), 4, "float64", Backend())
    met = 0
    for seed in range(20):
        drawn = np.random.default_rng(seed).choice(6, 2, replace=False)
        if 13 - 11 in drawn:
            met += 1
            with pytest.raises(UserError, match="row 13, column 2"):
                source.sample(2, 2, np.random.default_rng(seed))
        else:
            assert source.sample(2, 2, np.random.default_rng(seed)).X.shape == (2, 5)
    assert 0 < met < 20
    with pytest.raises(UserError, match="row 13, column 2"):
        source.sample(2, 6, np.random.default_rng(0))
    with pytest.raises(UserError, match="row 13, column 2"):
        list(source.each())


def test_whole_numbers_that_floats_may_round_or_hold_are_taken(tmp_path):
    large = np.full((23, 1), 2**40)
    large[5] = -(2**63)
    write_dense(tmp_path / "a.npz", large, y)
    chunk = whole(open_data(str(tmp_path / "a.npz")), 1, "float32")[0]
    assert chunk.X.ravel().tolist() == large.ravel().tolist()
    write_dense(tmp_path / "a.npz", np.full((23, 1), 2.0**24 + 1), y)
    assert whole(open_data(str(tmp_path / "a.npz")), 1, "float32")[0].X[0] == 2**24


def test_a_problem_without_data_gets_weights_only():
    ChunkSource(None, 4, "float64", Backend()).check(0)
    chunks = whole(None, 4)
    assert [(chunk.index, chunk.X, chunk.y, chunk.weight) for chunk in chunks] == [
        (i, None, None, 0.25) for i in range(4)
    ]
    assert chunks[0].sample(2, np.random.default_rng(0)) is chunks[0]


@pytest.mark.parametrize("matrix", [X, scipy.sparse.csr_array(X)])
def test_a_sample_is_some_of_the_rows_with_their_labels(matrix):
    chunk = Chunk(3, matrix, np.arange(23.0), 0.5)
    sample = chunk.sample(9, np.random.default_rng(1))
    attempt = chunk.sample(9, np.random.default_rng(1))
    rows = sample.y.astype(int)
    assert len(set(rows)) == 9
    assert (sample.index, sample.weight) == (3, 0.5)
    dense = sample.X.toarray() if scipy.sparse.issparse(sample.X) else sample.X
    assert np.array_equal(dense, X[rows])
    assert np.array_equal(attempt.y, sample.y)
    assert chunk.sample(23, np.random.default_rng(1)) is chunk


def test_costs_go_by_rows_or_by_stored_entries(tmp_path):
    write_dense(str(tmp_path / "dense.npz"), np.ones((5, 2)), np.zeros(5))
    dense = ChunkSource(open_data(str(tmp_path / "dense.npz")), 2, "float64", Backend())
    assert dense.costs() == pytest.approx([2 / 2.5, 3 / 2.5])
    write_sparse(str(tmp_path / "sparse.npz"), scipy.sparse.csr_array([[1, 1, 1], [0, 0, 1]]), np.zeros(2))
    sparse = ChunkSource(open_data(str(tmp_path / "sparse.npz")), 2, "float64", Backend())
    assert sparse.costs() == pytest.approx([1.5, 0.5])
    for X, costs in (([[1, 1], [0, 0]], [2, 0.01]), ([[0, 0], [0, 0]], None)):
        write_sparse(str(tmp_path / "empty.npz"), scipy.sparse.csr_array(X), np.zeros(2))
        assert ChunkSource(open_data(str(tmp_path / "empty.npz")), 2, "float64", Backend()).costs() == costs
    assert ChunkSource(None, 2, "float64", Backend()).costs() is None
