"""Digests of replicas, compared."""

import pytest

from psgc.errors import RunFailed, ServerDiffers
from psgc.server.digests import WINDOW, Digests

EIGHT = range(1, 9)


def of(own=None, told=(), iteration=16, **how):
    it = Digests(**how)
    if own is not None:
        it.own(iteration, own)
    for worker, digest in dict(told).items():
        it.told(worker, iteration, digest)
    return it


def names(differences):
    return [difference.worker for difference in differences]


def test_workers_that_differ_are_named_once_whoever_is_first():
    it = of(told={1: b"a", 2: b"b", 3: b"a"})
    assert it.wrong(16, [1, 2, 3]) == []
    it.own(16, b"a")
    assert it.wrong(16, [1, 2, 3]) == [(2, 16, ("the parameters",), False)]
    it.told(4, 16, b"a")
    it.told(5, 16, b"c")
    assert names(it.wrong(17, [1, 3, 4, 5])) == [5]
    assert it.wrong(17, [1, 3, 4]) == []
    assert (it.last, it.equal()) == (16, [1, 3, 4])


def test_only_the_newest_iterations_are_kept():
    it = Digests()
    for iteration in range(16, 128, 16):
        it.told(1, iteration, b"a")
        it.own(iteration, b"a")
        assert it.wrong(iteration, [1]) == []
    it.told(2, 32, b"b")
    it.told(3, 16, b"b")  # too old to say
    assert names(it.wrong(112, [1, 2, 3])) == [2]
    assert it.equal() == [1]


def test_a_worker_that_is_four_iterations_late_is_compared():
    it = Digests(sure=17)
    for iteration in (0, 1, 2, 3, 16):
        it.own(iteration, b"a")
        assert it.wrong(iteration, [1]) == []
    it.told(1, 0, b"b")
    assert names(it.wrong(16, [1])) == [1]


@pytest.mark.parametrize("own_first", [True, False])
def test_when_most_differ_it_is_rank_0_that_is_wrong(own_first):
    it = of(told={3: b"x", 1: b"a"})
    last = [lambda: it.own(16, b"x"), lambda: it.told(2, 16, b"a")][:: 1 if own_first else -1]
    last[0]()
    assert it.wrong(16, [1, 2, 3]) == []
    last[1]()
    with pytest.raises(RunFailed, match=r"at iteration 16 rank 0 differs from 2 of 3 workers in the parameters"):
        it.wrong(16, [1, 2, 3])


def test_it_is_known_until_when_rank_0_was_right():
    it = of(b"a", {1: b"a", 2: b"a"}, iteration=3)
    assert it.wrong(3, [1, 2]) == []
    it.own(16, b"x")
    for worker in (1, 2):
        it.told(worker, 16, b"a")
    with pytest.raises(ServerDiffers) as error:
        it.wrong(16, [1, 2])
    assert error.value.agreed == 3
    with pytest.raises(ServerDiffers) as error:
        of(b"x", {1: b"a", 2: b"a"}).wrong(16, [1, 2])
    assert error.value.agreed is None


def test_two_that_are_wrong_and_answer_first_are_not_most_of_eight():
    it = of(b"right", {1: b"wrong", 2: b"wrong"})
    assert it.wrong(16, EIGHT) == []  # it may still be rank 0
    for worker in (3, 4, 5):
        it.told(worker, 16, b"right")
        assert it.wrong(16, EIGHT) == []
    it.told(6, 16, b"right")  # the others cannot change that now
    assert names(it.wrong(16, EIGHT)) == [1, 2]
    for worker in (7, 8):
        it.told(worker, 16, b"right")
    assert it.wrong(17, EIGHT) == []


def test_after_some_iterations_nobody_else_is_waited_for():
    it = of(b"right", {1: b"wrong", 2: b"wrong"})
    assert it.wrong(16 + WINDOW - 1, EIGHT) == []
    assert names(it.wrong(16 + WINDOW, EIGHT)) == [1, 2]
    it = of(b"wrong", dict.fromkeys(range(1, 6), b"right"))
    assert it.wrong(16 + WINDOW - 1, EIGHT) == []
    with pytest.raises(RunFailed, match="5 of 8 workers"):
        it.wrong(16 + WINDOW, EIGHT)


def test_workers_that_are_wrong_in_different_ways_are_wrong_themselves():
    it = of(b"a", {1: b"b", 2: b"c", 3: b"a"})
    assert names(it.wrong(16, [1, 2, 3])) == [1, 2]
    assert names(of(b"b", {1: b"a"}).wrong(16, [1])) == [1]  # one is not most


def differing(one, other):
    """Digests of two letters; a dot agrees with all."""
    return [
        name for name, a, b in zip(("parameters", "buffers"), one, other, strict=True) if a != b and 46 not in (a, b)
    ]


def test_what_differs_is_told_from_the_digests():
    it = of(b"ab", {1: b"a.", 2: b"ac", 3: b"cd"}, differing=differing)
    assert [difference[0::2] for difference in it.wrong(16, [1, 2, 3])] == [
        (2, ("buffers",)),
        (3, ("parameters", "buffers")),
    ]
    assert it.equal() == [1]


def test_what_differs_in_the_first_iterations_of_a_script_is_a_mistake_and_is_named_at_once():
    """It is no flipped bit, also when all others differ from rank 0."""
    it = of(b"a", {1: b"b", 2: b"b"}, iteration=1, sure=16)
    assert [(found.worker, found.is_early) for found in it.wrong(1, EIGHT)] == [(1, True), (2, True)]
    it = of(b"a", {1: b"b", 2: b"a"}, iteration=16, sure=16)
    assert [(found.worker, found.is_early) for found in it.wrong(16, [1, 2])] == [(1, False)]
