"""The map of an iteration: who contributes what, who sums which slice, and who gets the gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from psgc.aggregation.slices import Block, Slice, cut


class Contributor(NamedTuple):
    """The accumulator of `rank` in `role`.

    serial: how many times accumulators had been shared out in the iteration before this one was begun.
    """

    rank: int
    role: int
    serial: int


@dataclass(frozen=True, slots=True)
class Map:
    """How the accumulators of an iteration become its gradient; rank 0 makes it and tells all live ranks.

    attempt: 0 for the first map of the iteration, which has all slices; later ones have those that rank 0 lacks.
    receivers: the ranks that get the gradient, ascending; contributors: by (role, serial, rank), the order in which
    they are summed: a rank may have several accumulators, and need not have any; slices: in the order of their entries,
    each owned by a receiver, which may own several.
    """

    iteration: int
    attempt: int
    receivers: tuple[int, ...]
    contributors: tuple[Contributor, ...]
    slices: tuple[Slice, ...]


def in_order(contributor: Contributor) -> tuple[int, int, int]:
    """The key by which the contributors of a map are sorted."""
    return contributor.role, contributor.serial, contributor.rank


class Routes:
    """Who sends what to whom for one map; the same on all ranks.

    blocks: of the coded vector, by number, in the order of their entries, each of `most` entries at most;
    slice_of: by block the place of its slice among those of the map.

    Raises ValueError when the parts of the map do not fit each other.
    """

    def __init__(self, map: Map, most: int) -> None:
        _check(map)
        self.map = map
        self.blocks: list[Block] = []
        self.slice_of: list[int] = []
        rounds: dict[int, list[int]] = {}  # the first blocks of all slices, the second blocks, ...
        for number, part in enumerate(map.slices):
            for place, block in enumerate(cut(part, most)):
                rounds.setdefault(place, []).append(len(self.blocks))
                self.blocks.append(block)
                self.slice_of.append(number)
        self._rounds = [sorted(numbers, key=lambda number: self.blocks[number].owner) for numbers in rounds.values()]

    def others(self, rank: int) -> list[int]:
        """The other receivers, from the one after `rank` on."""
        here = self.map.receivers.index(rank)
        return [*self.map.receivers[here + 1 :], *self.map.receivers[:here]]

    def coded_sends(self, rank: int) -> Iterator[tuple[int, Contributor]]:
        """The blocks of accumulators that `rank` sends to their owners, in order."""
        own = [contributor for contributor in self.map.contributors if contributor.rank == rank]
        for numbers in self._rounds if own else ():
            after = [number for number in numbers if self.blocks[number].owner > rank]
            before = [number for number in numbers if self.blocks[number].owner < rank]
            yield from ((number, contributor) for number in [*after, *before] for contributor in own)


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
