"""The map of an iteration: which ranks contribute, which rank sums which slice, and which ranks get the gradient."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias

from psgc.aggregation.slices import Block, Slice, cut
from psgc.aggregation.tree import Tree

SLOTS = 4  # accumulators of a rank for which the memory of its host has room


class Contributor(NamedTuple):
    """The accumulator of `rank` in `role`.

    serial: how many times accumulators of the iteration had been shared out before this one was begun

    With `reproducible` it is the sum over a node of the tree (`psgc.aggregation.tree`), and `role` is the node.
    """

    rank: int
    role: int
    serial: int


Term: TypeAlias = "Contributor | tuple[Term, ...]"  # a summand; a tuple is summed from left to right


@dataclass(frozen=True, slots=True)
class Map:
    """How the accumulators of an iteration become its gradient. Rank 0 makes the map and sends it to all live ranks.

    attempt: 0 for the first map of the iteration, which has all slices; later maps have the slices that rank 0 lacks
    receivers: the ranks that get the gradient, ascending
    contributors: in the order of their sum, by (role, serial, rank); a rank may have none or several
    slices: in the order of their entries; the owner of a slice is a receiver, and may own several
    hosts: by rank, the number of the host whose memory it shares; () if no rank shares memory
    in_nodes: whether contributors are nodes of the tree, which is then the order of the sum
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
        """Whether the ranks of a host read each other's accumulators and sums in shared memory.

        Later attempts do not: they are rare, and made when a rank of a host may be late or lost.
        """
        most = max(Counter(one.rank for one in self.contributors).values(), default=0)
        return self.attempt == 0 and bool(self.hosts) and most <= SLOTS


def in_order(contributor: Contributor) -> tuple[int, int, int]:
    """The sort key for the contributors of a map."""
    return contributor.role, contributor.serial, contributor.rank


class Routes:
    """Which rank sends what to which rank for one map; the same on all ranks.

    blocks: of the coded vector, in the order of their entries, with at most `most` entries each
    most: entries of a block
    slice_of: by block, the place of its slice in the map
    slots: by contributor, the place of its accumulator in the memory of its host; the first place is for the rank's own
        role, whose accumulator may be there before the map comes
    summing: the ranks that may have to sum, as owners or carriers

    In a shared map a host is one contributor, however many ranks it has. With nodes, the ranks of a host merge their
    nodes, and the host is a contributor for each node that is left.

    For each block a host has a *carrier*: a rank that sums the accumulators of the host, sends the sum to the owner,
    and receives the block of the gradient for the host. The contributing ranks of a host are its carriers in turn. A
    host without contributors has one carrier: rank 0 or the first owner of a slice there, else the first receiver. This
    rank may have loaded a later state, and gone on without the map. Then it tells the other ranks of the host.

    A message between two ranks of a host is only a note that something can be read. If all ranks are on one host, each
    slice is one block.

    Raises ValueError when the parts of the map do not fit each other.
    """

    def __init__(self, map: Map, most: int) -> None:
        _check(map)
        self.map, self.is_shared, self._most = map, map.is_shared, most
        self.slots: dict[Contributor, int] = {}
        self._ranks: dict[int, list[int]] = {}  # host -> its receivers
        self._contributors: dict[int, list[Contributor]] = {}  # host -> its contributors
        if map.hosts:
            for one in sorted(map.contributors, key=lambda one: map.hosts[one.rank]):
                self._contributors.setdefault(map.hosts[one.rank], []).append(one)
        self._carriers: dict[int, list[int]] = {}  # host -> its possible carriers
        self.summing = {owner for owner, _, _ in map.slices}
        if self.is_shared:
            for rank in map.receivers:
                self._ranks.setdefault(map.hosts[rank], []).append(rank)
            for rank in sorted({0, *(owner for owner, _, _ in map.slices)}):
                self._carriers.setdefault(map.hosts[rank], [rank])
            for host, ranks in self._ranks.items():  # other ranks may not have reached the iteration
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
        self.most = most
        self._rounds = [sorted(numbers, key=lambda number: self.blocks[number].owner) for numbers in rounds.values()]

    def of(self, map: Map, most: int) -> "Routes":
        """The routes of `map`; these ones if nothing has changed since the iteration before."""
        if most != self._most or replace(map, iteration=self.map.iteration) != self.map:
            return Routes(map, most)
        same = copy(self)
        same.map = map
        return same

    def own(self, rank: int) -> tuple[Contributor, ...]:
        """The accumulators that `rank` contributes."""
        return tuple(one for one in self.map.contributors if one.rank == rank)

    # ranks

    def of_host(self, rank: int) -> list[int]:
        """The other receivers on the host of `rank`."""
        return [other for other in self._ranks[self.map.hosts[rank]] if other != rank] if self.is_shared else []

    def readers(self, rank: int) -> list[int]:
        """The other ranks of the host that may have to sum what `rank` contributes."""
        return [other for other in self.of_host(rank) if other in self.summing]

    def is_near(self, rank: int, other: int) -> bool:
        """Whether these ranks read each other's memory."""
        return self.is_shared and self.map.hosts[rank] == self.map.hosts[other]

    def source(self, number: int, rank: int) -> int:
        """The rank that sends `rank` a block of the gradient that it does not own."""
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
        return is_far and self._carrier(number, self.map.hosts[rank]) == rank  # the carrier sums for its host too

    def others(self, number: int, rank: int) -> list[int]:
        """The ranks to which the owner `rank` sends a block of the gradient, beginning with the rank after itself."""
        others = self.map.receivers if not self.is_shared else self._others(number, self.map.hosts[rank])
        return [*(other for other in others if other > rank), *(other for other in others if other < rank)]

    def _others(self, number: int, own: int) -> list[int]:
        return sorted(self._carrier(number, host) for host in self._ranks if host != own)

    def _carrier(self, number: int, host: int) -> int:
        carriers = self._carriers[host]
        return carriers[number % len(carriers)]

    def _of_host(self, number: int, host: int) -> list[Contributor]:
        """The names under which the carrier sends the host's contributions to a block."""
        carrier = self._carrier(number, host)
        if self.map.in_nodes:
            return [Contributor(carrier, node, 0) for node in sorted(self._nodes[host])]
        return [self._contributors[host][0]._replace(rank=carrier)]

    @cached_property
    def _nodes(self) -> dict[int, Mapping[int, Term]]:
        """By host, the nodes that those of its ranks make up, and their summands; for a shared map."""
        return {host: _tree((one.role, one) for one in ones).nodes for host, ones in self._contributors.items()}

    # contents

    def awaited(self, number: int) -> set[Contributor]:
        """The contributors whose entries the owner of a block gets in messages."""
        owner = self.blocks[number].owner
        if not self.is_shared:
            return {one for one in self.map.contributors if one.rank != owner}
        far = [host for host in self._contributors if host != self.map.hosts[owner]]
        return {one for host in far for one in self._of_host(number, host)}

    def terms(self, number: int) -> Term:
        """The summands of a block of the gradient: the sum of each host, which may come in one message.

        With nodes it is the tree over all chunks, whichever rank sends them.
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
        """The summands of every block when each contributor sends its own."""
        if self.map.in_nodes:
            return tuple(_tree((one.role, one) for one in self.map.contributors).remaining())
        if not self.map.hosts:
            return (self.map.contributors,)
        return tuple(map(tuple, self._contributors.values()))

    def terms_of_host(self, one: Contributor) -> Term:
        """The summands of what a carrier sends under this name, in a shared map."""
        host = self.map.hosts[one.rank]
        return self._nodes[host][one.role] if self.map.in_nodes else tuple(self._contributors[host])

    def coded_sends(self, rank: int) -> Iterator[tuple[int, Contributor]]:
        """The blocks of accumulators, or of a host's sums, that `rank` sends to their owners, in order."""
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
    """The contributors in a term."""

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
