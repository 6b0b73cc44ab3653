"""The map of an iteration: who contributes what, who sums which slice, and who gets the gradient."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias

from psgc.aggregation.slices import Block, Slice, cut
from psgc.aggregation.tree import Tree

SLOTS = 4  # accumulators of a rank that the memory of its host has room for


class Contributor(NamedTuple):
    """The accumulator of `rank` in `role`.

    serial: how many times accumulators had been shared out in the iteration before this one was begun.

    With `reproducible` it is the sum over a node of the tree (`psgc.aggregation.tree`), which stands in place of the
    role.
    """

    rank: int
    role: int
    serial: int


Term: TypeAlias = "Contributor | tuple[Term, ...]"  # something to be added: if several, they are, one after the other


@dataclass(frozen=True, slots=True)
class Map:
    """How the accumulators of an iteration become its gradient; rank 0 makes it and tells all live ranks.

    attempt: 0 for the first map of the iteration, which has all slices; later ones have those that rank 0 lacks.
    receivers: the ranks that get the gradient, ascending; contributors: by (role, serial, rank), the order in which
    they are summed: a rank may have several accumulators, and need not have any; slices: in the order of their entries,
    each owned by a receiver, which may own several; hosts: by rank the number of the host whose memory it shares, ()
    where no rank shares any; in_nodes: whether contributors are nodes of the tree, which is then how they are summed.
    """

    iteration: int
    attempt: int
    receivers: tuple[int, ...]
    contributors: tuple[Contributor, ...]
    slices: tuple[Slice, ...]
    hosts: tuple[int, ...] = ()
    in_nodes: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether the ranks of a host read each other's accumulators and sums where they are.

        Later attempts, which are rare, do not: they are for when a rank of a host is late or lost.
        """
        most = max(Counter(one.rank for one in self.contributors).values(), default=0)
        return self.attempt == 0 and bool(self.hosts) and most <= SLOTS


def in_order(contributor: Contributor) -> tuple[int, int, int]:
    """The key by which the contributors of a map are sorted."""
    return contributor.role, contributor.serial, contributor.rank


class Routes:
    """Who sends what to whom for one map; the same on all ranks.

    blocks: of the coded vector, by number, in the order of their entries, each of `most` entries at most;
    slice_of: by block the place of its slice among those of the map; slots: where the memory of its host has a
    contributor's accumulator: that of its own role is the first, and may be there before the map is; summing: the ranks
    that may have to sum, as owners or carriers.

    When the map is shared a host is one contributor, whatever the number of its ranks; of nodes it is as many as those
    of its ranks make up. Its *carrier* of a block sums the accumulators of the host, sends that to the owner, and gets
    the gradient for the host. Where nobody contributes it is a rank that owns a slice, or rank 0, or else any, which
    may have gone on without the map when that comes, with a later state: then it says so. Messages between ranks of a
    host only say that something can be read. Where nothing crosses a link a slice is one block.

    Raises ValueError when the parts of the map do not fit each other.
    """

    def __init__(self, map: Map, most: int) -> None:
        _check(map)
        self.map, self.is_shared, self._most = map, map.is_shared, most
        self.slots: dict[Contributor, int] = {}
        self._ranks: dict[int, list[int]] = {}  # by host its receivers
        self._contributors: dict[int, list[Contributor]] = {}  # by host, in the order of hosts
        if map.hosts:
            for one in sorted(map.contributors, key=lambda one: map.hosts[one.rank]):
                self._contributors.setdefault(map.hosts[one.rank], []).append(one)
        self._carriers: dict[int, list[int]] = {}  # by host
        self.summing = {owner for owner, _, _ in map.slices}
        if self.is_shared:
            for rank in map.receivers:
                self._ranks.setdefault(map.hosts[rank], []).append(rank)
            for rank in sorted({0, *(owner for owner, _, _ in map.slices)}):
                self._carriers.setdefault(map.hosts[rank], [rank])
            for host, ranks in self._ranks.items():  # others may not have come to the iteration
                self._carriers.setdefault(host, ranks[:1])
            for host, ones in self._contributors.items():
                self._carriers[host] = sorted({one.rank for one in ones})
            places = Counter[int]()
            for one in sorted(map.contributors, key=lambda one: (one.role, one.serial) != (one.rank, 0)):
                self.slots[one] = places[one.rank]
                places[one.rank] += 1
            if len(self._ranks) > 1:
                self.summing.update(one.rank for one in map.contributors)
            elif len(map.receivers) > 1:
                most = max(part.stop - part.start for part in map.slices)
        self.blocks: list[Block] = []
        self.slice_of: list[int] = []
        rounds: dict[int, list[int]] = {}  # the first blocks of all slices, the second blocks, ...
        for number, part in enumerate(map.slices):
            for place, block in enumerate(cut(part, most)):
                rounds.setdefault(place, []).append(len(self.blocks))
                self.blocks.append(block)
                self.slice_of.append(number)
        self._rounds = [sorted(numbers, key=lambda number: self.blocks[number].owner) for numbers in rounds.values()]

    def of(self, map: Map, most: int) -> "Routes":
        """Those of `map`; mostly it is as in the iteration before."""
        if most != self._most or replace(map, iteration=self.map.iteration) != self.map:
            return Routes(map, most)
        same = copy(self)
        same.map = map
        return same

    def own(self, rank: int) -> tuple[Contributor, ...]:
        """What `rank` contributes."""
        return tuple(one for one in self.map.contributors if one.rank == rank)

    # who

    def of_host(self, rank: int) -> list[int]:
        """The other receivers on the host of `rank`."""
        return [other for other in self._ranks[self.map.hosts[rank]] if other != rank] if self.is_shared else []

    def readers(self, rank: int) -> list[int]:
        """The other ranks of its host that may have to sum what it contributes."""
        return [other for other in self.of_host(rank) if other in self.summing]

    def is_near(self, rank: int, other: int) -> bool:
        """Whether these ranks read each other's memory."""
        return self.is_shared and self.map.hosts[rank] == self.map.hosts[other]

    def source(self, number: int, rank: int) -> int:
        """From whom `rank` gets a block of the gradient that it does not own."""
        owner = self.blocks[number].owner
        if not self.is_shared or self.is_near(owner, rank):
            return owner
        carrier = self._carrier(number, self.map.hosts[rank])
        return owner if carrier == rank else carrier

    def relays(self, number: int, rank: int) -> bool:
        """Whether `rank` gets a block of the gradient for its host."""
        if len(self._ranks) == 1:
            return False
        owner = self.blocks[number].owner
        is_far = self.is_shared and not self.is_near(owner, rank)
        return is_far and self._carrier(number, self.map.hosts[rank]) == rank  # which sums it for them as well

    def others(self, number: int, rank: int) -> list[int]:
        """To whom the owner `rank` sends the entries of a block of the gradient: first to those after itself."""
        others = self.map.receivers if not self.is_shared else self._others(number, self.map.hosts[rank])
        return [*(other for other in others if other > rank), *(other for other in others if other < rank)]

    def _others(self, number: int, own: int) -> list[int]:
        return sorted(self._carrier(number, host) for host in self._ranks if host != own)

    def _carrier(self, number: int, host: int) -> int:
        carriers = self._carriers[host]
        return carriers[number % len(carriers)]

    def _of_host(self, number: int, host: int) -> list[Contributor]:
        """By which names the carrier sends what a host contributes to a block."""
        carrier = self._carrier(number, host)
        if self.map.in_nodes:
            return [Contributor(carrier, node, 0) for node in sorted(self._nodes[host])]
        return [self._contributors[host][0]._replace(rank=carrier)]

    @cached_property
    def _nodes(self) -> dict[int, Mapping[int, Term]]:
        """By host, when the map is shared, the nodes that those of its ranks make up, and how."""
        return {host: _tree((one.role, one) for one in ones).nodes for host, ones in self._contributors.items()}

    # what

    def awaited(self, number: int) -> set[Contributor]:
        """What the owner of a block needs messages with entries for."""
        owner = self.blocks[number].owner
        if not self.is_shared:
            return {one for one in self.map.contributors if one.rank != owner}
        far = [host for host in self._contributors if host != self.map.hosts[owner]]
        return {one for host in far for one in self._of_host(number, host)}

    def terms(self, number: int) -> Term:
        """What a block of the gradient is the sum of: of each host its sum, which may have come as such.

        Of nodes it is the tree over all chunks, whoever sends what of it.
        """
        if not self.is_shared:
            return self._unshared
        own = self.map.hosts[self.blocks[number].owner]
        if self.map.in_nodes:
            far = [one for host in self._nodes if host != own for one in self._of_host(number, host)]
            near = self._nodes.get(own, {}).items()
            return tuple(_tree([*near, *((one.role, one) for one in far)]).remaining())
        hosts = self._contributors.items()
        return tuple(tuple(ones if host == own else self._of_host(number, host)) for host, ones in hosts)

    @cached_property
    def _unshared(self) -> Term:
        """What every block is the sum of when each contributor sends its own."""
        if self.map.in_nodes:
            return tuple(_tree((one.role, one) for one in self.map.contributors).remaining())
        if not self.map.hosts:
            return (self.map.contributors,)
        return tuple(map(tuple, self._contributors.values()))

    def terms_of_host(self, one: Contributor) -> Term:
        """What a carrier sends in this name, when the map is shared."""
        host = self.map.hosts[one.rank]
        return self._nodes[host][one.role] if self.map.in_nodes else tuple(self._contributors[host])

    def coded_sends(self, rank: int) -> Iterator[tuple[int, Contributor]]:
        """The blocks of accumulators, or of the sum of a host's, that `rank` sends to their owners, in order."""
        own = self.own(rank)
        host = self.map.hosts[rank] if self.is_shared else None
        for numbers in self._rounds if own else ():
            after = [number for number in numbers if self.blocks[number].owner > rank]
            before = [number for number in numbers if self.blocks[number].owner < rank]
            for number in (*after, *before):
                if host is None:
                    yield from ((number, one) for one in own)
                elif self.relays(number, rank):
                    yield from ((number, one) for one in self._of_host(number, host))


def _tree(nodes: Iterable[tuple[int, Term]]) -> Tree[Term]:
    tree = Tree[Term](lambda one, other: (one, other))
    for node, term in nodes:
        tree.add_node(node, term)
    return tree


def leaves(term: Term) -> Iterator[Contributor]:
    """The contributors in it."""
    if isinstance(term, Contributor):
        yield term
    else:
        for one in term:
            yield from leaves(one)


def _check(map: Map) -> None:
    if not map.contributors or len(set(map.contributors)) < len(map.contributors):
        raise ValueError(f"expected different contributors, got {map.contributors}")
    starts, stops = [part.start for part in map.slices], [0, *(part.stop for part in map.slices)]
    if not map.slices or any(a < b for a, b in zip(starts, stops, strict=False)):
        raise ValueError(f"expected slices in the order of their entries, got {map.slices}")
    if any(a >= b for a, b in zip(starts, stops[1:], strict=True)):
        raise ValueError(f"expected slices that are not empty, got {map.slices}")
    named = {one.rank for one in map.contributors} | {part.owner for part in map.slices}
    if strangers := named - set(map.receivers):
        raise ValueError(f"ranks {sorted(strangers)} contribute or own, but are not receivers")
