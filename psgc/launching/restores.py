"""Counts when a run should start again: which ranks are missing, for how long, and how often it was started again."""

from collections import deque
from collections.abc import Collection

from psgc.config.faults import Restore

HOUR = 3600.0  # seconds


class Restores:
    """The missing ranks of a run, and the times at which it was started again. The caller gives the time.

    >>> restores, settings = Restores(), Restore(lost=1, after=60)
    >>> restores.lacks({3}, 10.0)
    >>> restores.due(settings, 4, 69.0), restores.due(settings, 4, 70.0)
    ([], [3])
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._begun: deque[float] = deque()
        self._failed = 0  # starts that have failed since one has continued the run

    def lacks(self, ranks: Collection[int], now: float) -> None:
        """Set the missing ranks: lost workers, and ranks for which there are new slots."""
        self._since = {rank: self._since.get(rank, now) for rank in ranks}

    def forget(self, num_ranks: int) -> None:
        """Another run of a script begins, which lacks no worker yet. The slots of new ranks are for all runs."""
        self._since = {rank: since for rank, since in self._since.items() if rank >= num_ranks}

    def due(self, settings: Restore, num_ranks: int, now: float) -> list[int]:
        """The ranks that have been missing for long enough; empty unless they are `settings.lost` workers or new ones.

        Long enough is `settings.after` seconds, after a start that has failed twice as long, and so on, up to the usual
        time between `settings.per_hour` starts.

        num_ranks: number of ranks of the run; higher ranks are new
        """
        least = settings.after * 2.0 ** min(self._failed, 20)
        least = max(settings.after, min(least, HOUR / settings.per_hour))
        long = sorted(rank for rank, since in self._since.items() if now - since >= least)
        enough = sum(rank < num_ranks for rank in long) >= settings.lost
        return [rank for rank in long if rank >= num_ranks or enough]

    def may_begin(self, settings: Restore, now: float) -> bool:
        """Whether the run was started again fewer than `per_hour` times in the last hour."""
        while self._begun and now - self._begun[0] >= HOUR:
            self._begun.popleft()
        return len(self._begun) < settings.per_hour

    def tries(self) -> None:
        """New ranks are started. That does not count until they continue the run (`begins`)."""
        self._since = {}

    def fails(self) -> None:
        """The new ranks have not started: `due` waits longer from now on."""
        self._failed += 1

    def begins(self, now: float) -> None:
        """Count a start of the run: new ranks continue it."""
        self._begun.append(now)
        self._since, self._failed = {}, 0
