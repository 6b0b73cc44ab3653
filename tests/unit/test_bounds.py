"""The clairvoyant bound, against brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.coding import clairvoyant_bound, cyclic
from psgc.errors import UserError
from tests.unit.small_assignments import any_parts, assignments

seconds_per_chunk = st.one_of(st.floats(0.01, 10), st.sampled_from([0.1, 0.3, 1.0, np.inf]))


@st.composite
def cases(draw):
    """(assignment, parts, seconds, pass_cost): any small assignment, workers failed or equally fast."""
    assignment = draw(assignments(max_chunks=6))
    m = assignment.shape[1]
    seconds = draw(st.lists(seconds_per_chunk, min_size=m, max_size=m))
    return assignment, draw(any_parts(assignment)), seconds, draw(st.sampled_from([0.0, 0.5, 3.0]))


def brute_force(assignment, parts, seconds, pass_cost):
    """The first time (a + k) * s_j that meets the min-cut condition, which is tried on every set of workers."""
    dense, seconds = assignment.toarray(), np.array(seconds)
    n, m = dense.shape
    times = (pass_cost + np.arange(1, n + 1)[:, None]) * seconds
    subsets = [np.array(subset, bool) for subset in product([0, 1], repeat=m)]
    for time in np.unique(times[np.isfinite(times)]):
        capacity = (times <= time).sum(axis=0)
        cuts = [capacity[s].sum() + np.minimum(parts, dense[:, ~s].sum(axis=1)).sum() for s in subsets]
        if min(cuts) >= n * parts:
            return time
    return np.inf


@given(cases())
def test_clairvoyant_bound_agrees_with_brute_force(case):
    assert clairvoyant_bound(*case) == brute_force(*case)


@pytest.mark.parametrize("seconds", [[1, 1, 1], [1, 1, 1, 0], [1, 1, 1, -1], [1, 1, 1, np.nan], [[1, 1, 1, 1]]])
def test_clairvoyant_bound_refuses(seconds):
    with pytest.raises(UserError, match="seconds_per_chunk"):
        clairvoyant_bound(cyclic(4, 4, 2), 1, seconds)
