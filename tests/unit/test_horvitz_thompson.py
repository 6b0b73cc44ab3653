"""From queues and reports to the weights of an unbiased gradient."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from psgc import coding
from psgc.server.horvitz_thompson import weights

QUEUES = {1: [0, 1, 2], 2: [1, 2, 0], 4: [2, 0, 3]}  # worker 3 is lost


def test_they_are_those_of_the_ordering_and_of_what_was_reported():
    reported = [(1, 0), (4, 2), (4, 0)]
    found = weights(QUEUES, reported, [0, 2], 4, 1, False, (3, 7))
    ordering = np.array([[1, 3, 2], [2, 1, 0], [3, 2, 1], [0, 0, 3]])
    expected = coding.unbiased_weights(csr_array(ordering), [1, 0, 2], 1, np.random.default_rng((3, 7)))
    assert found == {0: pytest.approx(expected[0]), 2: pytest.approx(expected[2])}


def test_with_full_a_worker_counts_when_its_whole_queue_is_done():
    reported = [(1, 0), (1, 1), (1, 2), (4, 2)]
    found = weights(QUEUES, reported, [0, 1, 2], 4, 1, True, (0, 0))
    assert found[0] == 1  # all three hold chunk 0: whoever is done, it is there
    assert found[1] > 1


def test_what_was_done_in_a_lost_workers_stead_counts_once():
    assert weights(QUEUES, [(1, 0), (2, 3)], [0, 3], 4, 1, False, (0, 0))[3] == 1
