"""How rank 0 keeps the workers' replicas alike: who needs a state, who gives it one, and whose replica is wrong.

`psgc.server.replicas` and `psgc.server.digests` decide, and this class sends what they decide. The replica of rank 0
takes part like any other.
"""

from collections.abc import Collection, Sequence
from math import inf

from psgc.aggregation.allreduce import AllReduce
from psgc.aggregation.blocks import Sums
from psgc.aggregation.replica import CHECKED
from psgc.backend import Array
from psgc.config import Config
from psgc.messages import Kind
from psgc.server.arrivals import Moved
from psgc.server.digests import Digests, WrongReplica
from psgc.server.driver import Driver
from psgc.server.outbox import Outbox
from psgc.server.replicas import WAITING, Replicas


class States:
    """The replicas of a run, as rank 0 knows them. Arguments as of `Summing`.

    allreduce: of rank 0
    hosts: as in a map
    live: the live workers of the current iteration
    replicas: the iteration that each worker's replica has reached
    is_redoing: whether a contributor was lost after the map was sent, so that something is done again
    """

    def __init__(
        self,
        outbox: Outbox,
        allreduce: AllReduce,
        driver: Driver,
        config: Config,
        sums: Sums,
        hosts: Sequence[int],
        params: Array,
        alike: Collection[int],
    ) -> None:
        self._outbox, self._allreduce, self._driver = outbox, allreduce, driver
        self._workers, first = range(1, len(sums.matrix) + 1), sums.first
        self._workers_give = config.aggregation == "allreduce"
        waiting, sure = max(WAITING, driver.waiting(params.nbytes)), first + CHECKED + 1 if driver.is_alike else 0
        alike = self._workers if driver.is_alike else alike
        self.replicas = Replicas(self._workers, first, alike, self._workers_give, waiting, hosts)
        self._digests = Digests(driver.differing, sure)
        self.live: list[int] = []
        self._receivers: Collection[int] | None = None  # of the newest map in this iteration
        self._timeout = config.faults.collect_timeout
        self._give_at = self._timeout  # when rank 0 begins to give states itself; inf once it does
        self._iteration = first - 1
        self.is_redoing = False

    # an iteration

    def without_state(self, iteration: int, live: Collection[int]) -> Collection[int]:
        """The live workers that need a state, while no rank can give one. Empty when a state can be given.

        No rank can while the script of rank 0 is in the middle of a step.
        """
        if self._has_state(iteration):
            return ()
        return self.replicas.lack_a_state(live) | (self.replicas.being_given(live) & self._allreduce.owed)

    def _has_state(self, iteration: int) -> bool:
        """Whether rank 0 can give its state of `iteration`. If not, no other rank can either."""
        return bool(self._driver.is_whole(iteration))

    def begin(self, iteration: int, live: Collection[int], now: float) -> None:
        """A new iteration. `give` must follow once the workers have been told. now: as in `Cluster`."""
        returned = set(live).difference(self.live)
        away = [worker for worker in self._workers if worker not in live]
        for worker in returned:
            self.replicas.returned(worker, iteration)
            if self.replicas.is_wrong(worker):
                self._outbox.tell(worker, Kind.DROP)
            for other in away:  # this worker was not told of workers that were lost while it was lost
                self._outbox.tell(worker, Kind.LEFT, worker=other)
        self._iteration, self.live, self._give_at = iteration, sorted(live), now + self._timeout
        self._receivers, self.is_redoing = None, False

    def mapped(self, receivers: Collection[int]) -> None:
        """The ranks have a new map, with these receivers."""
        self._receivers = receivers

    def receivers(self) -> Sequence[int]:
        """The ranks that get the gradient of this iteration."""
        if self._receivers is None:
            return self.replicas.receivers(self._iteration, self.live)
        return [rank for rank in self._receivers if rank == 0 or rank in self.live]

    def _usable_by(self) -> Collection[int]:
        """The live workers that can use a state of this iteration."""
        if self._receivers is None or self.is_redoing:
            return self.live
        return [worker for worker in self.live if worker in self._receivers]

    def give(self) -> None:
        """Have the workers that need a state be given one, as far as a rank can now."""
        if not self._has_state(self._iteration):
            return
        is_urgent = self.is_redoing or self._give_at == inf
        for donor, worker in self.replicas.gifts(self._iteration, self._usable_by(), is_urgent):
            if donor:
                self._outbox.tell(donor, Kind.GIVE, worker=worker)
            else:
                self._allreduce.give(worker, self._iteration)

    def poll(self, now: float) -> None:
        """Give what is overdue, and advance the replica of rank 0."""
        if now >= self._give_at:
            self._give_at, has_state = inf, self._has_state(self._iteration)
            for worker in self.replicas.overdue(self._iteration, self._usable_by(), has_state):
                if has_state:
                    self._allreduce.give(worker, self._iteration)
            self.give()
        self.advance(is_first=self._driver.is_alike and self._digests.last < 0)

    def advance(self, is_first: bool = False) -> None:
        """Advance the replica of rank 0. is_first: nothing has been compared yet, and the first states should be."""
        has_moved = self._allreduce.poll()
        if (has_moved or is_first) and (digest := self._allreduce.digest()):
            self._digests.own(self._allreduce.steps, digest)

    # what workers say

    def moved(self, news: Moved) -> None:
        """The replica of a worker has reached an iteration, or is behind."""
        if news.is_behind:
            self.replicas.behind(news.worker, news.iteration, self._iteration)
        else:
            self.replicas.stepped(news.worker, news.iteration)
            if news.digest:
                self._digests.told(news.worker, news.iteration, news.digest)
        self.give()

    def told(self, worker: int, iteration: int, digest: bytes) -> None:
        """A worker's digest that comes after the run, for the summary."""
        self._digests.told(worker, iteration, digest)

    def reported(self, worker: int) -> None:
        """A worker has done a chunk of this iteration, so its replica has reached it."""
        if not self.replicas.is_at(worker, self._iteration):
            self.replicas.stepped(worker, self._iteration)
            self.give()

    def wrong(self) -> list[WrongReplica]:
        """The workers found wrong since the last call. Each must be lost, and gets a state when it comes back.

        Raises RunFailed when the replica of rank 0 is wrong.
        """
        found = self._digests.wrong(self._iteration, self.replicas.following(self.live))
        for difference in found:
            self.replicas.wrong(difference.worker)
        return found

    def lost(self, worker: int) -> None:
        """`worker` is lost: tell the others, and have other ranks give what it was to give."""
        self.live = [other for other in self.live if other != worker]
        self.replicas.lost(worker, self._iteration)
        for other in self.live:
            self._outbox.tell(other, Kind.LEFT, worker=worker)
        self._allreduce.left(worker)
        self.give()

    # the end of a run

    def is_followed(self, ended_ranks: Collection[int]) -> bool:
        """Whether no rank needs this one any more, except for messages that have not left.

        ended_ranks: as of `Driver`

        If all ranks own slices, that is when the live workers that follow have made the last step (`Replicas.are_at`).
        Until then they may need slices from each other, and new owners. Otherwise it is when every worker that is given
        a state has reached it.
        """
        if not self._workers_give:
            return not self.replicas.being_given([worker for worker in self.live if worker not in ended_ranks])
        return self.replicas.are_at(self._allreduce.steps, self.live, ended_ranks)

    def lack_a_state(self) -> set[int]:
        """The workers that need a state, and that no rank gives one."""
        return self.replicas.lack_a_state(self._workers)

    def summary(self) -> dict[str, object]:
        """For summary.json: the workers whose parameters are known to equal those of rank 0, and at which iteration."""
        return {"iteration": self._digests.last, "equal": self._digests.equal()}
