"""Orderings: the paper's optimum, own share first, and Q_max against brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from psgc.coding import (
    blocks,
    cyclic,
    fractional,
    from_matrix,
    graph,
    ordering,
    primary_copies,
    queues,
    random_ordering,
    worst_case,
)
from psgc.coding.ordering import _rounds
from psgc.errors import UserError
from tests.unit.doctests import assert_examples_hold


@st.composite
def assignments(draw, max_chunks=7, max_workers=5):
    """Any 0/1 matrix without an empty row."""
    n, m = draw(st.integers(1, max_chunks)), draw(st.integers(1, max_workers))
    rows = st.lists(st.integers(0, 1), min_size=m, max_size=m).filter(any)
    return from_matrix(draw(st.lists(rows, min_size=n, max_size=n)))


def fewest_holders(assignment):
    return int(np.diff(assignment.indptr).min())


def largest_load(chosen):
    return int(chosen.toarray().sum(axis=0).max())


def least_largest_load(dense, parts):
    """Brute force over capacities by Hall's condition: every set of workers leaves enough copies to the others."""
    m = dense.shape[1]
    need = 0
    for subset in product([False, True], repeat=m):
        inside = np.array(subset)
        must = np.maximum(0, parts - dense[:, ~inside].sum(axis=1)).sum()  # copies only `inside` can make
        if inside.any():
            need = max(need, -(-int(must) // int(inside.sum())))
    return need


def q_max_by_brute_force(dense, positions, parts):
    """Try every number of chunks each worker may have finished."""
    loads = dense.sum(axis=0)
    most = -1
    for finished in product(*(range(load + 1) for load in loads)):
        copies = ((positions > 0) & (positions <= np.array(finished))).sum(axis=1)
        if (copies < parts).any():
            most = max(most, sum(finished))
    return most


def test_examples():
    assert_examples_hold("psgc.coding.ordering")


@given(assignments(), st.integers(0, 9))
def test_any_assignment_gets_positions_one_to_load(assignment, seed):
    for order in (ordering(assignment), random_ordering(assignment, seed)):
        assert order.dtype == np.int32
        assert (order.indptr == assignment.indptr).all()
        assert (order.indices == assignment.indices).all()
        for j, queue in enumerate(queues(order)):
            held = assignment.toarray()[:, j].nonzero()[0].tolist()
            assert sorted(queue) == held
            assert [order[i, j] for i in queue] == list(range(1, len(held) + 1))


@pytest.mark.parametrize(
    "assignment",
    [cyclic(12, 12, 5), fractional(12, 12, 4), graph(30, 30, 6, 1), from_matrix(np.ones((6, 6)))],
    ids=["cyclic", "fractional", "graph", "complete"],
)
def test_square_regular_is_the_papers_optimum(assignment):
    n, load = assignment.shape[0], int(assignment.nnz / assignment.shape[0])
    order = ordering(assignment)
    for i in range(n):
        assert sorted(order[[i], :].data.tolist()) == list(range(1, load + 1))
    for parts in range(1, load + 1):
        assert worst_case(assignment, order, parts) == n * load - (load - parts + 1) * (load - parts + 2) // 2


def test_the_papers_optimum_is_an_optimum():
    """No ordering of a small cyclic assignment has a smaller Q_max."""
    assignment = cyclic(4, 4, 2)
    orders = [csr_array(assignment.astype(np.int32)) for _ in range(16)]
    for order, flips in zip(orders, product([False, True], repeat=4), strict=True):
        for j, flip in enumerate(flips):
            places = np.flatnonzero(order.indices == j)
            order.data[places] = [2, 1] if flip else [1, 2]
    for parts in (1, 2):
        best = min(worst_case(assignment, order, parts) for order in orders)
        assert worst_case(assignment, ordering(assignment), parts) == best


@pytest.mark.parametrize("assignment", [blocks(40, 8, 3, 0), fractional(24, 6, 3), cyclic(24, 8, 9)])
def test_own_share_first_then_backups_in_reverse(assignment):
    n, m = assignment.shape
    b = n // m
    seen = set()
    for j, queue in enumerate(queues(ordering(assignment))):
        assert queue[:b] == list(range(j * b, j * b + b))
        for start in range(b, len(queue), b):  # one round after the other, each latest first
            places = [i % b for i in queue[start : start + b]]
            assert places == sorted(places, reverse=True)
            for i in queue[start : start + b]:
                assert (i, start) not in seen  # two holders of a chunk never have it in the same round
                seen.add((i, start))


def test_the_backups_of_one_worker_start_on_different_chunks():
    """When worker j alone is dead, the first backups everybody takes of its share are all different."""
    assignment = blocks(64, 8, 3, 0)
    for dead in range(8):
        others = [queue for j, queue in enumerate(queues(ordering(assignment))) if j != dead]
        firsts = [next(i for i in queue if i // 8 == dead) for queue in others]
        assert len(set(firsts)) == 7


def test_regular_without_own_share_is_even_in_every_round():
    assignment = graph(36, 12, 4, 0)
    for i, j in ((0, 0), (35, 11)):
        assert assignment[i, j] == 0
    order = ordering(assignment)
    rounds = (order.data - 1) // 3
    chunk = np.repeat(np.arange(36), 4)
    assert all(sorted(rounds[chunk == i].tolist()) == [0, 1, 2, 3] for i in range(36))


@given(assignments())
def test_rounds_are_as_even_as_can_be(assignment):
    n, m = assignment.shape
    chunk, worker = assignment.nonzero()
    rounds = _rounds(chunk, worker, n, m)
    left = assignment.toarray()
    for number in range(1, rounds.max() + 1):
        given_now = np.zeros((n, m), int)
        given_now[chunk[rounds == number], worker[rounds == number]] = 1
        can = left.any(axis=1)
        assert (given_now.sum(axis=1) == can).all()
        assert given_now.sum(axis=0).max() == least_largest_load(left[can], 1)
        left = left - given_now
    assert not left.any()


@given(assignments(max_chunks=4, max_workers=4), st.integers(0, 9), st.data())
def test_worst_case_agrees_with_brute_force(assignment, seed, data):
    parts = data.draw(st.integers(1, fewest_holders(assignment)))
    for order in (ordering(assignment), random_ordering(assignment, seed)):
        brute = q_max_by_brute_force(assignment.toarray(), order.toarray(), parts)
        assert worst_case(assignment, order, parts) == brute


@given(assignments(), st.integers(0, 9), st.data())
def test_primary_copies_are_even(assignment, seed, data):
    parts = data.draw(st.integers(1, fewest_holders(assignment)))
    for order in (ordering(assignment), random_ordering(assignment, seed)):
        primary = primary_copies(assignment, order, parts)
        dense = primary.toarray()
        assert primary.dtype == np.int8
        assert primary.has_canonical_format
        assert (dense <= assignment.toarray()).all()
        assert (dense.sum(axis=1) == parts).all()
        assert largest_load(primary) == least_largest_load(assignment.toarray(), parts)


def test_primary_copies_are_the_first_rounds():
    assignment = blocks(64, 8, 3, 0)
    order = ordering(assignment)
    for parts in (1, 2, 3):
        primary = primary_copies(assignment, order, parts).toarray()
        assert ((order.toarray() * primary).max(axis=0) == 8 * parts).all()


def test_random_ordering_follows_its_seed():
    assignment = cyclic(20, 20, 6)
    first, again, other = (random_ordering(assignment, seed).data for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_large_assignments_are_ordered_sparsely():
    for assignment in (cyclic(20_000, 20_000, 8), blocks(20_000, 20_000, 8, 0)):
        assert worst_case(assignment, ordering(assignment), 2) == 20_000 * 8 - 28


def test_refusals():
    assignment, other = cyclic(4, 4, 2), cyclic(4, 4, 3)
    with pytest.raises(UserError, match="does not belong"):
        worst_case(assignment, ordering(other), 1)
    with pytest.raises(UserError, match="does not belong"):
        primary_copies(other, ordering(assignment), 1)
    with pytest.raises(UserError, match="parts is 3"):
        worst_case(assignment, ordering(assignment), 3)
    with pytest.raises(UserError, match="entry"):
        ordering([[2]])
    with pytest.raises(UserError, match="seed"):
        random_ordering(assignment, -1)
