"""Which workers send what they contribute so late that the others go on better without it (`aggregation: allreduce`).

Every contributor sends a whole coded vector, however few of its chunks count. One with a slow processor or link holds
the exchange up for the sake of a chunk that others hold too. Rank 0 sees how late the blocks of each contributor are
that belong to its own slice. A contributor that is late *rests* for some iterations: it does no chunk that enough
others hold, and follows all the same. Then it is tried once more. Should several others stop, it does what is left once
the iteration lasts long (`psgc.schedules.decisions.LONG_REST`). Pure: no clock, no MPI.
"""

from statistics import median

LATE = 1.5  # times the median of the contributors, after which one of them is late
LEAST_LATE = 0.05  # seconds
FIRST_REST, LONGEST_REST = 8, 64  # iterations: the first rest, and the longest; each is twice as long as the one before


class Contributions:
    """Of all workers, over the iterations of a run."""

    def __init__(self) -> None:
        self._began = 0.0
        self._took: dict[int, float] = {}  # by worker: seconds until its newest block was here
        self._rests: dict[int, int] = {}  # by worker: iterations that its newest rest lasts
        self._until: dict[int, int] = {}  # by worker: the iteration with which its rest ends

    def begin(self, now: float) -> None:
        """The map of an iteration goes out."""
        self._began, self._took = now, {}

    def arrived(self, worker: int, now: float) -> None:
        """A block that `worker` contributes is here."""
        self._took[worker] = now - self._began

    def learn(self, iteration: int) -> None:
        """The iteration is over: contributors that were late rest from the next one on."""
        if not self._took:
            return
        limit = max(LATE * (usual := median(self._took.values())), usual + LEAST_LATE)
        for worker, seconds in self._took.items():
            if seconds > limit:
                self._rests[worker] = min(LONGEST_REST, 2 * self._rests.get(worker, FIRST_REST // 2))
                self._until[worker] = iteration + self._rests[worker]
            else:
                self._rests.pop(worker, None)

    def resting(self, iteration: int) -> frozenset[int]:
        """The workers that rest in this iteration."""
        return frozenset(worker for worker, until in self._until.items() if iteration <= until)
