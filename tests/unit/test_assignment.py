"""Assignments: who holds which chunk."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from psgc.coding import blocks, cyclic, fractional, from_matrix, graph
from psgc.coding.assignment import check
from psgc.errors import UserError
from tests.unit.small_assignments import assignments


def assert_regular(assignment, num_chunks, num_workers, replication):
    """Canonical form, ones only, equal row sums and equal column sums."""
    assert isinstance(assignment, scipy.sparse.csr_array)
    assert assignment.shape == (num_chunks, num_workers)
    assert assignment.dtype == np.int8
    assert assignment.has_canonical_format
    assert (assignment.data == 1).all()
    dense = assignment.toarray()
    assert (dense.sum(axis=1) == replication).all()
    assert (dense.sum(axis=0) * num_workers == replication * num_chunks).all()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_cyclic_is_regular_or_refused(num_chunks, num_workers, replication):
    if replication > num_workers or num_chunks * replication % num_workers:
        with pytest.raises(UserError, match=f"replication {replication}"):
            cyclic(num_chunks, num_workers, replication)
        return
    assignment = cyclic(num_chunks, num_workers, replication)
    assert_regular(assignment, num_chunks, num_workers, replication)
    dense = assignment.toarray()
    for j in range(num_workers):
        start = j * num_chunks // num_workers
        assert all(dense[(start + k) % num_chunks, j] == 1 for k in range(num_chunks * replication // num_workers))


@given(st.integers(1, 24), st.integers(1, 12), st.integers(1, 12))
def test_fractional_groups_hold_the_same(num_chunks, num_workers, replication):
    if replication > num_workers or num_workers % replication or num_chunks % (num_workers // replication):
        with pytest.raises(UserError, match="fractional"):
            fractional(num_chunks, num_workers, replication)
        return
    assignment = fractional(num_chunks, num_workers, replication)
    assert_regular(assignment, num_chunks, num_workers, replication)
    dense = assignment.toarray()
    for j in range(num_workers):
        assert (dense[:, j] == dense[:, j // replication * replication]).all()
    if num_chunks % num_workers == 0:
        b = num_chunks // num_workers
        assert all(dense[i, i // b] == 1 for i in range(num_chunks))


@given(st.integers(1, 3), st.integers(2, 14), st.integers(1, 13), st.integers(0, 99))
def test_graph_is_the_neighbourhoods_of_a_regular_graph(b, num_workers, replication, seed):
    if replication >= num_workers or replication * num_workers % 2:
        with pytest.raises(UserError, match=f"replication {replication}"):
            graph(b * num_workers, num_workers, replication, seed)
        return
    with pytest.raises(UserError, match=f"1 chunks cannot be shared equally by {num_workers} workers"):
        graph(1, num_workers, replication)
    assignment = graph(b * num_workers, num_workers, replication, seed)
    assert_regular(assignment, b * num_workers, num_workers, replication)
    adjacency = assignment.toarray()[::b]
    assert (np.repeat(adjacency, b, axis=0) == assignment.toarray()).all()
    assert (adjacency == adjacency.T).all()
    assert (adjacency.diagonal() == 0).all()


@pytest.mark.parametrize("num_workers", [200, 700])
def test_graph_expands(num_workers):
    assignment = graph(num_workers, num_workers, 8, seed=3)
    eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(assignment.toarray().astype(float))))
    assert eigenvalues[-1] == pytest.approx(8)
    assert eigenvalues[-2] <= 1.02 * 2 * np.sqrt(7)


@given(st.integers(1, 6), st.integers(0, 2), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_blocks_give_own_shares_and_scatter_the_backups(b, more, num_workers, replication, seed):
    num_chunks = b * num_workers + more
    if replication > num_workers:
        with pytest.raises(UserError, match=f"replication {replication}"):
            blocks(num_chunks, num_workers, replication, seed)
        return
    assignment = blocks(num_chunks, num_workers, replication, seed)
    dense = assignment.toarray()
    assert (dense.sum(axis=1) == replication).all()
    assert (assignment.data == 1).all()
    ends = np.arange(num_workers + 1) * num_chunks // num_workers
    assert all(dense[ends[j] : ends[j + 1], j].all() for j in range(num_workers))
    if more == 0:
        assert_regular(assignment, num_chunks, num_workers, replication)
        for j in range(num_workers):
            others = {i // b for i in dense[:, j].nonzero()[0].tolist()} - {j}
            assert len(others) == min(b * (replication - 1), num_workers - 1)


def test_seeds_reproduce_and_differ():
    for make in (graph, blocks):
        first, attempt, other = make(40, 20, 4, 1), make(40, 20, 4, 1), make(40, 20, 4, 2)
        assert (first != attempt).nnz == 0
        assert (first != other).nnz > 0


@given(assignments())
def test_from_matrix_keeps_the_entries(assignment):
    dense = assignment.toarray()
    forms = [dense.tolist(), dense, dense.astype(bool), dense.astype(float)]
    forms += [scipy.sparse.coo_matrix(dense), scipy.sparse.csc_array(dense)]
    for form in forms:
        assignment = from_matrix(form)
        assert assignment.dtype == np.int8
        assert assignment.has_canonical_format
        assert (assignment.toarray() == dense).all()
        assert from_matrix(assignment) is assignment


@pytest.mark.parametrize("indices", [[1, 0, 0], [0, 1, 0]])
def test_from_matrix_leaves_its_argument_alone(indices):
    stored_zero = scipy.sparse.csr_array((np.array([1, 0, 1]), indices, [0, 2, 3]), shape=(2, 2))
    assignment = from_matrix(stored_zero)
    assert assignment.nnz == 2
    assert stored_zero.indices.tolist() == indices
    assert stored_zero.nnz == 3


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        ([[1, 1], [0, 0]], "chunk 1 is held by no worker"),
        ([[1, 0], [2, 1]], "entry 2 at chunk 1, worker 0"),
        ([[1.0, np.nan]], "entry nan at chunk 0, worker 1"),
        ([[1, -1]], "entry -1"),
        ([[0.5, 1.0]], "entry 0.5"),
        ([1, 0], "shape"),
        ([[[1]]], "shape"),
        (np.zeros((0, 3)), "shape"),
        (np.zeros((3, 0)), "shape"),
        ([["a", "b"]], "entries"),
        (scipy.sparse.coo_array(([1, 1], ([0, 0], [0, 0])), shape=(1, 1)), "entry 2"),
    ],
)
def test_from_matrix_refuses(matrix, complaint):
    with pytest.raises(UserError, match=complaint):
        from_matrix(matrix)


@pytest.mark.parametrize("make", [cyclic, fractional, graph, blocks])
@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ((0, 4, 1), "chunks is 0, expected"),
        ((6, -2, 1), "workers is -2, expected"),
        ((6, 4, 0), "replication is 0, expected"),
        ((6, 4, 1.5), "replication is 1.5, expected a whole number, at least 1"),
    ],
)
def test_what_is_no_number_of_chunks_workers_or_holders_is_refused(make, numbers, complaint):
    with pytest.raises(UserError, match=f"^{make.__name__}: {complaint}"):
        make(*numbers)


@pytest.mark.parametrize("parts", [0, 1.5, "x"])
def test_a_number_of_parts_is_whole(parts):
    with pytest.raises(UserError, match=r"^parts is .*, expected a whole number, at least 1$"):
        check(cyclic(4, 4, 2), parts)
