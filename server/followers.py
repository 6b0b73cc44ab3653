"""Rank 0 with `aggregation: server` and a script: the workers' scripts follow by the sums that begin each iteration.

A worker that has missed a sum, or was lost, gets the state of rank 0: as it is in a call, before the sum of that call
is out. So the sums that come behind it are those that the worker needs. Rank 0 alone has links to all workers.
"""

from collections.abc import Collection

from psgc.aggregation.replica import CHECKED, is_checked
from psgc.backend import Array
from psgc.server.arrivals import Moved
from psgc.server.digests import Difference, Digests
from psgc.server.links import Links
from psgc.server.replicas import Replicas
from psgc.server.script import Script


class Followers:
    """first: the iteration that the run begins with."""

    def __init__(self, links: Links, script: Script, workers: Collection[int], first: int) -> None:
        self._links, self._script, self._workers, self._first = links, script, workers, first
        self._replicas = Replicas(workers, first, alike=True, workers_give=False)
        self._digests = Digests(script.differing, first + CHECKED + 1)
        self._live: list[int] = []
        self._iteration = first - 1
        self._vector: Array = None  # that the iteration begins with
        self._to_give: list[int] = []  # workers that get the state of this iteration

    def begin(self, iteration: int, live: Collection[int], vector: Array = None) -> list[int]:
        """The workers that are to begin `iteration`, with the sum before it, `vector`.

        live: that are not lost; the others of them lack a state, which they get at the end of the iteration.
        """
        self._vector = vector
        for worker in set(live).difference(self._live):
            self._replicas.returned(worker, iteration)
        self._iteration, self._live, self._to_give = iteration, sorted(live), []
        lacking = self._replicas.lack_a_state(self._live)
        return [worker for worker in self._live if worker not in lacking]

    def without_state(self, iteration: int, live: Collection[int]) -> Collection[int]:
        """Those of `live`, the workers that are to do chunks now, that lack a state which nobody has in this iteration.

        If rank 0 has one they are given that, and begin the iteration: it may not end without them.
        """
        lacking, script = self._replicas.lack_a_state(live), self._script
        if not lacking or script.is_over() or (is_whole := self._look()) is None:
            return ()
        if is_whole and (snapshot := script.replica.snapshot()) is not None:
            given = [worker for _, worker in self._replicas.gifts(iteration, lacking, urgent=True)]
            self._links.give(given, snapshot.vectors[0], self._vector)
        return () if is_whole else lacking

    def are_served(self) -> bool:
        """Whether the sum of this iteration may go out: what the script is asked for in its call before it is there."""
        iteration, script = self._iteration, self._script
        lacking = self._replicas.lack_a_state(self._live)
        if not (lacking or self._to_give or is_checked(iteration, self._first)):
            return True
        if (is_whole := self._look()) is None:
            return False
        if is_whole and not self._to_give:
            self._to_give = [worker for _, worker in self._replicas.gifts(iteration, self._live)]
        if not self._to_give:
            return True
        if (snapshot := script.replica.snapshot()) is None:
            return script.is_over()
        self._links.give(self._to_give, snapshot.vectors[0])
        self._to_give = []
        return True

    def moved(self, news: Moved) -> None:
        """The script of a worker has come to a call, or has missed a sum."""
        if news.is_behind:
            self._replicas.behind(news.worker, news.iteration, self._iteration)
            return
        self._replicas.stepped(news.worker, news.iteration)
        if news.digest:
            self._digests.told(news.worker, news.iteration, news.digest)

    def wrong(self) -> list[Difference]:
        """The workers whose replicas are found wrong now: each is to be lost, and gets a state when it is back.

        Raises RunFailed when it is rank 0 whose replica is wrong.
        """
        if is_checked(self._iteration, self._first) and self._digests.last < self._iteration:
            self._look()
        return self._digests.wrong(self._iteration, self._replicas.following(self._live))

    def _look(self) -> bool | None:
        """Whether the state of rank 0 can be had in this iteration; None while its script has not called for it."""
        script = self._script
        if (is_whole := script.is_whole(self._iteration)) is not None:
            script.replica.start(self._iteration, None)
            if self._digests.last < self._iteration and (digest := script.replica.digest()):
                self._digests.own(self._iteration, digest)
        return is_whole

    def lost(self, worker: int) -> None:
        """`worker` takes no part any more."""
        self._live = [other for other in self._live if other != worker]
        self._to_give = [other for other in self._to_give if other != worker]
        self._replicas.lost(worker, self._iteration)

    def lack_a_state(self) -> set[int]:
        """The workers whose scripts cannot go on, and that are given no state."""
        return self._replicas.lack_a_state(self._workers)

    @property
    def is_giving(self) -> bool:
        """Whether a worker whose script goes on has not come to the state that it was given."""
        over_on = self._script.over_on()
        return bool(self._replicas.being_given([worker for worker in self._live if worker not in over_on]))

    def summary(self) -> dict[str, object]:
        """Which workers are known to be as rank 0, and when."""
        return {"iteration": self._digests.last, "equal": self._digests.equal()}
