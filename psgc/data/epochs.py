"""Which rows of a data set each iteration takes, when every row comes once an epoch, in a random order."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np

TOGETHER = 1024  # rows that are looked up together, of the same chunk in some iterations: a look-up takes 0.2 ms
LEAST = 0.01  # cost of an empty chunk: its report takes time as well
_ROUNDS = 24  # with 8, some orders of five numbers are seven times as likely as others


def rows_of(seed: int, epoch: int, length: int, start: int, stop: int, shuffle: bool = True) -> np.ndarray:
    """The rows at places `start` to `stop - 1` of an epoch over `length` rows: (stop - start,) int64.

    shuffle: in the order of the epoch, otherwise in that of the data.
    """
    places = np.arange(start, stop)
    return shuffled((seed, epoch), length, places) if shuffle else places


def bounds(i: int, length: int, num_chunks: int) -> tuple[int, int]:
    """Where chunk i of `num_chunks` begins and ends among `length` rows. Some are empty when there are too few rows.

    >>> [bounds(i, 7, 3) for i in range(3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    return i * length // num_chunks, (i + 1) * length // num_chunks


@dataclass(frozen=True)
class Epochs:
    """The batches of a run: a pure function of these numbers and the iteration, so nothing has to be kept.

    num_rows: of the data; size: rows of a batch, the last one of an epoch may have fewer; count: epochs of the run;
    shuffle: as for `rows_of`.

    >>> epochs = Epochs(num_rows=7, size=3, count=2, seed=0)
    >>> epochs.iterations, [epochs.rows_in(iteration) for iteration in range(6)]
    (6, [3, 3, 1, 3, 3, 1])
    """

    num_rows: int
    size: int
    count: int
    seed: int
    shuffle: bool = True

    @property
    def iterations_each(self) -> int:
        """Iterations of an epoch."""
        return -(-self.num_rows // self.size)

    @property
    def iterations(self) -> int:
        """Iterations of the run."""
        return self.count * self.iterations_each

    def rows_in(self, iteration: int) -> int:
        """How many rows the batch of an iteration has."""
        return min(self.size, self.num_rows - iteration % self.iterations_each * self.size)

    def costs(self, iteration: int, num_chunks: int) -> list[float]:
        """Costs of the chunks of an iteration, by their rows; an average chunk of a whole batch costs 1.

        The last batch of an epoch may be small. A schedule that does not know that would think all workers faster.
        """
        return costs_of(self.rows_in(iteration), num_chunks, self.rows_in(0))

    def rows(self, iteration: int, i: int, num_chunks: int) -> np.ndarray:
        """The rows of chunk i of the batch of an iteration, ascending: (n,) int64.

        n is 0 for some chunks of a batch with fewer rows than chunks.
        """
        together = max(1, TOGETHER * num_chunks // self.size)
        epoch, place = divmod(iteration, self.iterations_each)
        first = epoch * self.iterations_each + place - place % together
        look_up = _kept if together > 1 else _looked_up
        return look_up(self, range(first, first + together), i, num_chunks)[iteration - first]


@lru_cache(4)  # a run has two kinds of batches
def costs_of(length: int, num_chunks: int, whole: int) -> list[float]:
    """Costs of the chunks of a batch of `length` rows; an average chunk of a whole batch, of `whole` rows, costs 1."""
    ends = np.arange(num_chunks + 1) * length // num_chunks
    costs: list[float] = (np.diff(ends) * (num_chunks / whole)).clip(LEAST).tolist()
    return costs


def _looked_up(epochs: Epochs, iterations: range, i: int, num_chunks: int) -> list[np.ndarray]:
    """The rows of chunk i in these iterations, of those in the epoch of the first."""
    epoch, place = divmod(iterations.start, epochs.iterations_each)
    places = []
    for iteration in iterations[: epochs.iterations_each - place]:
        start = iteration % epochs.iterations_each * epochs.size
        first, last = bounds(i, epochs.rows_in(iteration), num_chunks)
        places.append(np.arange(start + first, start + last))
    rows = np.concatenate(places)
    if epochs.shuffle:
        rows = shuffled((epochs.seed, epoch), epochs.num_rows, rows)
    return [np.sort(chunk) for chunk in np.split(rows, np.cumsum([len(some) for some in places])[:-1])]


_kept = lru_cache(256)(_looked_up)  # 2 MB


def shuffled(key: tuple[int, ...], length: int, places: np.ndarray) -> np.ndarray:
    """The numbers at these places, in any order, of a random order of 0..length-1: int64.

    It is a pure function of key and length, the same under every version of NumPy. Only what is asked for is computed:
    no rank keeps a table of 800 MB for 10^8 numbers. A place takes some 0.1 us, a call 0.2 ms.

    A Feistel network on the two digits of a number in a base of about sqrt(length). A number of `length` or more is put
    through it again, until one below comes out. Source: Black and Rogaway, "Ciphers with arbitrary finite domains"
    (CT-RSA 2002).

    >>> shuffled((0, 1), 10, np.arange(10)).tolist(), shuffled((0, 1), 10, np.arange(4, 6)).tolist()
    ([7, 3, 4, 8, 9, 0, 6, 2, 5, 1], [9, 0])
    """
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
    even = 2 * (isqrt(length - 1) // 2 + 1)  # with an even base, odd permutations are as likely as even ones
    a, b = bases = np.uint64(-(-length // even)), np.uint64(even)
    left = numbers // b
    digits = [left, numbers - left * b]
    tables = []  # for each digit and round: how far the other digit moves it; used where that is less to compute
    if max(bases) < numbers.size:
        every = (np.arange(b, dtype=np.uint64), np.arange(a, dtype=np.uint64))
        tables = [_below(base, every[which], rounds[which::2, None]) for which, base in enumerate(bases)]
    for at in range(_ROUNDS):
        which = at % 2
        base, other = bases[which], digits[1 - which]
        moved = (
            tables[which][at // 2].take(other.view(np.int64)) if tables else _below(base, other, rounds[at : at + 1])
        )
        moved += digits[which]
        # what is below 0 becomes a number of about 2^64, so the minimum is the sum modulo `base`
        digits[which] = np.minimum(moved, moved - base)
    return np.asarray(digits[0] * b + digits[1])


def _below(base: np.uint64, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A random number below `base` for each number and key."""
    mixed = _mixed(numbers, keys)
    mixed -= mixed // base * base  # NumPy divides by one number faster than it computes remainders
    return mixed


def _mixed(numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """64 random bits for each number and key.

    Source: the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    mixed = np.asarray(numbers + keys)  # arithmetic modulo 2^64 throughout
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
