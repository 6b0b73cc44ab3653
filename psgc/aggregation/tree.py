"""Sums in an order that does not depend on who summed when.

A *node* stands for the sum over chunks first, ..., end - 1, as many as a power of two, of which `first` is a multiple.
It is called by the number first + end: 2 i + 1 for chunk i alone. Two neighbours, *siblings*, make up the next larger
node. So which nodes there are, and what is added to what, follows from the number of chunks alone.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import iadd
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def leaf(chunk: int) -> int:
    """The node of one chunk."""
    return 2 * chunk + 1


def size(node: int) -> int:
    """How many chunks are in it.

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

    Two siblings become one node as soon as both are there, in the memory of one of them. At the end a node is left for
    every 1 in the binary number of chunks. join: gives the sum of two, and may do so in the memory of the first.

    nodes: the sums that are there, by node.
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
        """`vector` is the tree's from now on."""
        self.add_node(leaf(chunk), vector)

    def add_node(self, node: int, vector: T) -> None:
        """The sum of all chunks of a node, none of which is there yet."""
        while (other := self._nodes.pop(sibling(node), None)) is not None:
            vector = self._join(vector, other)  # a + b and b + a are the same number
            node = parent(node)
        self._nodes[node] = vector

    def remaining(self) -> list[T]:
        """What is left to be added, one after the other: the smaller ones first."""
        return [self._nodes[node] for node in sorted(self._nodes, key=lambda node: (size(node), node))]

    def total(self: "Tree[Any]") -> Any:
        """The sum of everything; None when there is nothing."""
        if len(self._nodes) <= 1:
            return next(iter(self._nodes.values()), None)
        first, second, *others = self.remaining()
        total = first + second
        for vector in others:
            total += vector
        return total


def end_of_nodes(num_chunks: int) -> int:
    """All nodes over so many chunks are below this number."""
    return 2 * num_chunks


def nodes_of(chunks: Iterable[int]) -> list[int]:
    """The largest nodes that these chunks make up, ascending: there are as few as can be.

    >>> nodes_of([0, 1, 2, 3]), nodes_of([1, 2, 3, 6])
    ([4], [3, 6, 13])
    """
    tree = Tree[bool](lambda one, _: one)
    for chunk in chunks:
        tree.add(chunk, True)
    return sorted(tree.nodes)
