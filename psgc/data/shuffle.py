"""A random order of the numbers 0, 1, ..., that is computed place by place and never kept."""

import hashlib
from math import isqrt

import numpy as np

_ROUNDS = 24  # with 8, some orders of five numbers are seven times as likely as others


def shuffled(key: tuple[int, ...], length: int, start: int, stop: int) -> np.ndarray:
    """Places `start` to `stop - 1` of a random order of the numbers 0..length-1: (stop - start,) int64.

    It is a pure function of key and length, the same under every version of NumPy. Only what is asked for is computed:
    with 10^8 numbers no rank keeps a table of 800 MB, nor waits for it. A place takes some 0.5 us.

    Notes: a Feistel network on the two digits of a number in a base of about sqrt(length). A number of `length` or more
    is put through it again, until one below comes out.
    References: Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002).

    >>> shuffled((0, 1), 10, 0, 10).tolist(), shuffled((0, 1), 10, 4, 6).tolist()
    ([7, 3, 4, 8, 9, 0, 6, 2, 5, 1], [9, 0])
    """
    return shuffled_at(key, length, np.arange(start, stop))


def shuffled_at(key: tuple[int, ...], length: int, places: np.ndarray) -> np.ndarray:
    """As `shuffled`, at these places, in any order. A call takes some 0.4 ms however few they are."""
    rounds = _round_keys(key)
    numbers = places.astype(np.uint64)
    if not numbers.size:
        return numbers.astype(np.int64)
    numbers = _permuted(numbers, length, rounds)
    while (outside := np.flatnonzero(numbers >= length)).size:
        numbers[outside] = _permuted(numbers[outside], length, rounds)
    return numbers.astype(np.int64)


def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    words = hashlib.shake_256(repr(tuple(map(int, key))).encode()).digest(8 * _ROUNDS)
    return np.frombuffer(words, "<u8").astype(np.uint64)


def _permuted(numbers: np.ndarray, length: int, rounds: np.ndarray) -> np.ndarray:
    """A permutation of 0..a*b-1, which is not much more than `length`."""
    b = 2 * (isqrt(length - 1) // 2 + 1)  # with an even one, odd permutations are as likely as even ones
    a = -(-length // b)
    left, right = np.divmod(numbers, np.uint64(b))
    for at in range(_ROUNDS):
        if at % 2:
            right = (right + _mixed(left, rounds[at : at + 1]) % np.uint64(b)) % np.uint64(b)
        else:
            left = (left + _mixed(right, rounds[at : at + 1]) % np.uint64(a)) % np.uint64(a)
    return left * np.uint64(b) + right


def _mixed(numbers: np.ndarray, key: np.ndarray) -> np.ndarray:
    """64 random bits for each number. Source: the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    mixed = numbers + key  # arithmetic modulo 2^64 throughout
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
