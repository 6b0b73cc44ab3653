"""How rank 0 has the ranks sum: it makes the maps, chooses the versions that count, and arranges for states.

With `aggregation: allreduce` all ranks own slices, with `server` rank 0 owns them all. With `per_chunk` rank 0 has the
gradient, so it is the only contributor too. Its own replica takes part like any other. `psgc.server.owners` and
`psgc.server.replicas` decide, and this class sends what they decide.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import inf

from psgc.aggregation.allreduce import AllReduce, Listener
from psgc.aggregation.blocks import Accumulators, Sums
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.map_messages import close_records, to_records
from psgc.aggregation.replica import CHECKED
from psgc.backend import Array, Backend
from psgc.config import Config
from psgc.errors import ProtocolError
from psgc.iteration import Moment
from psgc.messages import Kind, Records, joined, sums_records, unpack_block
from psgc.server.arrivals import Alive, BlockArrived, Moved
from psgc.server.contributions import Contributions
from psgc.server.digests import Digests, WrongReplica
from psgc.server.driver import Driver
from psgc.server.events import COLLECTING, REDOING, Phase
from psgc.server.malformed import Malformed
from psgc.server.outbox import Outbox
from psgc.server.owners import Owners
from psgc.server.replicas import WAITING, Replicas
from psgc.transport import Transport

OF_RANK_0 = 1  # the role in which rank 0 contributes
NONE: Accumulators = {}


class Summing(Listener):
    """The exchanges of a run, on rank 0.

    sums: what is summed
    driver: the calls of the run
    params: (dim,), with which the replica of rank 0 begins
    alike: the workers whose replicas begin with `params` too
    moment: called at the steps of the exchange
    """

    moment: Callable[[Moment, int], object] = staticmethod(lambda moment, iteration: None)

    def __init__(
        self,
        transport: Transport,
        backend: Backend,
        outbox: Outbox,
        config: Config,
        sums: Sums,
        driver: Driver,
        params: Array,
        alike: Collection[int] = (),
    ) -> None:
        ranks, first, timeout = range(len(sums.matrix) + 1), sums.first, config.faults.collect_timeout
        self._workers, self._outbox = ranks[1:], outbox
        self.allreduce = AllReduce(transport, backend, sums, driver.replica, self)
        self._all_own, hosts = config.aggregation == "allreduce", transport.shared.hosts
        self._here = transport.term.ranks_at(transport.term.server)  # rank 0, and the worker of its process
        self._owners = Owners(ranks, sums.entries, sums.parts, sums.dtype.itemsize, timeout, hosts, sums.nodes > 0)
        self._contributions = Contributions()
        self._driver = driver
        waiting, sure = max(WAITING, driver.waiting(params.nbytes)), first + CHECKED + 1 if driver.is_alike else 0
        alike = ranks[1:] if driver.is_alike else alike
        self._replicas = Replicas(ranks[1:], first, alike, self._all_own, waiting, hosts)
        self._digests = Digests(driver.differing, sure)
        self._live: list[int] = []
        self._before: dict[int, Map] = {}  # by worker: the newest first map that it was sent
        self._timeout = timeout
        self._overdue = timeout  # when rank 0 begins to give states itself; inf once it does
        self._iteration, self._now = first - 1, 0.0
        self._redoing = False  # whether a contributor was lost after the map was sent
        if config.transfer == "combined":  # with `per_chunk` no block comes to rank 0
            self.allreduce.open()
        self.allreduce.start(first, params)

    # an iteration

    def resting(self, iteration: int) -> frozenset[int]:
        """The workers that contribute only chunks that nobody else can do, since they would delay all owners."""
        return self._contributions.resting(iteration) if self._all_own else frozenset()

    def without_state(self, iteration: int, live: Collection[int]) -> Collection[int]:
        """The workers that lack a state which no rank can give in this iteration, in the middle of a script's call."""
        if self._has_state(iteration):
            return ()
        return self._replicas.lack_a_state(live) | (self._replicas.being_given(live) & self.allreduce.owed)

    def _has_state(self, iteration: int) -> bool:
        """Whether rank 0 can give its state of `iteration`. If not, no other rank can either."""
        return bool(self._driver.is_whole(iteration))

    def begin(self, iteration: int, live: Collection[int], fractions: Mapping[int, float] | None = None) -> None:
        """Tell the live workers to begin `iteration`. Each begins when its replica has reached it.

        fractions: by worker, the fraction of its queue that it does in one pass; other workers do one chunk
        """
        returned = set(live).difference(self._live)
        away = [worker for worker in self._workers if worker not in live]
        for worker in returned:
            self._replicas.returned(worker, iteration)
            if self._replicas.is_wrong(worker):
                self._outbox.tell(worker, Kind.DROP)
            for other in away:  # this worker was not told of workers that were lost while it was lost
                self._outbox.tell(worker, Kind.LEFT, worker=other)
        self._iteration, self._live, self._overdue = iteration, sorted(live), self._now + self._timeout
        self._owners.begin(iteration)
        self._redoing = False
        for worker in self._live:
            self._outbox.tell(worker, Kind.BEGIN, start=(fractions or {}).get(worker, 0.0))
        self._give()

    def share(self, accumulators: Iterable[tuple[int, int, int]], now: float) -> None:
        """Have the ranks sum these accumulators, (worker, role, serial) each. now: as in `Cluster`."""
        contributors = [Contributor(*one) for one in accumulators]
        self._redoing = False
        self._contributions.begin(now)
        ranks = {one.rank for one in contributors}
        for rank in ranks:  # a contributor has reached the iteration, even one that came back and has not said so
            self._replicas.stepped(rank, self._iteration)
        if self._share(contributors, now, {}) is not None:
            for rank in ranks:
                self._replicas.follows(rank)

    def hand_out(self, gradient: Array, now: float) -> None:
        """Give all ranks this gradient (dim,) of rank 0. It must not change until the next iteration."""
        self._share([Contributor(0, OF_RANK_0, 0)], now, {(OF_RANK_0, 0): gradient})
        self.choose()

    def _share(self, contributors: Sequence[Contributor], now: float, own: Accumulators) -> Map | None:
        """Send the ranks a map, and return it; None when rank 0 has every slice already."""
        receivers = self.receivers()
        others = [rank for rank in receivers if rank not in self._here] if self._all_own else ()
        at_it = [worker for worker in others if self._replicas.is_at(worker, self._iteration)]
        made = self._owners.share(contributors, receivers, [0, *at_it], now)  # a process owns one slice
        self._send(made, own)
        return made

    def receivers(self) -> Sequence[int]:
        """The ranks that get the gradient of this iteration."""
        if (known := self._owners.map) is None:
            return self._replicas.receivers(self._iteration, self._live)
        return [rank for rank in known.receivers if rank == 0 or rank in self._live]

    @property
    def is_complete(self) -> bool:
        """Whether rank 0 has the whole gradient."""
        return self._owners.is_complete

    def poll(self, now: float, phase: Phase) -> None:
        """Advance the exchange. Raises RunFailed when it makes no progress."""
        self._now = now
        if now >= self._overdue:
            self._overdue, has_state = inf, self._has_state(self._iteration)
            for worker in self._replicas.overdue(self._iteration, self._can_use_a_state, has_state):
                if has_state:
                    self.allreduce.give(worker, self._iteration)
            self._give()
        is_first = self._driver.is_alike and self._digests.last < 0  # nothing has been compared yet
        self._follow(is_first)
        self._owners.moved(0, self.allreduce.link.carried[self._iteration], now)
        if phase == COLLECTING:
            awaited = partial(self.allreduce.exchange.awaited, self._iteration)
            self._send(self._owners.late(self.receivers(), now, awaited))

    def _follow(self, is_first: bool = False) -> None:
        """Advance the replica of this rank."""
        has_moved = self.allreduce.poll()
        if (has_moved or is_first) and (digest := self.allreduce.digest()):
            self._digests.own(self.allreduce.steps, digest)

    def choose(self) -> None:
        """Make the gradient from the versions that arrived first. They count, and late ones change nothing."""
        self.allreduce.chosen(self._iteration, self._owners.others)

    @property
    def gradient(self) -> Array:
        """(dim,): the gradient of this iteration, once it is chosen."""
        return self.allreduce.blocks.gradient(self._iteration)

    def close(self) -> None:
        """Have every rank make the step with the versions that count."""
        self._owners.learn()
        self._contributions.learn(self._iteration)
        versions = joined(close_records(self._iteration, self._owners.versions))
        for worker in self._live:
            self._outbox.tell_all(worker, versions)
        self.allreduce.closed(self._iteration, self._owners.others)
        self._follow()  # a short step is done here

    def evaluated(self, sums: Sequence[float]) -> None:
        """The iteration was an evaluation, without a gradient. Give every rank its sums."""
        for worker in self._live:
            self._outbox.tell_all(worker, sums_records(self._iteration, -1, sums))
        self.allreduce.evaluated(self._iteration, sums)

    @property
    def params(self) -> Array | None:
        """(dim,): the parameters after the step, None before it."""
        has_stepped = self.allreduce.steps > self._iteration
        return self.allreduce.replica.params if has_stepped else None

    def summary(self) -> dict[str, object]:
        """For summary.json: the workers whose parameters are known to equal those of rank 0, and at which iteration."""
        return {"iteration": self._digests.last, "equal": self._digests.equal()}

    def is_followed(self, over_on: Collection[int]) -> bool:
        """Whether no rank needs this one any more, except for messages that have not left.

        If all ranks own slices, that is when the live workers that follow have made the last step (`Replicas.are_at`).
        Until then they may need slices from each other, and new owners. Otherwise it is when every worker that is given
        a state has reached it.
        """
        if not self._all_own:
            return not self._replicas.being_given([worker for worker in self._live if worker not in over_on])
        return self._replicas.are_at(self.allreduce.steps, self._live, over_on)

    # workers

    def lack_a_state(self) -> set[int]:
        """The workers that need a state, and that no rank gives one."""
        return self._replicas.lack_a_state(self._workers)

    def lost(self, worker: int) -> None:
        """`worker` is lost. The coordinator is told after this, and then `reassign` is called."""
        self._live = [other for other in self._live if other != worker]
        self._before.pop(worker, None)
        self._replicas.lost(worker, self._iteration)
        for other in self._live:
            self._outbox.tell(other, Kind.LEFT, worker=worker)
        self.allreduce.left(worker)
        self._give()

    def reassign(self, worker: int, now: float, phase: Phase) -> None:
        """Give the slices of a lost worker to other owners, unless accumulators are missing too."""
        self._redoing = phase == REDOING
        self._give()
        if phase == COLLECTING:
            self._send(self._owners.lost(worker, self.receivers(), now))

    def moved(self, news: Moved) -> None:
        """The replica of a worker has reached an iteration, or is behind."""
        if news.is_behind:
            self._replicas.behind(news.worker, news.iteration, self._iteration)
        else:
            self._replicas.stepped(news.worker, news.iteration)
            if news.digest:
                self._digests.told(news.worker, news.iteration, news.digest)
        self._give()

    def told(self, worker: int, iteration: int, digest: bytes) -> None:
        """A worker's digest that comes after the run, for the summary."""
        self._digests.told(worker, iteration, digest)

    def reported(self, worker: int) -> None:
        """A worker has done a chunk of this iteration, so its replica has reached it."""
        if not self._replicas.is_at(worker, self._iteration):
            self._replicas.stepped(worker, self._iteration)
            self._give()

    def wrong(self) -> list[WrongReplica]:
        """The workers found wrong since the last call. Each must be lost, and gets a state when it comes back.

        Raises RunFailed when the replica of rank 0 is wrong.
        """
        found = self._digests.wrong(self._iteration, self._replicas.following(self._live))
        for difference in found:
            self._replicas.wrong(difference.worker)
        return found

    def alive(self, news: Alive) -> None:
        """A worker says how many bytes its link has carried."""
        if news.iteration == self._iteration:
            self._owners.moved(news.worker, news.carried, self._now)

    def arrived(self, block: BlockArrived) -> None:
        """A block arrives. Raises Malformed when no correct rank sends it."""
        iteration, known = block.vector.iteration, self._owners.map
        try:
            name = unpack_block(block.vector.chunk)
        except ProtocolError as error:
            raise Malformed(str(error)) from None
        newest = -1 if known is None else known.attempt
        if iteration > self._iteration or (iteration == self._iteration and name.attempt > newest):
            raise Malformed(f"a block of iteration {iteration}, attempt {name.attempt}, which has not begun")
        self.allreduce.arrived(block.vector)
        if iteration == self._iteration and name.role:
            self._contributions.arrived(block.worker, self._now)

    def refused(self, source: int, what: str) -> None:
        raise Malformed(what)

    def at(self, moment: Moment, iteration: int) -> None:
        self.moment(moment, iteration)

    def stepping(self, iteration: int, gradient: Array) -> None:
        self.moment("stepping", iteration)

    def _give(self) -> None:
        if not self._has_state(self._iteration):
            return
        is_urgent = self._redoing or self._overdue == inf
        for donor, worker in self._replicas.gifts(self._iteration, self._can_use_a_state, is_urgent):
            if donor:
                self._outbox.tell(donor, Kind.GIVE, worker=worker)
            else:
                self.allreduce.give(worker, self._iteration)

    @property
    def _can_use_a_state(self) -> Collection[int]:
        """The live workers that can use a state of this iteration."""
        if (known := self._owners.map) is None or self._redoing:
            return self._live
        return [worker for worker in self._live if worker in known.receivers]

    def have(self, iteration: int, attempt: int, number: int) -> None:
        if iteration == self._iteration:
            self._owners.here(attempt, number, self._now)

    def _send(self, made: Map | None, own: Accumulators = NONE) -> None:
        if made is None:
            return
        told: dict[int, Records] = {}  # by the id of the earlier map, since most workers have the same one
        for worker in self._live:
            before = self._before.get(worker)
            if id(before) not in told:
                told[id(before)] = to_records(made, self._owners.shares, before)
            self._outbox.tell_all(worker, told[id(before)])
            if not made.attempt:
                self._before[worker] = made
        self.allreduce.mapped(made, own)
