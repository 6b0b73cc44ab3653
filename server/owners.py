"""Who sums which slice of an iteration, and what of it rank 0 has (`aggregation: allreduce`). Pure: no clock, no MPI.

The map of attempt 0 has all slices. A further attempt has slices that rank 0 lacks, with other owners or other
contributors: when contributors have changed, when an owner is lost, and when an owner is late. A late owner is not
given up. Whichever version of a slice is at rank 0 first counts.

An owner is late when most of the others are through long since, and

* rank 0 does not wait for another contributor itself: that one would be late for any owner;
* what its link still has to carry takes longer, at its pace, than another owner would take, or nothing moves there.

Ranks that share the memory of a host have one link, and are late or slow together: which of them is through first says
nothing of the others. What they need is known from the iteration before. Another owner takes longer there than the
first one did, as many times as a host has ranks, since the next attempts do not share. On one host alone nothing
crosses a link, and each rank is late by itself.

What a slow network carries is progress, however little it is. Only when no byte has moved anywhere for `timeout`, all
slices that are missing get other owners.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from statistics import median

from psgc.aggregation.map import Contributor, Map, in_order
from psgc.aggregation.slices import Slice, least_slice, make_slices
from psgc.errors import RunFailed

LATE = 2.0  # times the median of the other owners, after which an owner is late
LEAST_LATE = 0.1  # seconds
UNKNOWN = 1.0  # seconds that the slices of hosts take, before any iteration has shown it
HEDGES = 8  # attempts in one iteration because of lateness
SLOWER = 1.5  # times the median, after which an owner gets less
LEAST_SLOWER = 0.05  # seconds
RATES = (0.7, 1.05)  # factors of a rate after an iteration in which its owner was slow, or was not
LEAST_RATE = 0.05


class Owners:
    """ranks: of the run; entries: of the coded vector; itemsize: bytes of an entry.

    timeout: seconds in which no byte moves after which all slices that are missing get other owners;
    hosts, in_nodes: of maps.
    rates: of the ranks' links, relative to the fastest, by what was seen of their slices.
    shares: the rates by which the slices of this iteration were made: 0 of a rank that may own nothing.
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
        self._usual = UNKNOWN  # seconds until all slices of the iteration before were here
        self.begin(-1)

    def begin(self, iteration: int) -> None:
        """A new iteration."""
        self._iteration = iteration
        self.map: Map | None = None  # the newest
        self._slices: tuple[Slice, ...] = ()
        self._owners: list[dict[int, int]] = []  # by slice: attempt -> owner
        self._took: dict[int, float] = {}  # by slice: seconds until it was here
        self._versions: dict[int, int] = {}  # by slice: the attempt whose sum is here
        self._first = 0  # earlier attempts do not count any more
        self._hedges = 0
        self._able: set[int] = set()
        self._carried: dict[int, tuple[float, float]] = {}  # by rank: bytes that its link has carried, known since
        self._needed: dict[int, int] = {}  # by link: all that it has to carry for the first map
        self._by_host, self._ranks_of_a_host = False, 1  # whether hosts have links for the first map
        self.shares: dict[int, float] = {}

    @property
    def is_complete(self) -> bool:
        """Whether rank 0 has every slice."""
        return self.map is not None and len(self._versions) == len(self._slices)

    @property
    def versions(self) -> tuple[int, ...]:
        """Which attempt counts, by slice."""
        return tuple(self._versions[number] for number in range(len(self._slices)))

    @property
    def others(self) -> dict[int, int]:
        """Which attempt counts of the slices of which it is not the first."""
        return {number: version for number, version in self._versions.items() if version}

    def share(
        self, contributors: Iterable[Contributor], receivers: Collection[int], able: Collection[int], now: float
    ) -> Map | None:
        """The map for these contributors; none when everything is here already.

        receivers: those that get the gradient, all of them live; able: those of them that may own something;
        now: seconds.
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
        if self._missing() and not contributing.issubset(receivers):  # ranks that the maps before left out
            self._versions, self._first = {}, self.map.attempt + 1
        return self._remake(self._missing(), made, contributing.union(receivers), now)

    def lost(self, rank: int, receivers: Collection[int], now: float) -> Map | None:
        """`rank` is lost, but contributes nothing: a new map when it owned a slice that is missing."""
        if self.map is None:
            return None
        orphaned = [number for number in self._missing() if self._newest(number) == rank]
        return self._remake(orphaned, self.map.contributors, receivers, now)

    def moved(self, rank: int, carried: float, now: float) -> None:
        """The link of `rank` has carried so many bytes of blocks of this iteration, in both directions."""
        if carried > self._carried.get(rank, (0, 0.0))[0]:
            self._carried[rank] = carried, now
            self._progress = now

    def late(
        self, receivers: Collection[int], now: float, awaited: Callable[[], Collection[int]] = tuple
    ) -> Map | None:
        """A new map when owners are late. Raises RunFailed when that does not help.

        awaited: gives the ranks whose accumulators rank 0 lacks for its own slices.
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
        """Those of the missing slices whose owners are late."""
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
        """Whether another owner would be through before this one is, at the pace of its link."""
        carried, since = self._carried.get(owner, (0.0, self._began))
        needed = self._needed.get(self._link(owner), 0.0)
        if self._by_host:
            carried, since = self._carried_by(self._link(owner), needed)
        return now - since > usual or (now - self._began) * (needed - carried) > usual * carried

    def _carried_by(self, host: int, needed: float) -> tuple[float, float]:
        """What the link of a host has carried, by what its ranks say and by which of its slices are here, and when."""
        news = [news for rank, news in self._carried.items() if self._hosts[rank] == host]
        own = [number for number, part in enumerate(self._slices) if self._hosts[part.owner] == host]
        sizes = {number: self._slices[number].stop - self._slices[number].start for number in own}
        done = [number for number in own if number in self._took]
        by_slices = needed * sum(sizes[number] for number in done) / max(1, sum(sizes.values()))
        since = max([self._began, *(at for _, at in news), *(self._began + self._took[number] for number in done)])
        return max(by_slices, sum(size for size, _ in news)), since

    def _link(self, rank: int) -> int:
        """The number of the link that the blocks of `rank` travel through in the first map."""
        return self._hosts[rank] if self._by_host else rank

    def _needs(self, map: Map) -> dict[int, int]:
        """By link the bytes that it carries; between the ranks of a host none."""
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
        """Rank 0 has a version of a slice."""
        if number not in self._versions and attempt >= self._first:
            self._versions[number] = attempt
            self._took[number] = now - self._began
            self._progress = now

    def learn(self) -> None:
        """The iteration is over: owners that were slow get less in the next one."""
        took: dict[int, float] = {}  # by link: until the last of its slices was here
        for number, seconds in self._took.items():  # in the order in which they came
            if not self._by_host or not self._versions[number]:
                took[self._link(self._slices[number].owner)] = seconds
        self._usual = max(took.values(), default=UNKNOWN)
        usual = median(took.values()) if took else 0.0
        slow = {link for link, seconds in took.items() if seconds > max(SLOWER * usual, usual + LEAST_SLOWER)}
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
        """The next attempt: these slices go to those that have had them least often, each to another one."""
        if not numbers:
            return None
        assert self.map is not None
        self._progress = self._made = now  # it takes as long as the first one
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
