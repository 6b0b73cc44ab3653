"""The clairvoyant bound, against brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.coding import blocks, clairvoyant_bound, cyclic
from psgc.errors import UserError
from tests.unit.small_assignments import any_parts, assignments

seconds_per_chunk = st.one_of(st.floats(0.01, 10), st.sampled_from([0.1, 0.3, 1.0, np.inf]))


@st.composite
def cases(draw):
    """(assignment, parts, seconds): any small assignment, with failed workers and equal speeds among them."""
    assignment = draw(assignments(max_chunks=6))
    m = assignment.shape[1]
    return assignment, draw(any_parts(assignment)), draw(st.lists(seconds_per_chunk, min_size=m, max_size=m))


def brute_force(assignment, parts, seconds):
    """The first time k * s_j that meets the min-cut condition, which is tried on every set of workers."""
    dense, seconds = assignment.toarray(), np.array(seconds)
    n, m = dense.shape
    times = np.arange(1, n + 1)[:, None] * seconds
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


def test_equal_speeds_need_the_primary_copies_only():
    assignment = blocks(64, 8, 3, 0)
    for parts in (1, 2, 3):
        assert clairvoyant_bound(assignment, parts, np.full(8, 0.1)) == 8 * parts * 0.1


def test_one_slow_worker():
    """64 chunks on 7 workers of 1 s and one of 10 s: 9 s each do 63, the slow one's is missing; 10 s do."""
    seconds = np.where(np.arange(8) == 3, 10.0, 1.0)
    assert clairvoyant_bound(blocks(64, 8, 3, 0), 1, seconds) == 10.0


def test_a_whole_multiple_is_never_lost_to_rounding():
    assert clairvoyant_bound(np.ones((3, 1)), 1, [0.1]) == 3 * 0.1


def test_dead_workers():
    assignment = cyclic(4, 4, 2)
    assert clairvoyant_bound(assignment, 1, [1, np.inf, 1, np.inf]) == 2.0
    assert clairvoyant_bound(assignment, 1, [1, 1, np.inf, np.inf]) == np.inf
    assert clairvoyant_bound(assignment, 2, [1, 1, 1, np.inf]) == np.inf


@pytest.mark.parametrize("seconds", [[1, 1, 1], [1, 1, 1, 0], [1, 1, 1, -1], [1, 1, 1, np.nan], [[1, 1, 1, 1]]])
def test_clairvoyant_bound_refuses(seconds):
    with pytest.raises(UserError, match="seconds_per_chunk"):
        clairvoyant_bound(cyclic(4, 4, 2), 1, seconds)
