"""Sums in an order that does not depend on who summed when."""

from psgc.backend import Array


class Tree:
    """The sum of one vector per index, in an order that depends on the indices alone.

    Two neighbours become one node as soon as both are there, in the memory of one of them; so do two nodes. At the end
    a node is left for every 1 in the binary number of indices.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], Array] = {}  # (level, place): the sum of indices place * 2^level and on

    def clear(self) -> None:
        self._nodes.clear()

    def add(self, index: int, vector: Array) -> None:
        """`vector` is the tree's from now on."""
        level, place = 0, index
        while (sibling := self._nodes.pop((level, place ^ 1), None)) is not None:
            vector += sibling  # a + b and b + a are the same number
            level, place = level + 1, place >> 1
        self._nodes[level, place] = vector

    def total(self) -> Array | None:
        """The sum of everything; None when there is nothing."""
        if len(self._nodes) <= 1:
            return next(iter(self._nodes.values()), None)
        first, second, *others = (self._nodes[node] for node in sorted(self._nodes))  # the smaller ones first
        total = first + second
        for vector in others:
            total += vector
        return total
