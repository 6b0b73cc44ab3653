"""Who takes over from a rank 0 that has died, and from which state, as a pure state machine: no clock, no MPI.

The lowest place that is alive asks all others for their positions, and names the next term: its server is the lowest
place among those whose replicas are newest. So nobody waits for a state before the term begins, and steps that anybody
who answered has made stand. Each survivor has one of these from the death on until it begins the term. When another
one dies meanwhile, who is there says anew where it is: what was said before that death does not count.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from psgc.transport import Term


@dataclass(frozen=True, slots=True)
class ReplicaPosition:
    """Where a process is.

    term: the number of the newest one that it has begun; of, steps: its replica has made so many steps, the last one or
    its loading in the term of this number; steps -1: it has none. deaths: how many it knows of.
    """

    term: int
    of: int
    steps: int
    deaths: int

    @property
    def replica(self) -> tuple[int, int]:
        """Equal for replicas that are the same, larger for newer ones."""
        return self.of, self.steps


@dataclass(frozen=True, slots=True)
class Named:
    """A new term. It begins from the replicas that are as `replica` says (`ReplicaPosition`).

    alike: the places of those that are known to be there with such a one; behind: with another one, or none. Both are
    None where only the term is known.
    """

    term: Term
    replica: tuple[int, int]
    alike: frozenset[int] | None = None
    behind: frozenset[int] | None = None


class Succession:
    """place: of this process; term: the newest that it has begun; replica: as of `ReplicaPosition`.

    said: the newest position of each other place, which the owner of this keeps up to date.
    absent: places that were lost before; nobody waits for them. patience: seconds that others are waited for.
    """

    def __init__(
        self,
        place: int,
        term: Term,
        replica: tuple[int, int],
        said: dict[int, ReplicaPosition],
        absent: Collection[int],
        patience: float,
    ) -> None:
        self._place, self._term, self._replica = place, term, replica
        self._said, self._absent, self._patience = said, absent, patience
        self._told = -1, 0  # whom this process has told where it is, knowing of so many deaths
        self._since = 0.0

    def position(self, dead: Collection[int]) -> ReplicaPosition:
        """Of this process."""
        return ReplicaPosition(self._term.number, *self._replica, len(dead))

    def to_tell(self, dead: Collection[int], now: float) -> Sequence[int]:
        """The places that are to be told now where this process is. dead: places."""
        live = self._live(dead)
        if self._told == (live[0], len(dead)):
            return ()
        self._told, self._since = (live[0], len(dead)), now
        return [place for place in live if place != self._place] if live[0] == self._place else live[:1]

    def named(self, dead: Collection[int], now: float) -> Named | None:
        """The next term, if this process has to name it and can. Its replicas have -1 steps if nobody has one."""
        live = self._live(dead)
        if live[0] != self._place:
            return None
        known = {place: said for place, said in self._said.items() if place in live and said.deaths >= len(dead)}
        known[self._place] = self.position(dead)
        if now - self._since <= self._patience and any(p not in known and p not in self._absent for p in live):
            return None
        newest = max((said.replica for said in known.values() if said.steps >= 0), default=(0, -1))
        alike = frozenset(place for place, said in known.items() if said.replica == newest)
        last = self._term.numbered(max(said.term for said in known.values()))
        return Named(last.following(min(alike, default=self._place)), newest, alike, frozenset(known) - alike)

    def _live(self, dead: Collection[int]) -> list[int]:
        return [place for place in range(self._term.size) if place not in dead]
