"""The map of an iteration: who contributes what, who sums which slice, and who gets the gradient."""

from dataclasses import dataclass
from typing import NamedTuple

from psgc.aggregation.slices import Slice


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
    they are summed; slices: in the order of their entries.
    """

    iteration: int
    attempt: int
    receivers: tuple[int, ...]
    contributors: tuple[Contributor, ...]
    slices: tuple[Slice, ...]


def in_order(contributor: Contributor) -> tuple[int, int, int]:
    """The key by which the contributors of a map are sorted."""
    return contributor.role, contributor.serial, contributor.rank
