"""Orderings: the paper's optimum, own share first, and Q_max against brute force."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
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
    worst_case,
    worst_case_bound,
)
from psgc.errors import UserError
from tests.unit.small_assignments import any_parts, assignments, shuffled


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


@settings(max_examples=40)
@given(assignments())
def test_any_assignment_gets_positions_one_to_load(assignment):
    order = ordering(assignment)
    assert order.dtype == np.int32
    assert (order.indptr == assignment.indptr).all()
    assert (order.indices == assignment.indices).all()
    for j, queue in enumerate(queues(order)):
        held = assignment.toarray()[:, j].nonzero()[0].tolist()
        assert sorted(queue) == held
        assert [order[i, j] for i in queue] == list(range(1, len(held) + 1))


@pytest.mark.parametrize(
    "assignment",
    [
        *(cyclic(20, 20, load) for load in (2, 4, 5, 9)),
        *(fractional(12, 12, 4), graph(30, 30, 4, 1), graph(30, 30, 6, 1), from_matrix(np.ones((6, 6)))),
    ],
)
def test_square_regular_is_the_papers_optimum_and_meets_the_bound_for_few_parts(assignment):
    n, load = assignment.shape[0], int(assignment.nnz / assignment.shape[0])
    order = ordering(assignment)
    for i in range(n):
        assert sorted(order[[i], :].data.tolist()) == list(range(1, load + 1))
    for parts in range(1, load + 1):
        q_max = n * load - (load - parts + 1) * (load - parts + 2) // 2
        assert worst_case(assignment, order, parts) == q_max
        bound = worst_case_bound(assignment, parts)
        assert bound == q_max if load <= 4 or parts in (1, load) else q_max - load < bound <= q_max


def test_the_papers_formula_is_not_a_bound_from_load_5_on():
    """Six workers hold all of six chunks, l = 2: this ordering has Q_max = 20, and 36 - 5*6/2 is 21."""
    positions = [
        [6, 6, 5, 1, 1, 1],
        [1, 1, 1, 6, 6, 5],
        [5, 4, 6, 2, 2, 2],
        [2, 2, 2, 5, 4, 6],
        [4, 5, 4, 3, 3, 3],
        [3, 3, 3, 4, 5, 4],
    ]
    assignment = from_matrix(np.ones((6, 6)))
    assert worst_case(assignment, csr_array(positions), 2) == worst_case_bound(assignment, 2) == 20
    assert worst_case(assignment, ordering(assignment), 2) == 21


def test_coarse_values_of_long_queues_stay_a_bound():
    random = np.random.default_rng(0)
    dense = random.random((190, 8)) < 0.6
    dense[dense.sum(axis=1) < 3] = True
    assignment = from_matrix(dense)
    bound, reached = worst_case_bound(assignment, 2), worst_case(assignment, ordering(assignment, 2), 2)
    assert bound <= reached
    assert reached - bound <= 0.25 * (assignment.nnz - bound)


def every_ordering(dense):
    """The positions of every ordering of a small assignment."""
    held = [np.flatnonzero(column) for column in dense.T]
    for places in product(*(list(permutations(range(1, len(chunks) + 1))) for chunks in held)):
        positions = np.zeros(dense.shape, int)
        for j, (chunks, place) in enumerate(zip(held, places, strict=True)):
            positions[chunks, j] = place
        yield positions


def q_max(dense, positions, parts):
    """All holders but the parts - 1 with the most left behind a chunk stop just before it."""
    left = np.where(dense > 0, dense.sum(axis=0) - positions + 1, 0)
    left = -np.sort(-left, axis=1)  # zeros, of workers that do not hold the chunk, last
    return int(dense.sum() - left[:, parts - 1 :].sum(axis=1).min())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(assignments(max_chunks=5, max_workers=4), st.data())
def test_small_orderings_are_nearly_the_best_of_all_and_none_beats_the_bound(assignment, data):
    dense = assignment.toarray()
    count = np.prod([float(math.factorial(load)) for load in dense.sum(axis=0)])
    assume(count <= 3000)
    parts = data.draw(any_parts(assignment))
    best = min(q_max(dense, positions, parts) for positions in every_ordering(dense))
    assert worst_case_bound(assignment, parts) <= best <= worst_case(assignment, ordering(assignment), parts)
    gap = worst_case(assignment, ordering(assignment, parts), parts) - best
    has_own_share = len(dense) % dense.shape[1] == 0 and all(
        dense[i, i * dense.shape[1] // len(dense)] for i in range(len(dense))
    )
    assert 0 <= gap <= has_own_share


def random_rows(num_chunks, num_workers, replication, seed):
    """Every chunk at random workers, as many as drawn from `replication`: the columns are irregular."""
    random = np.random.default_rng(seed)
    dense = np.zeros((num_chunks, num_workers), int)
    for row in dense:
        row[random.choice(num_workers, random.choice(replication), replace=False)] = 1
    return from_matrix(dense)


@pytest.mark.parametrize(
    "assignment",
    [
        random_rows(60, 20, [3], 0),
        random_rows(30, 30, [6], 0),
        random_rows(30, 30, range(4, 9), 0),
        random_rows(40, 130, range(3, 7), 0),
        graph(160, 20, 4, 0),
        cyclic(60, 40, 2),
    ],
    ids=["tall", "square", "uneven", "wide", "regular", "regular, not a multiple"],
)
def test_the_search_comes_close_to_the_bound(assignment):
    together = ordering(assignment)
    for parts in range(1, min(3, np.diff(assignment.indptr).min()) + 1):
        bound = worst_case_bound(assignment, parts)
        undone = assignment.nnz - bound  # what the ordering decides about
        alone = worst_case(assignment, ordering(assignment, parts), parts)
        assert bound <= alone <= bound + (undone // 50 if parts == 1 else 1 + undone // 8)
        assert bound <= worst_case(assignment, together, parts) <= bound + 1 + undone // 6


def test_the_search_is_the_same_every_time():
    assignment = random_rows(60, 20, [3], 1)
    assert (ordering(assignment).data == ordering(assignment).data).all()


def test_an_irregular_assignment_keeps_its_own_share_first():
    dense = blocks(40, 8, 3, 0).toarray()
    dense[3, dense[3].nonzero()[0][-1]] = 0
    dense[20] = 1
    order = ordering(from_matrix(dense))
    for j, queue in enumerate(queues(order)):
        assert queue[:5] == list(range(5 * j, 5 * j + 5))


@pytest.mark.parametrize("assignment", [blocks(40, 8, 3, 0), fractional(24, 6, 3), cyclic(24, 8, 3)])
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


def test_regular_without_own_share_is_even_in_every_round():
    assignment = graph(36, 12, 4, 0)
    for i, j in ((0, 0), (35, 11)):
        assert assignment[i, j] == 0
    order = ordering(assignment)
    rounds = (order.data - 1) // 3
    chunk = np.repeat(np.arange(36), 4)
    assert all(sorted(rounds[chunk == i].tolist()) == [0, 1, 2, 3] for i in range(36))


@settings(max_examples=50)
@given(assignments(max_chunks=4, max_workers=4), st.integers(0, 9), st.data())
def test_worst_case_agrees_with_brute_force(assignment, seed, data):
    parts = data.draw(any_parts(assignment))
    for order in (ordering(assignment), shuffled(assignment, seed)):
        brute = q_max_by_brute_force(assignment.toarray(), order.toarray(), parts)
        assert worst_case(assignment, order, parts) == brute


@settings(max_examples=40)
@given(assignments(), st.integers(0, 9), st.data())
def test_primary_copies_are_even(assignment, seed, data):
    parts = data.draw(any_parts(assignment))
    for order in (ordering(assignment), shuffled(assignment, seed)):
        primary = primary_copies(assignment, order, parts)
        dense = primary.toarray()
        assert primary.dtype == np.int8
        assert primary.has_canonical_format
        assert (dense <= assignment.toarray()).all()
        assert (dense.sum(axis=1) == parts).all()
        assert dense.sum(axis=0).max() == least_largest_load(assignment.toarray(), parts)


def test_large_assignments_are_ordered_sparsely():
    for assignment in (cyclic(20_000, 20_000, 8), blocks(20_000, 20_000, 8, 0)):
        order = ordering(assignment)
        assert worst_case(assignment, order, 1) == worst_case_bound(assignment, 1) == 20_000 * 8 - 36
        assert worst_case(assignment, order, 2) == 20_000 * 8 - 28


def test_refusals():
    assignment = cyclic(4, 4, 2)
    with pytest.raises(UserError, match="parts is 3"):
        ordering(assignment, 3)
    for other in (cyclic(4, 4, 3), fractional(4, 4, 2)):
        with pytest.raises(UserError, match="does not belong"):
            worst_case(assignment, ordering(other), 1)
        with pytest.raises(UserError, match="does not belong"):
            primary_copies(other, ordering(assignment), 1)
    with pytest.raises(UserError, match="parts is 3"):
        worst_case_bound(assignment, 3)
    with pytest.raises(UserError, match="entry"):
        worst_case_bound([[2]], 1)
