"""Digests of replicas, compared."""

import pytest

from psgc.errors import RunFailed
from psgc.server.digests import Digests


def test_workers_that_differ_are_named_whoever_is_first():
    it = Digests()
    assert it.told(1, 16, b"a") == []
    assert it.told(2, 16, b"b") == []
    assert it.told(3, 16, b"a") == []
    assert it.own(16, b"a") == [2]
    assert it.told(4, 16, b"a") == []
    assert it.told(5, 16, b"c") == [5]
    assert (it.last, it.equal()) == (16, [1, 3, 4])


def test_only_the_newest_two_iterations_are_kept():
    it = Digests()
    for iteration in (16, 32, 48):
        it.told(1, iteration, b"a")
        assert it.own(iteration, b"a") == []
    assert it.told(2, 32, b"b") == [2]
    assert it.told(2, 16, b"b") == []  # too old to say
    assert it.equal() == [1]


@pytest.mark.parametrize("own_first", [True, False])
def test_when_most_differ_it_is_rank_0_that_is_wrong(own_first):
    it = Digests()
    it.told(3, 16, b"x")
    it.told(1, 16, b"a")
    first, last = [(it.own, 16, b"x"), (it.told, 2, 16, b"a")][:: 1 if own_first else -1]
    first[0](*first[1:])
    with pytest.raises(RunFailed, match=r"at iteration 16 .* of rank 0 differ from those of 2 of 3 workers"):
        last[0](*last[1:])


def test_workers_that_are_wrong_in_different_ways_are_wrong_themselves():
    it = Digests()
    it.own(16, b"a")
    assert it.told(1, 16, b"b") == [1]
    assert it.told(2, 16, b"c") == [2]
    assert it.told(3, 16, b"a") == []


def test_a_single_worker_that_differs_is_wrong_itself():
    it = Digests()
    it.told(1, 16, b"a")
    assert it.own(16, b"b") == [1]
