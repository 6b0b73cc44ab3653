"""Random orders that are computed place by place."""

import tracemalloc
from collections import Counter
from math import factorial

import numpy as np
import pytest

from psgc.data.epochs import shuffled

FIRST = [7, 3, 4, 8, 9, 0, 6, 2, 5, 1]
LATER = [19744, 6624, 12849, 873, 10364]  # looked up in tables


def test_every_number_once():
    for length in (*range(1, 70), 1000, 4096, 4097, 99_999):
        assert sorted(shuffled((3, 1), length, np.arange(0, length)).tolist()) == list(range(length))


def test_any_slice_alone_is_that_of_the_whole_order():
    whole = shuffled((7, 2), 1000, np.arange(0, 1000))
    for start, stop in [(0, 0), (0, 1), (999, 1000), (137, 641), (500, 500), (300, 330), (400, 434)]:
        found = shuffled((7, 2), 1000, np.arange(start, stop))
        np.testing.assert_array_equal(found, whole[start:stop])
        assert found.dtype == np.int64


def test_the_order_never_changes_between_versions():
    assert shuffled((0, 1), 10, np.arange(0, 10)).tolist() == FIRST
    assert shuffled((np.int64(0), 1), 10, np.arange(0, 10)).tolist() == FIRST
    assert int(shuffled((2**80, 0), 10**8, np.arange(99_999_999, 10**8))[0]) == 88141713
    assert shuffled((0, 3), 20_480, np.arange(0, 10_240))[::2048].tolist() == LATER


@pytest.mark.parametrize("length", [2, 3, 4])
def test_all_orders_are_equally_likely(length):
    orders = factorial(length)
    seeds = 400 + 20 * orders
    found = Counter(tuple(shuffled((seed, 0), length, np.arange(0, length)).tolist()) for seed in range(seeds))
    expected = seeds / orders
    chi_squared = sum((found[order] - expected) ** 2 / expected for order in found)
    assert len(found) == orders
    assert chi_squared < orders - 1 + 4 * (2 * (orders - 1)) ** 0.5  # four standard deviations; the seeds are fixed


@pytest.mark.parametrize("length", [6, 9, 16])
def test_odd_orders_are_as_likely_as_even_ones(length):
    orders = [shuffled((seed, 0), length, np.arange(length)) for seed in range(400)]
    odd = sum(int(np.sum(np.triu(order[:, None] > order, 1))) % 2 for order in orders)
    assert 160 < odd < 240  # four standard deviations; the seeds are fixed


def test_places_have_nothing_to_do_with_the_number_the_epoch_or_their_neighbours():
    length = 5000
    first, second = shuffled((1, 0), length, np.arange(0, length)), shuffled((1, 1), length, np.arange(0, length))
    limit = 4 / length**0.5  # four standard deviations of a correlation
    places = np.arange(length)
    for one, other in [(first, places), (first, second), (first[1:], first[:-1]), (first % 64, places % 64)]:
        assert abs(np.corrcoef(one, other)[0, 1]) < limit
    assert np.sum(first == places) < 10  # one is expected


def test_a_few_of_1e8_numbers_cost_no_table():
    tracemalloc.start()
    try:
        found = shuffled((0, 5), 10**8, np.arange(5 * 10**7, 5 * 10**7 + 4096))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(set(found.tolist())) == 4096
    assert found.min() >= 0
    assert 0.9e8 < found.max() < 1e8
