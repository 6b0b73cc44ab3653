"""Small assignments for Hypothesis, and orderings of them."""

import numpy as np
from hypothesis import strategies as st

from psgc.coding import from_matrix, ordering, positions, queues


@st.composite
def assignments(draw, max_chunks=7, max_workers=5):
    """Any 0/1 matrix without an empty row."""
    n, m = draw(st.integers(1, max_chunks)), draw(st.integers(1, max_workers))
    rows = st.lists(st.integers(0, 1), min_size=m, max_size=m).filter(any)
    return from_matrix(draw(st.lists(rows, min_size=n, max_size=n)))


def any_parts(assignment):
    """Every l that this assignment allows."""
    return st.integers(1, int(np.diff(assignment.indptr).min()))


def shuffled(assignment, seed):
    """A random ordering."""
    random = np.random.default_rng(seed)
    return positions([random.permutation(queue) for queue in queues(ordering(assignment))], assignment.shape[0])
