"""Simulates iterations on a network, without computation, for three programs:

* `allreduce`: m ranks sum their vectors around a ring, and pass the sum around it. There is no coordinator.
* `coded_allreduce`: rank 0 and m workers hold the parameters. The workers send each slice of their accumulators to its
  owner, which sends the gradient of the slice to all (`psgc.aggregation`).
* `server`: the same, but rank 0 owns everything.

Several workers on a host share its link, and sum in its memory: one vector leaves the host, and one enters it.

The last two drive the production coordinator. Control messages are one record each: to rank 0 for each chunk that a
worker has done, from rank 0 for each commit, and for each worker BEGIN, MAP (the same as before), CLOSE and STEPPED.

*By symmetry.* In a ring, and in a coded all-reduce with equal links and slices, all ranks do the same at the same time:
when rank r sends a message to rank r + k, rank r - k sends the same to rank r. So if there are too many messages, only
one rank is simulated for all. Rank 0 then contributes to the coded all-reduce as well.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from psgc.aggregation import protocol
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.map import Contributor, Map, Routes
from psgc.aggregation.slices import block_entries, least_slice, make_slices
from psgc.messages import RECORD
from psgc.schedules import SCHEDULES
from psgc.server import events
from psgc.server.coordinator import Coordinator
from psgc.server.instructions import Target, carry_out
from psgc.server.membership import Membership
from psgc.simulation.network import VirtualNetwork, nothing
from psgc.simulation.settings import LinkSettings, NetworkSettings, ProgramName

ONE_BY_ONE = 100_000  # messages with vectors; more are simulated by symmetry


@dataclass(frozen=True)
class Traffic:
    """The traffic of one iteration."""

    seconds: float
    link_bytes: list[int]  # of each link, both directions together
    control: int  # messages to and from rank 0
    by_symmetry: bool  # whether one rank stood for all


@dataclass(frozen=True)
class NetworkRow:
    """A row of the table: one iteration."""

    workers: int
    program: ProgramName
    parts: int | None  # None where they play no role
    seconds: float  # from the beginning of the iteration until every rank can step
    busiest_bytes: int  # through the links, both directions together
    mean_bytes: float
    ratio: float  # busiest_bytes / mean_bytes
    control_messages: int  # to and from rank 0
    by_symmetry: bool
    per_host: int


def wanted(settings: NetworkSettings) -> list[tuple[int, ProgramName, int | None]]:
    """(workers, program, parts) of the rows."""
    return [
        (workers, program, parts)
        for workers in settings.workers
        for program in settings.programs
        for parts in ([None] if program == "allreduce" else settings.parts)
    ]


def run(settings: NetworkSettings, step: Callable[[str], object] = lambda what: None) -> Iterator[NetworkRow]:
    """The rows of a simulation. step: is called with a description before each row."""
    for workers, program, parts in wanted(settings):
        step(f"{program}, {workers} workers")
        traffic = PROGRAMS[program](settings, workers, parts or 1)
        busiest, mean = max(traffic.link_bytes), sum(traffic.link_bytes) / len(traffic.link_bytes)
        ratio, control = busiest / mean if mean else 1.0, traffic.control
        more = traffic.by_symmetry, settings.per_host
        yield NetworkRow(workers, program, parts, traffic.seconds, busiest, mean, ratio, control, *more)


def _rates(links: LinkSettings, count: int) -> list[float]:
    """The rates of `count` links. The last link may be slower."""
    return [*[links.rate] * (count - 1), links.rate / links.slow]


def allreduce(settings: NetworkSettings, workers: int, parts: int, most: int = ONE_BY_ONE) -> Traffic:
    """A ring of all links. `parts` has no effect. most: see `coded_allreduce`."""
    links, count = settings.network, workers // settings.per_host
    network, steps = VirtualNetwork(_rates(links, count), links.latency), 2 * (count - 1)
    by_symmetry = count * steps > most and links.slow == 1

    def send(rank: int, step: int) -> None:
        if step < steps:
            piece = (rank - step) % count
            entries = links.dim * (piece + 1) // count - links.dim * piece // count
            dest = (rank + 1) % count
            network.send(rank, dest, entries * links.itemsize, partial(send, 0 if by_symmetry else dest, step + 1))

    for rank in range(1 if by_symmetry else count):
        send(rank, 0)
    network.run()
    bytes_ = network.vectors.bytes
    return Traffic(network.now, [sum(bytes_)] * count if by_symmetry else bytes_, 0, by_symmetry)


def coded_allreduce(settings: NetworkSettings, workers: int, parts: int, most: int = ONE_BY_ONE) -> Traffic:
    """Slices and owners. most: largest number of messages that are simulated one by one."""
    return _CodedAllreduce(settings, workers, parts, most).run()


def server(settings: NetworkSettings, workers: int, parts: int) -> Traffic:
    """The same, but rank 0 owns everything. All messages are simulated."""
    return _CodedAllreduce(settings, workers, parts, None).run()


PROGRAMS: dict[ProgramName, Callable[[NetworkSettings, int, int], Traffic]] = {
    "allreduce": allreduce,
    "server": server,
    "coded_allreduce": coded_allreduce,
}


class _CodedAllreduce(Target):
    """Rank 0 with the production coordinator, and workers whose chunks take no time.

    One rank of each link takes part in the exchange for all ranks of the link: rank 0, or the workers of a host.

    most: largest number of messages that are simulated one by one; None: no limit, and rank 0 owns everything
    """

    def __init__(self, settings: NetworkSettings, workers: int, parts: int, most: int | None) -> None:
        self._links, self._parts = settings.network, parts
        on, hosts = settings.per_host, workers // settings.per_host
        self._link = [*range(workers + 1)] if on == 1 else [0, *(host for host in range(hosts) for _ in range(on))]
        self._rates = _rates(self._links, self._link[-1] + 1)
        self._network = VirtualNetwork(self._rates, self._links.latency)
        self._seconds, self._control = 0.0, 0
        chunks = range(workers * settings.chunks_per_worker)
        holders = [[1 + (chunk + k) % workers for k in range(parts)] for chunk in chunks]
        self._queues: dict[int, list[int]] = {worker: [] for worker in range(1, workers + 1)}
        for chunk in chunks:
            for worker in holders[chunk]:
                self._queues[worker].append(chunk)
        schedule = SCHEDULES["uncoded"](self._queues, {}, holders, parts)
        self._coordinator = Coordinator(Membership(holders, parts), schedule, combined=True)
        self._bring(events.Begin(0))

        entries = -(-self._links.dim // parts)
        self._ranks, self._all_own = range(len(self._rates)), most is not None
        self._map, self._most = self._make_map(entries, self._ranks[on == 1 :])
        many = most is not None and 2 * len(self._ranks) * self._blocks() > most
        self._by_symmetry = many and self._links.slow == 1
        if self._by_symmetry:
            entries = -(-entries // len(self._ranks)) * len(self._ranks)  # for slices of one size, one for each rank
            self._map, self._most = self._make_map(entries, self._ranks, least=1)
        self._per_slice = self._blocks() // len(self._map.slices)  # by symmetry
        simulated = self._ranks[:1] if self._by_symmetry else self._ranks
        self._exchanges = {rank: Exchange(rank, parts) for rank in simulated}
        for exchange in self._exchanges.values():
            exchange.handle(protocol.Loaded(0))
        self._without_map = Counter(self._link)  # ranks, by link
        self._without_close = Counter(self._link[1:])
        self._on: dict[int, list[int]] = {link: [] for link in self._ranks}  # the workers of a link
        for worker in self._queues:
            self._on[self._link[worker]].append(worker)
        self._missing = len(self._map.slices)  # at rank 0

    def _make_map(self, entries: int, contributors: Iterable[int], least: int | None = None) -> tuple[Map, int]:
        itemsize = self._links.itemsize
        rates = {rank: self._rates[rank] if self._all_own or not rank else 0.0 for rank in self._ranks}
        slices = make_slices(entries, self._parts, rates, least or least_slice(itemsize))
        own = tuple(Contributor(rank, rank, 0) for rank in contributors)
        return Map(0, 0, tuple(self._ranks), own, tuple(slices)), block_entries(slices, itemsize)

    def _blocks(self) -> int:
        return len(Routes(self._map, self._most).blocks)

    def run(self) -> Traffic:
        for worker in self._queues:
            self._tell(0, worker, partial(self._report, worker))  # BEGIN
        self._network.run()
        vectors = self._network.vectors.bytes
        if self._by_symmetry:
            vectors = [sum(vectors)] * len(vectors)
        link_bytes = [a + b for a, b in zip(vectors, self._network.control.bytes, strict=True)]
        return Traffic(self._seconds, link_bytes, self._control, self._by_symmetry)

    def _tell(self, source: int, dest: int, then: Callable[[], object]) -> None:
        self._control += 1
        self._network.tell(self._link[source], self._link[dest], RECORD.itemsize, then)

    def _report(self, worker: int) -> None:
        for chunk in self._queues[worker]:
            self._tell(worker, 0, partial(self._bring, events.Report(worker, 0, chunk)))

    def _bring(self, event: events.Event) -> None:
        carry_out(self._coordinator.handle(event), self)

    # what the coordinator wants done

    def commit(self, chunk: int, contributors: tuple[int, ...], told: object, serial: int) -> None:
        for worker in contributors:
            self._tell(0, worker, nothing)

    def share(self, contributors: object) -> None:
        self._read_map(0)
        for worker in self._queues:
            self._tell(0, worker, partial(self._read_map, worker))  # MAP, the same as in the iteration before

    def finish(self) -> None:
        """Rank 0 has the gradient; by symmetry the others have it at the same time."""
        for worker in self._queues:
            with_rank_0 = self._by_symmetry or not self._link[worker]
            self._tell(0, worker, partial(self._step if with_rank_0 else self._close, worker))  # CLOSE

    # the exchange

    def _read_map(self, rank: int) -> None:
        link = self._link[rank]
        self._without_map[link] -= 1
        if not (self._without_map.total() if self._by_symmetry else self._without_map[link]):
            self._handle(0 if self._by_symmetry else link, protocol.Mapped(self._map, self._most))

    def _close(self, worker: int) -> None:
        link = self._link[worker]
        self._without_close[link] -= 1
        if not self._without_close[link]:
            self._handle(link, protocol.Closed(0, {}))

    def _handle(self, rank: int, event: protocol.Event) -> None:
        for instruction in self._exchanges[rank].handle(event):
            match instruction:
                case protocol.SendBlock():
                    self._send(rank, instruction)
                case protocol.Have() if rank == 0:
                    self._missing -= 1
                    if not self._missing:
                        self._bring(events.Summed())
                case protocol.Step():
                    for worker in self._on[rank]:
                        self._step(worker)

    def _send(self, rank: int, send: protocol.SendBlock) -> None:
        dest, key, contributor = send.dest, send.key, send.key.contributor
        _, start, stop = self._exchanges[rank].block(key)
        size = (stop - start) * self._links.itemsize * (self._parts if contributor is None else 1)
        source = rank
        if self._by_symmetry:  # what rank 0 sends to `dest`, rank -dest sends to rank 0
            count, each = len(self._ranks), self._per_slice
            source = -dest % count
            number = (key.number - dest * each) % (count * each)
            key = key._replace(number=number, contributor=contributor and Contributor(source, source, 0))
        receiver = 0 if self._by_symmetry else dest
        arrived = partial(self._handle, receiver, protocol.Arrived(source, key))
        self._network.send(rank, dest, size, arrived, partial(self._handle, rank, protocol.Sent(send)))

    def _step(self, worker: int) -> None:
        self._seconds = self._network.now
        self._tell(worker, 0, nothing)  # STEPPED
