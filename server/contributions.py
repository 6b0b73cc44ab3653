"""Contributors that are so late that the others do better without them (`aggregation: allreduce`).

Every contributor sends a whole coded vector, however few of its chunks count. A contributor with a slow processor or
link delays the exchange for the sake of chunks that others hold too. Rank 0 measures how late each contributor's
blocks of rank 0's own slice arrive. A contributor that is late several times in a row *rests* for some iterations: it
does no chunk that enough others hold, but still follows. Then it is tried once more. A resting worker does what is left
when the iteration lasts long, since the others may have stopped (`psgc.schedules.decisions.LONG_REST`). Pure: no clock,
no MPI.
"""

from collections import Counter
from collections.abc import Collection
from statistics import median

LATE = 1.5  # times the median, after which a rank is late
LEAST_LATE = 0.05  # seconds above that median, at least
IN_A_ROW = 3  # iterations; where ranks share processors one of them is last each time, and another one the next time
FIRST_REST, LONGEST_REST = 8, 64  # iterations; each rest of a worker is twice as long as its rest before


def late_above(seconds: Collection[float]) -> float:
    """By the seconds that each rank took, at least one: a rank that took longer than this was late.

    >>> late_above([1.0, 2.0, 9.0]), late_above([0.0, 0.0])
    (3.0, 0.05)
    """
    usual = median(seconds)
    return max(LATE * usual, usual + LEAST_LATE)


class Contributions:
    """The lateness and the rests of all workers in a run."""

    def __init__(self) -> None:
        self._began = 0.0
        self._took: dict[int, float] = {}  # by worker: seconds until its newest block arrived
        self._late = Counter[int]()  # by worker: how many times in a row it was late
        self._rests: dict[int, int] = {}  # by worker: length of its newest rest in iterations
        self._until: dict[int, int] = {}  # by worker: last iteration of its newest rest

    def begin(self, now: float) -> None:
        """The map of an iteration is sent."""
        self._began, self._took = now, {}

    def arrived(self, worker: int, now: float) -> None:
        """A block arrives that `worker` contributes."""
        self._took[worker] = now - self._began

    def learn(self, iteration: int) -> None:
        """The iteration is over: late contributors rest from the next iteration on."""
        if not self._took:
            return
        limit = late_above(self._took.values())
        for worker, seconds in self._took.items():
            if seconds <= limit:
                self._late[worker] = 0
                self._rests.pop(worker, None)
                continue
            self._late[worker] += 1
            if worker in self._rests or self._late[worker] >= IN_A_ROW:
                self._rests[worker] = min(LONGEST_REST, 2 * self._rests.get(worker, FIRST_REST // 2))
                self._until[worker] = iteration + self._rests[worker]

    def resting(self, iteration: int) -> frozenset[int]:
        """The workers that rest in this iteration."""
        return frozenset(worker for worker, until in self._until.items() if iteration <= until)
