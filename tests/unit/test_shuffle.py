"""The random orders of epochs."""

from collections import Counter

import numpy as np
import pytest

from psgc.data.epochs import order_of, rows_of

FIRST = [7, 3, 5, 0, 1, 4, 6, 8, 9, 2]


@pytest.mark.parametrize("length", [1, 2, 63, 1000, 99_999])
def test_every_row_comes_once(length):
    assert sorted(order_of(3, 1, length).tolist()) == list(range(length))
    part = rows_of(3, 1, length, length // 3, length // 2)
    assert part.tolist() == order_of(3, 1, length)[length // 3 : length // 2].tolist()
    assert part.dtype == np.int64


def test_the_order_never_changes_between_versions():
    assert order_of(0, 1, 10).tolist() == FIRST
    assert order_of(np.int64(0), 1, 10).tolist() == FIRST


def test_each_seed_and_epoch_has_an_order_of_its_own():
    found = Counter(tuple(order_of(seed, epoch, 3).tolist()) for seed in range(30) for epoch in range(30))
    assert len(found) == 6
    assert all(100 < times < 200 for times in found.values())
