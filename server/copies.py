"""The copies of chunks in one iteration: which are there, which count, and which workers keep them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from psgc.aggregation.tree import nodes_of

Copy = tuple[int, int]  # worker, role
Used = tuple[int, int]  # worker, attempt
Accumulator = tuple[int, int, int]  # worker, role (with `reproducible`: a node of the tree), serial


@dataclass(slots=True)
class Copies:
    """The copies of one chunk. Small, since every iteration makes one for each chunk.

    reported: the workers whose reports were handled
    there: the copies that have been done
    contributors: S_i, empty while the chunk is not committed
    used: (worker, attempt) of the copies that are in the gradient
    attempt: how many times the chunk was invalidated
    redo: the roles in which the chunk must be done again
    """

    reported: tuple[int, ...] = ()
    there: tuple[Copy, ...] = ()
    contributors: tuple[int, ...] = ()
    used: tuple[Used, ...] = ()
    attempt: int = 0
    redo: tuple[int, ...] = ()

    @property
    def waiting(self) -> tuple[Copy, ...]:
        """The copies that are there, while the chunk is not committed."""
        return () if self.contributors else self.there

    def commit(self, these: Sequence[Copy]) -> None:
        """These copies count. S_i does not change when a chunk is done again."""
        self.contributors = self.contributors or tuple([role for _, role in these])
        self.used += tuple([(worker, self.attempt) for worker, _ in these])

    def drop(self, worker: int) -> bool:
        """Drop the copy that `worker` keeps, unless the chunk is committed. Returns whether there was one."""
        kept = tuple(copy for copy in self.waiting if copy[0] != worker)
        dropped = len(kept) < len(self.waiting)
        if dropped:
            self.there = kept
        return dropped

    def invalidate(self, gone: Sequence[tuple[int, int, int]]) -> None:
        """Committed copies, (worker, role, attempt) each, are lost: the chunk must be done again in their roles."""
        lost = {(worker, attempt) for worker, _, attempt in gone}
        self.redo += tuple(role for _, role, _ in gone)
        self.used = tuple(copy for copy in self.used if copy not in lost)
        self.attempt += 1
        self.reported = ()

    def able(self, holders: Iterable[int]) -> list[int]:
        """The live holders whose next copy would count."""
        done = self.reported if self.redo else [worker for worker, _ in self.waiting]
        return [worker for worker in holders if worker not in done]


class Accumulators:
    """What contributors have committed and keep (transfer `combined`).

    An accumulator that was *shared out* does not change any more.
    serial: how many times accumulators were shared out; what is committed now goes to accumulators with this serial
    in_nodes: whether nodes of the tree (`psgc.aggregation.tree`) are shared out
    """

    def __init__(self, in_nodes: bool = False) -> None:
        self.serial = 0
        self._in_nodes = in_nodes
        self._kept: dict[Accumulator, list[tuple[int, int]]] = {}  # (chunk, attempt) of copies not shared out yet
        self._shared: dict[Accumulator, list[tuple[int, int]]] = {}
        self._lost: list[tuple[int, Used]] = []  # (chunk, copy) that are lost since they were shared out

    @property
    def shared(self) -> Collection[Accumulator]:
        """The accumulators that were shared out."""
        return self._shared.keys()

    def add(self, copy: Copy, chunk: int, attempt: int) -> None:
        """A contributor adds its copy of `chunk` to its accumulator."""
        self._kept.setdefault((*copy, self.serial), []).append((chunk, attempt))

    def share(self) -> tuple[Accumulator, ...]:
        """Share out all accumulators, the earlier ones again."""
        self._shared |= self._kept
        self._kept.clear()
        self.serial += 1
        self._lost.clear()
        return tuple(sorted(self._shared if not self._in_nodes else self._nodes()))

    def _nodes(self) -> Iterator[Accumulator]:
        chunks: dict[tuple[int, int], list[int]] = {}
        for (worker, _, serial), copies in self._shared.items():
            chunks.setdefault((worker, serial), []).extend(chunk for chunk, _ in copies)
        for (worker, serial), those in chunks.items():
            yield from ((worker, node, serial) for node in nodes_of(those))

    def lose(self, worker: int) -> dict[int, list[tuple[int, int, int]]]:
        """Remove what `worker` keeps. Returns (worker, role, attempt) of each copy, by chunk."""
        lost: dict[int, list[tuple[int, int, int]]] = {}
        for where in (self._kept, self._shared):
            for accumulator in sorted(key for key in where if key[0] == worker):
                copies = where.pop(accumulator)
                for chunk, attempt in copies:
                    lost.setdefault(chunk, []).append((worker, accumulator[1], attempt))
                if where is self._shared:
                    self._lost += [(chunk, (worker, attempt)) for chunk, attempt in copies]
        return lost

    def summed(self) -> tuple[list[tuple[int, Used]], list[tuple[int, Used]]]:
        """The sum of the last share is there, and nothing is kept any more.

        Returns (chunk, copy) of two kinds: copies in the sum that were lost since the share, and copies that were
        committed since the share and are not in the sum.
        """
        since = [(chunk, (key[0], attempt)) for key, copies in self._kept.items() for chunk, attempt in copies]
        self._kept.clear()
        self._shared.clear()
        return self._lost, since


class Books:
    """All copies of one iteration.

    missing: how many of the N * l copies that make the gradient are not there
    redo: the invalidated chunks that must be done again
    in_nodes: as for `Accumulators`
    """

    def __init__(self, num_chunks: int, parts: int, in_nodes: bool = False) -> None:
        self._parts = parts
        self.chunks = [Copies() for _ in range(num_chunks)]
        self.missing = num_chunks * parts
        self.redo: set[int] = set()
        self.accumulators = Accumulators(in_nodes)

    def used(self, worker: int, chunk: int, attempt: int = 0) -> bool:
        """Whether the copy of `worker` is in the gradient, or has confirmed it. attempt: invalidations before it."""
        return (worker, attempt) in self.chunks[chunk].used

    def reported(self) -> list[tuple[int, int]]:
        """(worker, chunk) of the reports that were handled: those that came after the iteration's end are not there."""
        return [(worker, i) for i, copies in enumerate(self.chunks) for worker in copies.reported]

    def incomplete(self) -> dict[int, tuple[int, ...]]:
        """The chunks that have fewer than l copies, and S_i of each."""
        parts = self._parts
        return {i: copies.contributors for i, copies in enumerate(self.chunks) if len(copies.contributors) < parts}

    @property
    def recovered(self) -> int:
        """How many chunks are recovered exactly."""
        return len(self.chunks) - len(self.incomplete().keys() | self.redo)

    def take_back(self, chunk: int) -> None:
        """`chunk` is not committed any more."""
        copies = self.chunks[chunk]
        if copies.contributors:
            copies.contributors = copies.used = ()
            self.missing += self._parts

    def summed(self) -> None:
        """The gradient is there. It consists of what was shared out last, with the copies that are lost since."""
        lost, since = self.accumulators.summed()
        for chunk, copy in lost:
            self.chunks[chunk].used += (copy,)
        for chunk, copy in since:
            self.chunks[chunk].used = tuple(used for used in self.chunks[chunk].used if used != copy)
        self.redo.clear()

    def lose(self, worker: int, kept: Iterable[int]) -> tuple[list[int], Collection[int]]:
        """A worker is lost that may keep copies of the chunks `kept`.

        Returns the chunks that have a copy less, and the chunks that are invalidated: those committed to a lost copy.
        """
        dropped = [chunk for chunk in kept if self.chunks[chunk].drop(worker)]
        self.missing += len(dropped)
        invalidated = self.accumulators.lose(worker)
        for chunk, gone in invalidated.items():
            self.chunks[chunk].invalidate(gone)
        self.redo |= invalidated.keys()
        return dropped, invalidated.keys()
