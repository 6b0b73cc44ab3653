"""The bound on Q_max: met where the paper's ordering is optimal, and honest where it is not."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from psgc.coding import cyclic, fractional, from_matrix, graph, ordering, worst_case, worst_case_bound
from psgc.errors import UserError

# tests/unit/test_ordering.py compares the bound with the best of all orderings of small assignments.


def papers_q_max(n, load, parts):
    return n * load - (load - parts + 1) * (load - parts + 2) // 2


@pytest.mark.parametrize(
    "assignment",
    [cyclic(12, 12, 4), fractional(12, 12, 3), graph(30, 30, 4, 1), from_matrix(np.ones((4, 4))), cyclic(7, 7, 2)],
    ids=["cyclic", "fractional", "graph", "complete", "pairs"],
)
def test_square_and_regular_with_load_up_to_4_meets_the_paper_for_every_l(assignment):
    n, load = assignment.shape[0], int(assignment.nnz / assignment.shape[0])
    for parts in range(1, load + 1):
        assert worst_case_bound(assignment, parts) == papers_q_max(n, load, parts)


@pytest.mark.parametrize("load", [5, 6, 9])
def test_square_and_regular_meets_the_paper_for_the_first_and_last_l(load):
    assignment = cyclic(20, 20, load)
    for parts in (1, load):
        assert worst_case_bound(assignment, parts) == papers_q_max(20, load, parts)
    for parts in range(2, load):
        assert papers_q_max(20, load, parts) - load < worst_case_bound(assignment, parts)
        assert worst_case_bound(assignment, parts) <= papers_q_max(20, load, parts)


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
    assert worst_case(assignment, ordering(assignment), 2) == papers_q_max(6, 6, 2) == 21


def test_coarse_values_of_long_queues_stay_a_bound():
    random = np.random.default_rng(0)
    dense = random.random((240, 8)) < 0.6
    dense[dense.sum(axis=1) < 3] = True
    assignment = from_matrix(dense)
    bound, reached = worst_case_bound(assignment, 2), worst_case(assignment, ordering(assignment, 2), 2)
    assert bound <= reached
    assert reached - bound <= 0.25 * (assignment.nnz - bound)


def test_refusals():
    with pytest.raises(UserError, match="parts is 3"):
        worst_case_bound(cyclic(4, 4, 2), 3)
    with pytest.raises(UserError, match="entry"):
        worst_case_bound([[2]], 1)
