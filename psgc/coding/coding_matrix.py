"""The coding matrix R, shape (num_workers, parts): row j is worker j's coding vector."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import networkx as nx
import numpy as np

from psgc.coding.arguments import real_array, whole
from psgc.coding.assignment import Assignment, check, from_matrix
from psgc.coding.coefficients import Matrix
from psgc.errors import UserError


def coding_matrix(kind: str, assignment: Assignment, parts: int, seed: int) -> Matrix:
    """R."""
    assignment = from_matrix(assignment)
    check(assignment, parts)
    rng = np.random.default_rng(whole("seed", seed, 0))
    m = assignment.shape[1]
    if kind not in ("gaussian", "spread"):
        raise UserError(f"coding_matrix is {kind!r}; it must be 'gaussian' or 'spread'")
    if parts == 1:
        return np.ones((m, 1))
    if kind == "gaussian":
        return rng.standard_normal((m, parts))
    together = assignment.T.astype(int) @ assignment
    together.setdiag(0)
    together.eliminate_zeros()
    colour_of = nx.greedy_color(nx.from_scipy_sparse_array(together), "DSATUR")
    colour = np.array([colour_of[j] for j in range(m)])
    if parts == 2:
        angle = np.pi * colour / (colour.max() + 1)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vectors = rng.standard_normal((colour.max() + 1, parts))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[colour]


def worst_condition(coding_matrix: Matrix, assignment: Assignment) -> float:
    """Worst condition number."""
    matrix = real_array("coding_matrix", coding_matrix, 2)
    assignment = from_matrix(assignment)
    check(assignment, matrix.shape[1])
    return float(np.linalg.cond(matrix[_meeting_sets(assignment, matrix.shape[1])]).max())


def _meeting_sets(assignment: Assignment, parts: int) -> Any:
    holders = np.split(assignment.indices, assignment.indptr[1:-1])
    return np.unique([s for h in holders for s in combinations(sorted(h), parts)], axis=0)
