"""How the survivors of a dead rank 0 reach the next term: `psgc.run.succession` over MPI.

This process sends the term that it is in to every process that asks from an older one: that process was stopped, or has
missed the news.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from psgc.messages import Entry, Kind, RecordList, Records, entries, record
from psgc.processes import RunningTime
from psgc.run.succession import Named, ReplicaPosition, Succession
from psgc.transport import Term, Transport


@dataclass(kw_only=True)
class Beginning:
    """How a term begins.

    first: its first iteration; -1 if no rank has a state to begin with; or CALLED_OFF
    is_alike: whether this rank has that state

    After a takeover, for the rank that serves the term:
    reached: the newest iteration that an earlier rank 0 is known to have begun
    alike: the workers that have that state
    away: by lost worker, whether its process has died
    losses: by worker, how often it was lost since these processes were started, with this takeover
    failed: the workers that were lost for good since then, as after a gradient that failed
    before: the host of the earlier rank 0
    died: when the earlier rank 0 died, time.monotonic()
    took: by iteration that may have no row, its seconds
    number: of takeovers since these processes were started
    lost: seconds of these takeovers, with this one once the term `has_begun`
    since: the iteration with which these processes began
    strikes: by worker, its wrong copies since then (`verify`)
    """

    first: int
    is_alike: bool = False
    reached: int = 0
    alike: Collection[int] = ()
    away: Mapping[int, bool] = field(default_factory=dict)
    losses: Mapping[int, int] = field(default_factory=dict)
    failed: Collection[int] = ()
    before: str = ""
    died: float = 0.0
    took: Mapping[int, float] = field(default_factory=dict)
    number: int = 0
    lost: float = 0.0
    since: int = 0
    strikes: Mapping[int, int] = field(default_factory=dict)

    _has_begun: bool = False

    def has_begun(self) -> None:
        """The first iteration of the term begins, or there is none. May be called again."""
        if not self._has_begun:
            self._has_begun = True
            self.lost += time.monotonic() - self.died


CALLED_OFF = -2  # in place of steps: the run does not go on


class Takeover:
    """This process in the terms of a run.

    patience: seconds that survivors wait for each other
    enough: whether these workers can do all chunks
    """

    def __init__(self, transport: Transport, patience: float, enough: Callable[[Collection[int]], bool]) -> None:
        self._transport, self._patience, self._enough = transport, patience, enough
        self._replica = 0, -1
        self._said: dict[int, ReplicaPosition] = {}
        self._reading = defaultdict[int, RecordList](RecordList)
        self._standing: Named | None = None  # the term that was begun
        self._named: Named | None = None  # a later term
        self._between: Succession | None = None  # from the death of a rank 0 to the next term
        self._lost = 0.0  # seconds in takeovers
        transport.hear_outside = self._heard

    @property
    def awaited(self) -> int:
        """The place of the process that everything waits for."""
        transport, is_between = self._transport, self._between is not None
        live = (place for place in range(transport.term.size) if place not in transport.dead)
        return min(live) if is_between else transport.term.server

    def next_term(self, steps: int | None, left: Collection[int], is_whole: bool) -> Beginning:
        """Rank 0 has died: reach the next term. The transport then has its ranks.

        steps: that the replica has made; -1 if it had no state in this term; None if its state is wrong
        left: workers that were lost before
        is_whole: as in `ReplicaPosition`
        """
        clock, died, before = RunningTime(), time.monotonic(), self._transport.hosts[0]
        self.leave_term(steps, left, is_whole)
        while not self.is_named(clock.look()):
            self._transport.wait()
            self._transport.poll()
        beginning = self.enter_term(before, died)
        self._lost += time.monotonic() - died
        return beginning

    def call_off(self) -> None:
        """Have the others end too: this rank should serve, and cannot."""
        named = Named(self._transport.term.following(self._transport.place), (0, CALLED_OFF))
        self._tell(named)

    def _tell(self, named: Named) -> None:
        transport = self._transport
        for place in range(transport.term.size):
            if place != transport.place and place not in transport.dead:
                transport.send_outside(place, _term_records(named, to_server=place == named.term.server))
        transport.wake_others()

    def leave_term(self, steps: int | None, left: Collection[int], is_whole: bool) -> None:
        """The first part of `next_term`."""
        transport, term = self._transport, self._transport.term
        if steps is None:  # nor has it that of an earlier term any more
            self._replica = 0, -1
        elif steps >= 0:
            begun = None if self._standing is None else self._standing.replica  # with which the term has begun
            self._replica = begun if begun is not None and steps == begun[1] else (term.number, steps)
        absent = [term.place(rank) for rank in left]
        own = transport.place, term, self._replica, is_whole
        self._between = Succession(*own, self._enough, self._said, absent, self._patience)

    def is_named(self, now: float) -> bool:
        """Whether the next term is known. Names it for all if this process must. now: as in `RunningTime`."""
        between, transport, dead = self._between, self._transport, self._transport.dead
        assert between is not None
        if self._named is None:
            for place in between.to_tell(dead, now):
                transport.send_outside(place, [_position_record(between.position(dead))])
            if (named := between.named(dead, now)) is not None:
                self._named = named
                self._tell(named)
            transport.wake_others()
        return self._named is not None

    def enter_term(self, before: str, died: float) -> Beginning:
        """The last part of `next_term`. before, died: as in `Beginning`."""
        assert self._named is not None
        self._standing, self._named, self._between = self._named, None, None
        for place, said in self._said.items():
            if said.term < self._standing.term.number and place not in self._transport.dead:
                self._tell_standing(place)  # that process may wait for this one to name a term
        return self._begin(self._standing, before, died)

    def _begin(self, named: Named, before: str, died: float) -> Beginning:
        transport, term, (_, first) = self._transport, named.term, named.replica
        dead, live = transport.dead, set(range(transport.term.size)).difference(transport.dead)
        alike = {transport.place} if named.alike is None else named.alike & live
        behind = live - alike if named.behind is None else named.behind & live
        transport.enter(term)
        away = {term.rank(place): place in dead for place in range(term.size) if place not in alike | behind}
        workers = {term.rank(place) for place in alike if place != transport.place and first >= 0}
        return Beginning(
            first=first,
            is_alike=self._replica == named.replica and first >= 0,
            alike=workers,
            away=away,
            losses=dict.fromkeys(away, 1),
            before=before,
            died=died,
            number=term.number // term.size,
            lost=self._lost,
        )

    def _tell_standing(self, place: int) -> None:
        assert self._standing is not None
        only_term = Named(self._standing.term, self._standing.replica)
        self._transport.send_outside(place, _term_records(only_term, to_server=False))

    def _heard(self, place: int, records: Records) -> None:
        """Handle records that came outside of all terms."""
        for entry in entries(records):
            if entry["kind"] == Kind.POSITION:
                self._said[place] = said = _position(entry)
                if self._standing is not None and self._between is None and said.term < self._standing.term.number:
                    self._tell_standing(place)
                continue
            if parts := self._reading[place].read(entry):
                named = _named(parts, self._transport.term)
                if place not in self._transport.dead:  # otherwise other processes have another position of this one
                    self._told(named)

    def _told(self, named: Named) -> None:
        newest = self._named.term if self._named is not None else self._transport.term
        if named.term.number <= newest.number:
            return
        self._named = named
        if self._between is None and self._transport.rank:  # this process did not know that rank 0 has died
            self._transport.give_up(self._transport.term.server)


def _position_record(position: ReplicaPosition) -> Records:
    said = {"attempt": position.of, "worker": position.deaths, "role": position.is_whole}
    return record(Kind.POSITION, position.steps, position.term, **said)  # type: ignore[arg-type]


def _position(entry: Entry) -> ReplicaPosition:
    said = entry["chunk"], entry["attempt"], entry["iteration"], entry["worker"]
    return ReplicaPosition(*said, is_whole=bool(entry["role"]))


def _term_records(named: Named, to_server: bool) -> list[Records]:
    there = {**dict.fromkeys(named.behind or (), 0), **dict.fromkeys(named.alike or (), 1)} if to_server else {}
    of, steps = named.replica
    said = [record(Kind.TERM, steps, named.term.number, attempt=of, last=not there)]
    for number, (place, is_alike) in enumerate(there.items(), start=1):
        said.append(record(Kind.PRESENT, worker=place, role=is_alike, last=number == len(there)))
    return said


def _named(said: list[Entry], before: Term) -> Named:
    head, *there = said
    alike = frozenset(entry["worker"] for entry in there if entry["role"])
    behind = frozenset(entry["worker"] for entry in there if not entry["role"])
    term, replica = before.numbered(head["chunk"]), (head["attempt"], head["iteration"])
    return Named(term, replica, alike, behind) if there else Named(term, replica)
