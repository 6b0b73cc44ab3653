"""How rank 0 has the ranks sum: it makes the maps, and chooses the versions that count.

With `aggregation: allreduce` all ranks own slices, with `server` rank 0 owns them all. With `per_chunk` rank 0 has the
gradient, so it is the only contributor too. `psgc.server.owners` decides, and this class sends what it decides.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from psgc.aggregation.allreduce import AllReduce, Listener
from psgc.aggregation.blocks import Accumulators, Sums
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.map_messages import close_records, to_records
from psgc.backend import Array, Backend
from psgc.config import Config
from psgc.errors import ProtocolError
from psgc.iteration import Moment
from psgc.messages import Kind, Records, joined, sums_records
from psgc.server.arrivals import Alive, BlockArrived
from psgc.server.contributions import Contributions
from psgc.server.driver import Driver
from psgc.server.events import COLLECTING, REDOING, Phase
from psgc.server.malformed import Malformed
from psgc.server.outbox import Outbox
from psgc.server.owners import Owners
from psgc.server.states import States
from psgc.transport import Transport
from psgc.vectors import unpack_block

OF_RANK_0 = 1  # the role in which rank 0 contributes
NONE: Accumulators = {}


class Summing(Listener):
    """The exchanges of a run, on rank 0.

    sums: what is summed
    driver: the calls of the run
    params: (dim,), with which the replica of rank 0 begins
    alike: the workers whose replicas begin with `params` too
    moment: called at the steps of the exchange
    states: keeps the workers' replicas alike
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
        ranks, timeout = range(len(sums.matrix) + 1), config.faults.collect_timeout
        self._outbox = outbox
        self.allreduce = AllReduce(transport, backend, sums, driver.replica, self)
        self._all_own, hosts = config.aggregation == "allreduce", transport.shared.hosts
        self._here = transport.term.ranks_at(transport.term.server)  # rank 0, and the worker of its process
        self._owners = Owners(ranks, sums.entries, sums.parts, sums.dtype.itemsize, timeout, hosts, sums.nodes > 0)
        self._contributions = Contributions()
        self.states = States(outbox, self.allreduce, driver, config, sums, hosts, params, alike)
        self._last_first_maps: dict[int, Map] = {}  # by worker: the newest first map that it was sent
        self._iteration, self._now = sums.first - 1, 0.0
        if config.transfer == "combined":  # with `per_chunk` no block comes to rank 0
            self.allreduce.open()
        self.allreduce.start(sums.first, params)

    # an iteration

    def resting(self, iteration: int) -> frozenset[int]:
        """The workers that contribute only chunks that nobody else can do, since they would delay all owners."""
        return self._contributions.resting(iteration) if self._all_own else frozenset()

    def begin(self, iteration: int, live: Collection[int], fractions: Mapping[int, float] | None = None) -> None:
        """Tell the live workers to begin `iteration`. Each begins when its replica has reached it.

        fractions: by worker, the fraction of its queue that it does in one pass; other workers do one chunk
        """
        self.states.begin(iteration, live, self._now)
        self._iteration = iteration
        self._owners.begin(iteration)
        for worker in self.states.live:
            self._outbox.tell(worker, Kind.BEGIN, start=(fractions or {}).get(worker, 0.0))
        self.states.give()

    def share(self, accumulators: Iterable[tuple[int, int, int]], now: float) -> None:
        """Have the ranks sum these accumulators, (worker, role, serial) each. now: as in `Cluster`."""
        contributors = [Contributor(*one) for one in accumulators]
        self.states.is_redoing = False
        self._contributions.begin(now)
        ranks = {one.rank for one in contributors}
        for rank in ranks:  # a contributor has reached the iteration, even one that came back and has not said so
            self.states.replicas.stepped(rank, self._iteration)
        if self._share(contributors, now, {}) is not None:
            for rank in ranks:
                self.states.replicas.follows(rank)

    def hand_out(self, gradient: Array, now: float) -> None:
        """Give all ranks this gradient (dim,) of rank 0. It must not change until the next iteration."""
        self._share([Contributor(0, OF_RANK_0, 0)], now, {(OF_RANK_0, 0): gradient})
        self.choose()

    def _share(self, contributors: Sequence[Contributor], now: float, own: Accumulators) -> Map | None:
        """Send the ranks a map, and return it; None when rank 0 has every slice already."""
        receivers = self.states.receivers()
        others = [rank for rank in receivers if rank not in self._here] if self._all_own else ()
        at_it = [worker for worker in others if self.states.replicas.is_at(worker, self._iteration)]
        made = self._owners.share(contributors, receivers, [0, *at_it], now)  # a process owns one slice
        self._send(made, own)
        return made

    @property
    def is_complete(self) -> bool:
        """Whether rank 0 has the whole gradient."""
        return self._owners.is_complete

    def poll(self, now: float, phase: Phase) -> None:
        """Advance the exchange. Raises RunFailed when it makes no progress."""
        self._now = now
        self.states.poll(now)
        self._owners.moved(0, self.allreduce.link.carried[self._iteration], now)
        if phase == COLLECTING:
            awaited = partial(self.allreduce.exchange.awaited, self._iteration)
            self._send(self._owners.late(self.states.receivers(), now, awaited))

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
        for worker in self.states.live:
            self._outbox.tell_all(worker, versions)
        self.allreduce.closed(self._iteration, self._owners.others)
        self.states.advance()  # a short step is done here

    def evaluated(self, sums: Sequence[float]) -> None:
        """The iteration was an evaluation, without a gradient. Give every rank its sums."""
        for worker in self.states.live:
            self._outbox.tell_all(worker, sums_records(self._iteration, -1, sums))
        self.allreduce.evaluated(self._iteration, sums)

    @property
    def params(self) -> Array | None:
        """(dim,): the parameters after the step, None before it."""
        has_stepped = self.allreduce.steps > self._iteration
        return self.allreduce.replica.params if has_stepped else None

    # workers

    def lost(self, worker: int) -> None:
        """`worker` is lost. The coordinator is told after this, and then `reassign` is called."""
        self._last_first_maps.pop(worker, None)
        self.states.lost(worker)

    def reassign(self, worker: int, now: float, phase: Phase) -> None:
        """Give the slices of a lost worker to other owners, unless accumulators are missing too."""
        self.states.is_redoing = phase == REDOING
        self.states.give()
        if phase == COLLECTING:
            self._send(self._owners.lost(worker, self.states.receivers(), now))

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

    def have(self, iteration: int, attempt: int, number: int) -> None:
        if iteration == self._iteration:
            self._owners.here(attempt, number, self._now)

    def _send(self, made: Map | None, own: Accumulators = NONE) -> None:
        if made is None:
            return
        self.states.mapped(made.receivers)
        told: dict[int, Records] = {}  # by the id of the earlier map, since most workers have the same one
        for worker in self.states.live:
            before = self._last_first_maps.get(worker)
            if id(before) not in told:
                told[id(before)] = to_records(made, self._owners.shares, before)
            self._outbox.tell_all(worker, told[id(before)])
            if not made.attempt:
                self._last_first_maps[worker] = made
        self.allreduce.mapped(made, own)
