"""Which rank sums which slice of an iteration, and which slices rank 0 has. Pure: no clock, no MPI.

For `aggregation: allreduce`. The map of attempt 0 has all slices. A further attempt has slices that rank 0 lacks, with
other owners or other contributors: when contributors have changed, when an owner is lost, or when an owner is late. A
late owner is not lost, and goes on. The first version of a slice to reach rank 0 counts.

An owner is late when all of these hold:

* Most of the other owners were done long ago.
* Rank 0 does not wait for another contributor. That one would make every owner late.
* A new owner would be done earlier. The link of this owner does not move, or it needs longer for the rest of its bytes,
  at its pace so far, than a new owner needs for the slice.

Ranks that share the memory of a host have one link, so they are late together. The first of them that is done says
nothing about other hosts. So the time that slices usually take is known from the iteration before. A new owner takes
that time once for each rank of a host, since further attempts do not use the shared memory. If all ranks are on one
host, nothing crosses a link, and each rank is late by itself.

A slow network that carries anything makes progress. When no byte has moved anywhere for `timeout`, all missing slices
get other owners.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from statistics import median

from psgc.aggregation.map import Contributor, Map, in_order
from psgc.aggregation.slices import Slice, least_slice, make_slices
from psgc.errors import RunFailed
from psgc.server.contributions import late_above

LATE = 2.0  # times the median of the other owners, after which an owner is late
LEAST_LATE = 0.1  # seconds
UNKNOWN = 1.0  # seconds that the slices of hosts are taken to need, before the first iteration
HEDGES = 8  # attempts in one iteration because of lateness
RATES = (0.7, 1.05)  # factors of a rate after an iteration in which its owner was slow, and after another one
LEAST_RATE = 0.05


class Owners:
    """The owners of the slices, over the iterations of a run.

    ranks: the ranks of the run
    entries: length of the coded vector
    itemsize: bytes of an entry
    timeout: seconds without any byte moving, after which all missing slices get other owners
    hosts, in_nodes: as in a map
    rates: the pace of each rank's link relative to the fastest, learnt from its slices
    shares: the rates from which the slices of this iteration were made; 0 for a rank that may own nothing
    """

    def __init__(
        self,
        ranks: Iterable[int],
        entries: int,
        parts: int,
        itemsize: int,
        timeout: float,
        hosts: tuple[int, ...] = (),
        in_nodes: bool = False,
    ) -> None:
        self._entries, self._parts, self._least = entries, parts, least_slice(itemsize)
        self._itemsize, self._timeout, self._hosts, self._in_nodes = itemsize, timeout, hosts, in_nodes
        self.rates = dict.fromkeys(ranks, 1.0)
        self._usual = UNKNOWN  # seconds until rank 0 had all slices in the iteration before
        self.begin(-1)

    def begin(self, iteration: int) -> None:
        """A new iteration."""
        self._iteration = iteration
        self.map: Map | None = None  # the newest
        self._slices: tuple[Slice, ...] = ()
        self._owners: list[dict[int, int]] = []  # by slice: attempt -> owner
        self._took: dict[int, float] = {}  # by slice: seconds until it arrived
        self._versions: dict[int, int] = {}  # by slice: the attempt that counts
        self._first = 0  # the first attempt that may count
        self._hedges = 0
        self._able: set[int] = set()
        self._carried: dict[int, tuple[float, float]] = {}  # by rank: bytes that its link has carried, and since when
        self._needed: dict[int, int] = {}  # by link: all bytes that it has to carry for the first map
        self._by_host, self._ranks_of_a_host = False, 1  # whether a link belongs to a host, for the first map
        self.shares: dict[int, float] = {}

    @property
    def is_complete(self) -> bool:
        """Whether rank 0 has every slice."""
        return self.map is not None and len(self._versions) == len(self._slices)

    @property
    def versions(self) -> tuple[int, ...]:
        """The attempt that counts, by slice."""
        return tuple(self._versions[number] for number in range(len(self._slices)))

    @property
    def others(self) -> dict[int, int]:
        """The attempt that counts, for slices of which it is not attempt 0."""
        return {number: version for number, version in self._versions.items() if version}

    def share(
        self, contributors: Iterable[Contributor], receivers: Collection[int], able: Collection[int], now: float
    ) -> Map | None:
        """The map for these contributors; None when rank 0 has every slice already.

        receivers: the live ranks that get the gradient
        able: the receivers that may own slices
        now: seconds
        """
        made = tuple(sorted(contributors, key=in_order))
        self._able = set(able)
        if self.map is None:
            self.shares = {rank: self.rates[rank] if rank in self._able else 0.0 for rank in receivers}
            self._slices = tuple(make_slices(self._entries, self._parts, self.shares, self._least, self._hosts))
            self._owners = [{0: part.owner} for part in self._slices]
            self._began = self._progress = self._made = now
            self.map = self._map(0, receivers, made, self._slices)
            self._by_host = self.map.is_shared and len({self._hosts[rank] for rank in receivers}) > 1
            self._ranks_of_a_host = max(Counter(map(self._link, receivers)).values())
            self._needed = self._needs(self.map)
            return self.map
        contributing = {one.rank for one in made}
        if self._missing() and not contributing.issubset(receivers):  # earlier maps left some contributors out
            self._versions, self._first = {}, self.map.attempt + 1
        return self._remake(self._missing(), made, contributing.union(receivers), now)

    def lost(self, rank: int, receivers: Collection[int], now: float) -> Map | None:
        """`rank`, which contributes nothing, is lost. Returns a new map when it owned a missing slice."""
        if self.map is None:
            return None
        orphaned = [number for number in self._missing() if self._newest(number) == rank]
        return self._remake(orphaned, self.map.contributors, receivers, now)

    def moved(self, rank: int, carried: float, now: float) -> None:
        """The link of `rank` has carried so many bytes of this iteration's blocks, in both directions."""
        if carried > self._carried.get(rank, (0, 0.0))[0]:
            self._carried[rank] = carried, now
            self._progress = now

    def late(
        self, receivers: Collection[int], now: float, awaited: Callable[[], Collection[int]] = tuple
    ) -> Map | None:
        """A new map when owners are late. Raises RunFailed when HEDGES new maps have not helped.

        awaited: gives the ranks whose accumulators rank 0 lacks for its own slices
        """
        missing = self._missing()
        if self.map is None or not missing:
            return None
        if now < self._progress + self._timeout:
            missing = self._late(missing, now, awaited)
            if not missing:
                return None
        self._hedges += 1
        if self._hedges > HEDGES:
            owners = sorted({self._newest(number) for number in missing})
            raise RunFailed(
                f"the exchange of iteration {self._iteration} makes no progress: {len(missing)} of "
                f"{len(self._slices)} slices are missing, also after {HEDGES} changes of their owners, now {owners}"
            )
        return self._remake(missing, self.map.contributors, receivers, now)

    def _late(self, missing: list[int], now: float, awaited: Callable[[], Collection[int]]) -> list[int]:
        """The missing slices whose owners are late."""
        if self._hedges >= HEDGES or 2 * len(self._took) < len(self._slices):
            return []
        usual = median(self._took.values())
        if self._by_host:
            usual = max(usual, self._usual) * self._ranks_of_a_host
        if now < self._made + max(LEAST_LATE, LATE * usual) * 2**self._hedges:
            return []
        ranks = set(awaited())
        owners = {
            owner for owner in map(self._newest, missing) if not ranks - {owner} and self._is_late(owner, usual, now)
        }
        return [number for number in missing if self._newest(number) in owners]

    def _is_late(self, owner: int, usual: float, now: float) -> bool:
        """Whether another owner would be done before this one, at the pace of its link."""
        carried, since = self._carried.get(owner, (0.0, self._began))
        needed = self._needed.get(self._link(owner), 0.0)
        if self._by_host:
            carried, since = self._carried_by(self._link(owner), needed)
        return now - since > usual or (now - self._began) * (needed - carried) > usual * carried

    def _carried_by(self, host: int, needed: float) -> tuple[float, float]:
        """Bytes that the link of a host has carried, and when: by what its ranks say, or by its slices at rank 0."""
        news = [news for rank, news in self._carried.items() if self._hosts[rank] == host]
        own = [number for number, part in enumerate(self._slices) if self._hosts[part.owner] == host]
        sizes = {number: self._slices[number].stop - self._slices[number].start for number in own}
        done = [number for number in own if number in self._took]
        by_slices = needed * sum(sizes[number] for number in done) / max(1, sum(sizes.values()))
        since = max([self._began, *(at for _, at in news), *(self._began + self._took[number] for number in done)])
        return max(by_slices, sum(size for size, _ in news)), since

    def _link(self, rank: int) -> int:
        """The number of the link that carries the blocks of `rank` in the first map."""
        return self._hosts[rank] if self._by_host else rank

    def _needs(self, map: Map) -> dict[int, int]:
        """The bytes that each link carries. Between the ranks of a host there are none."""
        made = [self._link(one.rank) for one in map.contributors]
        if self._by_host:
            made = [*set(made)]
        receivers, owned = {self._link(rank) for rank in map.receivers}, Counter[int]()
        for owner, start, stop in map.slices:
            owned[self._link(owner)] += stop - start
        needed = {}
        for link, size in owned.items():
            own, others = made.count(link), self._entries - size
            accumulators = others * own + size * (len(made) - own)
            gradient = self._parts * (others + size * (len(receivers) - 1))
            needed[link] = (accumulators + gradient) * self._itemsize
        return needed

    def here(self, attempt: int, number: int, now: float) -> None:
        """Rank 0 has a version of slice `number`."""
        if number not in self._versions and attempt >= self._first:
            self._versions[number] = attempt
            self._took[number] = now - self._began
            self._progress = now

    def learn(self) -> None:
        """The iteration is over: slow owners get less in the next one."""
        took: dict[int, float] = {}  # by link: seconds until the last of its slices arrived
        for number, seconds in self._took.items():  # in the order of arrival
            if not self._by_host or not self._versions[number]:
                took[self._link(self._slices[number].owner)] = seconds
        self._usual = max(took.values(), default=UNKNOWN)
        limit = late_above(took.values()) if took else 0.0
        slow = {link for link, seconds in took.items() if seconds > limit}
        late = {part.owner for number, part in enumerate(self._slices) if self._versions[number]}
        slow = late.union(rank for rank in self.rates if self._link(rank) in slow)
        for rank, rate in self.rates.items():
            self.rates[rank] = min(1.0, max(LEAST_RATE, round(rate * RATES[rank not in slow], 3)))

    def _missing(self) -> list[int]:
        return [number for number in range(len(self._slices)) if number not in self._versions]

    def _newest(self, number: int) -> int:
        owners = self._owners[number]
        return owners[max(owners)]

    def _remake(
        self, numbers: list[int], contributors: tuple[Contributor, ...], receivers: Collection[int], now: float
    ) -> Map | None:
        """The next attempt: each of these slices goes to another owner, the one that has had it least often."""
        if not numbers:
            return None
        assert self.map is not None
        self._progress = self._made = now  # the new attempt takes as long as the first one
        attempt, able = self.map.attempt + 1, sorted(self._able.intersection(receivers))
        slices: list[Slice] = []
        for number in numbers:
            had = [*self._owners[number].values()]
            taken = [part.owner for part in slices]
            owner = min(
                able,
                key=lambda rank: (had.count(rank) + taken.count(rank), -self.rates[rank], (rank - number) % len(able)),
            )
            self._owners[number][attempt] = owner
            slices.append(self._slices[number]._replace(owner=owner))
        self.map = self._map(attempt, receivers, contributors, tuple(slices))
        return self.map

    def _map(
        self,
        attempt: int,
        receivers: Collection[int],
        contributors: tuple[Contributor, ...],
        slices: tuple[Slice, ...],
    ) -> Map:
        everybody = tuple(sorted(receivers))
        return Map(self._iteration, attempt, everybody, contributors, slices, self._hosts, self._in_nodes)
