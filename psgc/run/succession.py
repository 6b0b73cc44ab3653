"""Which process takes over from a dead rank 0, and from which state. A pure state machine: no clock, no MPI.

The lowest live place asks all others for their positions, and names the next term: its server is the lowest place among
those with the newest replicas. So the term begins without waiting for a state, and steps that any process that answered
has made are kept. A script in the middle of a step has no state to give: if too few others have its replica, they could
not do all chunks, and the next older replica counts as the newest.

Each survivor has one of these objects from the death until it begins the term. When another process dies meanwhile, the
survivors send their positions again; positions from before that death do not count.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from psgc.transport import Term


@dataclass(frozen=True, slots=True)
class ReplicaPosition:
    """The position of a process.

    term: the number of the newest term that it has begun
    of, steps: its replica has made so many steps; it made the last one, or was loaded, in the term `of`; steps -1: it
        has no replica
    deaths: the number of deaths that it knows of
    is_whole: whether it can give the state of its replica to others
    """

    term: int
    of: int
    steps: int
    deaths: int
    is_whole: bool = True

    @property
    def replica(self) -> tuple[int, int]:
        """Equal for equal replicas, larger for newer ones."""
        return self.of, self.steps


@dataclass(frozen=True, slots=True)
class Named:
    """A new term. It begins from the replicas whose positions have `replica` (`ReplicaPosition`).

    alike: the places known to have such a replica
    behind: the places known to have another replica, or none

    Both are None if only the term is known.
    """

    term: Term
    replica: tuple[int, int]
    alike: frozenset[int] | None = None
    behind: frozenset[int] | None = None


class Succession:
    """The search for the next server, on one process.

    place: of this process
    term: the newest term that it has begun
    replica, is_whole: as in `ReplicaPosition`
    enough: whether these workers can do all chunks
    said: the newest position of each other place; the owner of this object keeps it up to date
    absent: places that were lost before; no process waits for them
    patience: seconds to wait for the others
    """

    def __init__(
        self,
        place: int,
        term: Term,
        replica: tuple[int, int],
        is_whole: bool,
        enough: Callable[[Collection[int]], bool],
        said: dict[int, ReplicaPosition],
        absent: Collection[int],
        patience: float,
    ) -> None:
        self._place, self._term, self._replica, self._is_whole = place, term, replica, is_whole
        self._enough = enough
        self._said, self._absent, self._patience = said, absent, patience
        self._told = -1, 0  # the place that was sent this position last, and the number of deaths known then
        self._since = 0.0

    def position(self, dead: Collection[int]) -> ReplicaPosition:
        """The position of this process."""
        return ReplicaPosition(self._term.number, *self._replica, len(dead), self._is_whole)

    def to_tell(self, dead: Collection[int], now: float) -> Sequence[int]:
        """The places to send the position of this process now. dead: places."""
        live = self._live(dead)
        if self._told == (live[0], len(dead)):
            return ()
        self._told, self._since = (live[0], len(dead)), now
        return [place for place in live if place != self._place] if live[0] == self._place else live[:1]

    def named(self, dead: Collection[int], now: float) -> Named | None:
        """The next term, if this process must name it and can. Its replicas have -1 steps if no process has one."""
        live = self._live(dead)
        if live[0] != self._place:
            return None
        known = {place: said for place, said in self._said.items() if place in live and said.deaths >= len(dead)}
        known[self._place] = self.position(dead)
        if now - self._since <= self._patience and any(p not in known and p not in self._absent for p in live):
            return None
        newest = max((said.replica for said in known.values() if said.steps >= 0), default=(0, -1))
        others = {said.replica for place, said in known.items() if said.steps >= 0 and place not in self._absent}
        terms = [self._term_from(replica, known) for replica in (newest, *sorted(others - {newest}, reverse=True))]
        return next((named for named in terms if self._can_work(named, known)), terms[0])

    def _term_from(self, replica: tuple[int, int], known: dict[int, ReplicaPosition]) -> Named:
        alike = frozenset(place for place, said in known.items() if said.replica == replica)
        last = self._term.numbered(max(said.term for said in known.values()))
        return Named(last.following(min(alike, default=self._place)), replica, alike, frozenset(known) - alike)

    def _can_work(self, named: Named, known: dict[int, ReplicaPosition]) -> bool:
        """Whether workers can be given the state of this term, or enough have it."""
        alike = (named.alike or frozenset()).difference(self._absent)  # a worker that was lost may not be taken back
        ranks = {rank for place in alike for rank in named.term.ranks_at(place)}
        return any(known[place].is_whole for place in alike) or self._enough(ranks - {0})

    def _live(self, dead: Collection[int]) -> list[int]:
        return [place for place in range(self._term.size) if place not in dead]
