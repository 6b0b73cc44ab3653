"""One exchange of a coded all-reduce on a virtual network: every rank, and rank 0 that looks for late owners.

Links may differ. A rank may be stuck from some time on: nothing leaves it, and what comes to it is not read.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Any

from psgc.aggregation import protocol as part
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.slices import block_entries
from psgc.server.owners import Owners
from psgc.simulation.network import VirtualNetwork

ITEMSIZE, LATENCY = 4, 1e-3
TIMEOUT = 30.0  # seconds, of faults.collect_timeout
ALIVE = TIMEOUT / 4  # seconds between two words of a worker, which also speaks after so many blocks:
HEARD = 16
LOOKS = 200  # of rank 0, while an exchange would take its time


class VirtualExchange:
    """maps: by attempt; took: seconds until rank 0 has everything; least: that the slowest link needs alone, about.

    rates: of all ranks; entries: of the vector; idle: workers that contribute nothing, and own slices all the same;
    stuck: from when on a rank is.
    """

    def __init__(
        self,
        rates: Sequence[float],
        entries: int,
        idle: Collection[int] = (),
        stuck: Mapping[int, float] | None = None,
    ) -> None:
        self._network, self._rates = VirtualNetwork(rates, LATENCY), rates
        self._idle, self._stuck, self._ranks = idle, stuck or {}, range(len(rates))
        self._owners = Owners(self._ranks, entries, 1, ITEMSIZE, TIMEOUT)
        self._owners.begin(0)
        self._exchanges = [Exchange(rank) for rank in self._ranks]
        for it in self._exchanges:
            it.handle(part.Loaded(0))
        self._carried, self._unheard = Counter[int](), Counter[int]()
        self.maps: dict[int, Map] = {}
        self.least = 2 * entries * ITEMSIZE / min(rates)
        self.took = inf

    def run(self) -> "VirtualExchange":
        """Raises RunFailed."""
        contributors = [Contributor(rank, rank, 0) for rank in self._ranks[1:] if rank not in self._idle]
        self._send(self._owners.share(contributors, self._ranks, self._ranks, 0.0))
        self._look()
        for worker in self._ranks[1:]:
            self._after(ALIVE, lambda worker=worker: self._speak(worker, again=True))
        self._network.run()
        return self

    def _after(self, seconds: float, then: Any) -> None:
        self._network.at(self._network.now + seconds, then)

    def _is_stuck(self, rank: int) -> bool:
        return self._network.now >= self._stuck.get(rank, inf)

    def _send(self, made: Map | None) -> None:
        if made is None:
            return
        self.maps[made.attempt] = made
        for rank in self._ranks:
            self._after(LATENCY * (rank > 0), lambda rank=rank: self._read(rank, made))

    def _read(self, rank: int, made: Map) -> None:
        self._bring(rank, part.Mapped(made, block_entries(made.slices, ITEMSIZE)))

    def _look(self) -> None:
        """Rank 0, again and again."""
        if self._owners.is_complete:
            return
        now = self._network.now
        self._owners.moved(0, self._carried[0], now)
        self._send(self._owners.late(self._ranks, now, lambda: self._exchanges[0].awaited(0)))
        self._after(self.least / LOOKS, self._look)

    def _speak(self, worker: int, again: bool = False) -> None:
        if self._owners.is_complete or self._is_stuck(worker):
            return
        carried = self._carried[worker]
        self._after(LATENCY, lambda: self._owners.moved(worker, carried, self._network.now))
        if again:
            self._after(ALIVE, lambda: self._speak(worker, again=True))

    def _bring(self, rank: int, event: part.Event) -> None:
        if self._is_stuck(rank):
            return
        for instruction in self._exchanges[rank].handle(event):
            match instruction:
                case part.SendBlock():
                    self._send_block(rank, instruction)
                case part.Have(_, attempt, number) if rank == 0:
                    self._owners.here(attempt, number, self._network.now)
                    if self._owners.is_complete:
                        self.took = min(self.took, self._network.now)

    def _send_block(self, source: int, send: part.SendBlock) -> None:
        _, start, stop = self._exchanges[source].block(send.key)
        size = ITEMSIZE * (stop - start)

        def sent() -> None:
            self._carried[source] += size
            self._bring(source, part.Sent(send))

        def arrived() -> None:
            self._carried[send.dest] += size
            self._unheard[send.dest] += 1
            if send.dest and self._unheard[send.dest] % HEARD == 0:
                self._speak(send.dest)
            self._bring(send.dest, part.Arrived(source, send.key))

        self._network.send(source, send.dest, size, arrived, sent)
