"""Sums in an order that does not depend on the order of arrival.

A *node* stands for the sum over chunks first, ..., end - 1. Their number is a power of two, and `first` is a multiple
of it. The number of a node is first + end: 2 i + 1 for chunk i alone. Two neighbours, *siblings*, make up the next
larger node. So the number of chunks alone decides which nodes there are, and what is added to what.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import iadd
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def leaf(chunk: int) -> int:
    """The node of one chunk."""
    return 2 * chunk + 1


def size(node: int) -> int:
    """The number of chunks in a node.

    >>> [size(node) for node in (1, 2, 3, 4, 12)]
    [1, 2, 1, 4, 4]
    """
    return node & -node


def sibling(node: int) -> int:
    """
    >>> sibling(leaf(2)) == leaf(3), sibling(leaf(3)) == leaf(2)
    (True, True)
    """
    return node ^ 2 * size(node)


def parent(node: int) -> int:
    """
    >>> parent(leaf(2)), parent(leaf(3)), parent(6), parent(2)
    (6, 6, 4, 4)
    """
    return (node + sibling(node)) // 2


class Tree(Generic[T]):
    """The sum of one vector per chunk.

    Two siblings become one node as soon as both are there, in the memory of one of them. At the end there is one node
    for each 1 in the binary number of chunks.

    join: gives the sum of two vectors, and may use the memory of the first one
    nodes: the sums that are there, by node
    """

    def __init__(self, join: Callable[[T, T], T] = iadd) -> None:
        self._join = join
        self._nodes: dict[int, T] = {}

    @property
    def nodes(self) -> Mapping[int, T]:
        return self._nodes

    def clear(self) -> None:
        self._nodes.clear()

    def add(self, chunk: int, vector: T) -> None:
        """Add the vector of a chunk. The tree may change it."""
        self.add_node(leaf(chunk), vector)

    def add_node(self, node: int, vector: T) -> None:
        """Add the sum over a node, none of whose chunks is there yet."""
        while (other := self._nodes.pop(sibling(node), None)) is not None:
            vector = self._join(vector, other)  # a + b and b + a are the same number
            node = parent(node)
        self._nodes[node] = vector

    def remaining(self) -> list[T]:
        """The sums that are left to be added, in this order: the smaller ones first."""
        return [self._nodes[node] for node in sorted(self._nodes, key=lambda node: (size(node), node))]

    def total(self: "Tree[Any]") -> Any:
        """The sum of everything; None if there is nothing."""
        if len(self._nodes) <= 1:
            return next(iter(self._nodes.values()), None)
        first, second, *others = self.remaining()
        total = first + second
        for vector in others:
            total += vector
        return total


def end_of_nodes(num_chunks: int) -> int:
    """A number above all nodes over so many chunks."""
    return 2 * num_chunks


def nodes_of(chunks: Iterable[int]) -> list[int]:
    """The largest nodes that these chunks make up, ascending.


    >>> nodes_of([0, 1, 2, 3]), nodes_of([1, 2, 3, 6])
    ([4], [3, 6, 13])
    """
    tree = Tree[bool](lambda one, _: one)
    for chunk in chunks:
        tree.add(chunk, True)
    return sorted(tree.nodes)
