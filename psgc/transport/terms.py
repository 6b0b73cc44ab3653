"""Terms: which process is which rank. In each term another process is rank 0, the server."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

OUTSIDE_TAG = 1  # of messages outside of all terms
FIRST_TAG = 2  # of the first term; each term has two tags


@dataclass(frozen=True, slots=True)
class Term:
    """The ranks of the processes in one term.

    The *place* of a process is its rank in MPI, which never changes. Each process computes the ranks by itself.

    number: larger than the numbers before it; no other term of any process has it
    size: number of processes that MPI has started
    is_dedicated: whether the serving process has no other rank; it has changed ranks with the process at place 0, which
        is dead by then. Otherwise each process is a worker, with the rank after its place, and one is also rank 0.
    size_before: `size` before `psgc launch` started the run again; 0 if it did not

    >>> second = Term(size=4).following(place=2)
    >>> second.number, second.server, [second.rank(place) for place in range(4)]
    (6, 2, [2, 1, 0, 3])
    >>> all_work = Term(size=4, is_dedicated=False).following(place=2)
    >>> all_work.ranks, [all_work.ranks_at(place) for place in range(4)]
    (5, [(1,), (2,), (0, 3), (4,)])
    """

    number: int = 0
    size: int = 1
    is_dedicated: bool = True
    size_before: int = 0

    @property
    def is_tried(self) -> bool:
        """Whether the run has had its trial: in an earlier term, or before it was started again with as many ranks."""
        return self.number > 0 or self.size_before == self.size

    @property
    def server(self) -> int:
        """The place of rank 0."""
        return self.number % self.size

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.size if self.is_dedicated else self.size + 1

    def rank(self, place: int, is_worker: bool = False) -> int:
        """The rank of the process at this place. is_worker: the rank of its worker, if it is rank 0 as well."""
        if not self.is_dedicated:
            return place + 1 if is_worker or place != self.server else 0
        return self.server if place == 0 else 0 if place == self.server else place

    def ranks_at(self, place: int) -> Sequence[int]:
        """All ranks of the process at this place."""
        return tuple(dict.fromkeys((self.rank(place), self.rank(place, is_worker=True))))

    def place(self, rank: int) -> int:
        """The place of the process with this rank."""
        if not self.is_dedicated:
            return rank - 1 if rank else self.server
        return self.rank(rank)  # two have changed places

    def following(self, place: int) -> "Term":
        """The next term, served from this place, for a process that knows of no later term than this one."""
        return self.numbered((self.number // self.size + 1) * self.size + place)

    def numbered(self, number: int) -> "Term":
        """The term of the same run with this number."""
        return replace(self, number=number)

    def tag(self, rank: int) -> int:
        """The tag of messages to this rank. Messages of other terms, or to another rank, have other tags."""
        return FIRST_TAG + 2 * self.number + (rank == 0)
