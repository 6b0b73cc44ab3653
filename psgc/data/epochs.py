"""The rows of each iteration, when every row of a data set comes once an epoch, in a random order."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEAST = 0.01  # cost of an empty chunk, since its report takes time as well


@lru_cache(2)  # of an epoch, and of the next one
def order_of(seed: int, epoch: int, length: int) -> np.ndarray:
    """The rows in the random order of an epoch, 4 bytes each; the same under every version of NumPy (RandomState).

    >>> order_of(0, 1, 10).tolist()
    [7, 3, 5, 0, 1, 4, 6, 8, 9, 2]
    """
    order = np.arange(length, dtype=np.uint32 if length < 2**32 else np.int64)
    np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch]))).shuffle(order)
    order.setflags(write=False)
    return order


def rows_of(seed: int, epoch: int, length: int, start: int, stop: int, shuffle: bool = True) -> np.ndarray:
    """The rows at places `start` to `stop - 1` of an epoch over `length` rows: (stop - start,) int64.

    shuffle: use the random order of the epoch; else the order of the data
    """
    return order_of(seed, epoch, length)[start:stop].astype(np.int64) if shuffle else np.arange(start, stop)


def bounds(i: int, length: int, num_chunks: int) -> tuple[int, int]:
    """The first place of chunk i of `num_chunks` among `length` rows, and the place after its last.

    With too few rows some chunks are empty.

    >>> [bounds(i, 7, 3) for i in range(3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    return i * length // num_chunks, (i + 1) * length // num_chunks


@dataclass(frozen=True)
class Epochs:
    """The batches of a run, a pure function of these numbers and the iteration.


    >>> epochs = Epochs(num_rows=7, size=3, count=2, seed=0)
    >>> epochs.iterations, [epochs.rows_in(iteration) for iteration in range(6)]
    (6, [3, 3, 1, 3, 3, 1])
    """

    num_rows: int  # number of rows of the data
    size: int  # number of rows of a batch; the last batch of an epoch may have fewer
    count: int  # number of epochs of the run
    seed: int  # the seed of the run
    shuffle: bool = True  # see `rows_of`

    @property
    def iterations_each(self) -> int:
        return -(-self.num_rows // self.size)

    @property
    def iterations(self) -> int:
        return self.count * self.iterations_each

    def rows_in(self, iteration: int) -> int:
        return min(self.size, self.num_rows - iteration % self.iterations_each * self.size)

    def costs(self, iteration: int, num_chunks: int) -> list[float]:
        """Costs of the chunks of an iteration, by their rows. An average chunk of a full batch costs 1.

        The last batch of an epoch may be small. Without costs a schedule would take all workers for faster there.
        """
        return costs_of(self.rows_in(iteration), num_chunks, self.rows_in(0))

    def rows(self, iteration: int, i: int, num_chunks: int) -> np.ndarray:
        """The rows of chunk i of the batch of an iteration, ascending: (n,) int64.

        n is 0 for some chunks of a batch with fewer rows than chunks.
        """
        epoch, place = divmod(iteration, self.iterations_each)
        first, last = (place * self.size + end for end in bounds(i, self.rows_in(iteration), num_chunks))
        return np.sort(rows_of(self.seed, epoch, self.num_rows, first, last, self.shuffle))


@lru_cache(4)  # a run has two kinds of batches
def costs_of(length: int, num_chunks: int, whole: int) -> list[float]:
    """Costs of the chunks of a batch of `length` rows. An average chunk of a full batch, of `whole` rows, costs 1."""
    ends = np.arange(num_chunks + 1) * length // num_chunks
    costs: list[float] = (np.diff(ends) * (num_chunks / whole)).clip(LEAST).tolist()
    return costs
