"""Chunks: rows shared out whole, used in place where the file allows, sampled without bias."""

import itertools

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.data import Chunk, ChunkSource, Dataset, open_data, write_dense, write_sparse
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


def test_a_dense_file_of_the_right_type_is_used_in_place(tmp_path):
    write_dense(tmp_path / "a.npz", X, y.astype(float))
    for chunk in whole(open_data(str(tmp_path / "a.npz")), 4):
        assert file_backed(chunk.X)
        assert file_backed(chunk.y)
        assert chunk.X.flags.aligned
        assert chunk.X.flags.c_contiguous


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_a_sparse_file_of_the_right_type_is_used_in_place(tmp_path, index_type):
    csr = scipy.sparse.csr_array(np.where(X > 0, X, 0))
    csr.indices, csr.indptr = csr.indices.astype(index_type), csr.indptr.astype(index_type)
    write_sparse(tmp_path / "a.npz", csr, y)
    for chunk in whole(open_data(str(tmp_path / "a.npz")), 4):
        assert file_backed(chunk.X.data)
        assert file_backed(chunk.X.indices)


def test_products_of_a_sparse_chunk_copy_no_matrix(tmp_path):
    write_sparse(tmp_path / "a.npz", X, y)
    chunk = whole(open_data(str(tmp_path / "a.npz")), 2)[1]
    assert np.shares_memory(chunk.X.T.data, chunk.X.data)
    assert np.shares_memory(chunk.X.T.indices, chunk.X.indices)


@pytest.mark.parametrize("stored", [X.astype("f4"), np.asfortranarray(X), X.astype(">f8")])
def test_anything_else_is_converted_once(tmp_path, stored):
    np.savez(tmp_path / "a.npz", X=stored, y=y)
    source = ChunkSource(open_data(str(tmp_path / "a.npz")), 4, "float64", Backend())
    chunk = source.chunk(2)
    assert source.chunk(2) is chunk
    assert not file_backed(chunk.X)
    assert chunk.X.dtype == chunk.y.dtype == np.float64
    assert chunk.X.flags.c_contiguous
    assert np.array_equal(chunk.X, stored[11:17])


def test_an_unaligned_map_is_copied(tmp_path):
    (tmp_path / "raw").write_bytes(b"x" + X.tobytes())
    mapped = np.memmap(tmp_path / "raw", np.float64, "r", 1, X.shape)
    assert not mapped.flags.aligned
    chunk = whole(Dataset("raw", 23, 5, False, mapped, y), 3)[0]
    assert chunk.X.flags.aligned
    assert np.array_equal(chunk.X, X[:7])


@pytest.mark.parametrize("write", [write_dense, write_sparse])
def test_float32_is_float32_throughout(tmp_path, write):
    write(tmp_path / "a.npz", X, y)
    chunk = whole(open_data(str(tmp_path / "a.npz")), 4, "float32")[0]
    assert chunk.X.dtype == chunk.y.dtype == np.float32


@pytest.mark.parametrize("write", [write_dense, write_sparse])
@pytest.mark.parametrize("where", ["features", "labels"])
def test_numbers_that_float32_does_not_have_are_refused(tmp_path, write, where):
    large = 1e300
    write(tmp_path / "a.npz", X * large if where == "features" else X, y * large if where == "labels" else y)
    whole(open_data(str(tmp_path / "a.npz")), 4)
    with pytest.raises(UserError, match=r"a\.npz: holds numbers that are too large for float32"):
        whole(open_data(str(tmp_path / "a.npz")), 4, "float32")
    write(tmp_path / "a.npz", np.where(X > 0, np.inf, 0), y)  # what is infinite in the file is so in memory
    assert len(whole(open_data(str(tmp_path / "a.npz")), 4, "float32")) == 4


@pytest.mark.parametrize("write", [write_dense, write_sparse])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_row_with_a_number_that_is_none_is_found(tmp_path, write, value):
    flawed = X.copy()
    flawed[13, 2] = flawed[17, 1] = float(value)
    write(tmp_path / "a.npz", flawed, y)
    source = ChunkSource(open_data(str(tmp_path / "a.npz")), 4, "float64", Backend())
    assert [source.flaw(i) for i in (0, 1, 3)] == ["", "", f"{tmp_path}/a.npz: row 17 holds {value}"]
    assert source.flaw(2) == f"{tmp_path}/a.npz: row 13 holds {value}"


def test_a_problem_without_data_gets_weights_only():
    assert ChunkSource(None, 4, "float64", Backend()).flaw(0) == ""
    chunks = whole(None, 4)
    assert [(chunk.index, chunk.X, chunk.y, chunk.weight) for chunk in chunks] == [
        (i, None, None, 0.25) for i in range(4)
    ]
    assert chunks[0].sample(2, np.random.default_rng(0)) is chunks[0]


@pytest.mark.parametrize("i", [-1, 4])
def test_a_chunk_that_does_not_exist_is_refused(i):
    with pytest.raises(UserError, match=f"chunk {i} does not exist, there are 4"):
        ChunkSource(None, 4, "float64", Backend()).chunk(i)


@pytest.mark.parametrize("matrix", [X, scipy.sparse.csr_array(X)])
def test_a_sample_is_some_of_the_rows_with_their_labels(matrix):
    chunk = Chunk(3, matrix, np.arange(23.0), 0.5)
    sample = chunk.sample(9, np.random.default_rng(1))
    again = chunk.sample(9, np.random.default_rng(1))
    rows = sample.y.astype(int)
    assert len(set(rows)) == 9
    assert (sample.index, sample.weight) == (3, 0.5)
    dense = sample.X.toarray() if scipy.sparse.issparse(sample.X) else sample.X
    assert np.array_equal(dense, X[rows])
    assert np.array_equal(again.y, sample.y)
    assert chunk.sample(23, np.random.default_rng(1)) is chunk


def test_every_sample_is_equally_likely():
    chunk = Chunk(0, np.arange(4.0)[:, None], np.arange(4.0), 1.0)
    generator = np.random.default_rng(2)
    drawn = [tuple(chunk.sample(2, generator).y) for _ in range(1200)]
    for pair in itertools.combinations(range(4), 2):
        assert 140 < drawn.count(pair) < 260  # 200 expected, standard deviation 13


def test_costs_go_by_rows_or_by_stored_entries(tmp_path):
    write_dense(str(tmp_path / "dense.npz"), np.ones((5, 2)), np.zeros(5))
    dense = ChunkSource(open_data(str(tmp_path / "dense.npz")), 2, "float64", Backend())
    assert dense.costs() == pytest.approx([2 / 2.5, 3 / 2.5])
    write_sparse(str(tmp_path / "sparse.npz"), scipy.sparse.csr_array([[1, 1, 1], [0, 0, 1]]), np.zeros(2))
    sparse = ChunkSource(open_data(str(tmp_path / "sparse.npz")), 2, "float64", Backend())
    assert sparse.costs() == pytest.approx([1.5, 0.5])
    assert ChunkSource(None, 2, "float64", Backend()).costs() is None
