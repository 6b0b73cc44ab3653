"""The data exchange of the coded all-reduce: what one rank sends and sums for one map, as a pure state machine.

No clock, no MPI, no arrays. Events go in, instructions come out; the caller carries them out in order. Every receiver
has an `Exchange` with the same `Plan`. It is driven by MPI in production and by a virtual network in simulation.

A contributor sends each block of its accumulators to the owner of the block. The owner sums a block (decodes it, with
several parts) and sends the block of the gradient, `parts` times as long, to all other receivers. The rules:

1. A rank sends nothing before `Begin`, which says that its own accumulators are complete. Blocks may arrive before.
2. At most WINDOW sends of a rank are under way: many senders to one receiver at once are what costs.
3. Sends are staggered: each rank begins with the rank after itself, so that at any time all ranks receive from
   different ones. The first blocks of all slices go first, then the second blocks, and so on.
4. Blocks of accumulators go before blocks of the gradient, since other ranks wait for the former to sum.
5. An owner sums a block when the blocks of all contributors are there, in the order of contributors. So the gradient
   does not depend on the order of arrival, and no block is summed twice.
6. A destination that takes long is *held*: sends to it do not count in the window, and there is one at a time.
7. `Finish` comes once, when all blocks of the gradient are here. Sends may then still be left: `is_done` says when none
   is, and accumulators and gradient are needed until then.
8. `Closed` says which blocks of the gradient count. All of these have been summed: no more accumulators are sent or
   awaited, and the other blocks are neither sent nor awaited.
9. After `Quit` a rank waits only for what it has to sum for others.
10. An event that no correct rank can cause (a block that arrives twice, at a rank that does not own it, or from a rank
   that does not contribute it, and the end of a send that is not under way) raises ProtocolError and changes nothing.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from psgc.aggregation.map import Contributor
from psgc.aggregation.slices import Block, Slice, cut
from psgc.errors import ProtocolError

WINDOW = 2  # sends under way: while one is on the link the next is ready
EVENTS_KEPT = 20  # for the report of a ProtocolError


# what happens


@dataclass(frozen=True, slots=True)
class Begin:
    """The accumulators of this rank are complete."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A block is here from `source`: of an accumulator, or of the gradient when `contributor` is None."""

    source: int
    block: int
    contributor: Contributor | None


@dataclass(frozen=True, slots=True)
class Sent:
    """A send has ended: its memory may be used again, as far as the transport is concerned."""

    send: "Send"


@dataclass(frozen=True, slots=True)
class Held:
    """A send to `dest` takes long."""

    dest: int


@dataclass(frozen=True, slots=True)
class Left:
    """`rank` takes no part any more: nothing is sent to it."""

    rank: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Only these blocks of the gradient count, and all of them have been summed."""

    blocks: frozenset[int]


@dataclass(frozen=True, slots=True)
class Quit:
    """This rank does not need the gradient any more. What it owes to others it still does."""


Event = Begin | Arrived | Sent | Held | Left | Closed | Quit


# what is to be done


@dataclass(frozen=True, slots=True)
class Send:
    """Send to `dest` a block of an accumulator, or of the gradient when `contributor` is None."""

    dest: int
    block: int
    contributor: Contributor | None


@dataclass(frozen=True, slots=True)
class Sum:
    """Sum or decode the block from the accumulators of these, in this order: a block of the gradient."""

    block: int
    contributors: tuple[Contributor, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The whole gradient of the map's slices is here."""


Instruction = Send | Sum | Finish


class Plan:
    """Who sends what to whom for one map; the same on all ranks.

    receivers: the ranks that get the gradient, ascending; contributors: of every accumulator, in the order of roles;
    blocks: of the coded vector, by number, in the order of their entries.

    Args:
        receivers: ranks, in any order.
        contributors: in any order. A rank may have several accumulators, and need not have any.
        slices: in the order of their entries, each owned by a receiver; an owner may have several.
        most: entries of a block.

    Raises ValueError when these do not fit each other.
    """

    def __init__(
        self, receivers: Iterable[int], contributors: Iterable[Contributor], slices: Sequence[Slice], most: int
    ) -> None:
        self.receivers = tuple(sorted(set(receivers)))
        self.contributors = tuple(sorted(contributors, key=lambda one: (one.role, one.serial, one.rank)))
        if not self.contributors or len(set(self.contributors)) < len(self.contributors):
            raise ValueError(f"expected different contributors, got {self.contributors}")
        starts, stops = [part.start for part in slices], [0, *(part.stop for part in slices)]
        if not slices or any(a < b for a, b in zip(starts, stops, strict=False)):
            raise ValueError(f"expected slices in the order of their entries, got {slices}")
        if any(a >= b for a, b in zip(starts, stops[1:], strict=True)):
            raise ValueError(f"expected slices that are not empty, got {slices}")
        named = {one.rank for one in self.contributors} | {part.owner for part in slices}
        if strangers := named - set(self.receivers):
            raise ValueError(f"ranks {sorted(strangers)} contribute or own, but are not receivers")
        blocks: list[Block] = []
        rounds: dict[int, list[int]] = {}  # the first blocks of all slices, the second blocks, ...
        for part in slices:
            for place, block in enumerate(cut(part, most)):
                rounds.setdefault(place, []).append(len(blocks))
                blocks.append(block)
        self.blocks = tuple(blocks)
        self._rounds = [sorted(numbers, key=lambda number: blocks[number].owner) for numbers in rounds.values()]

    def others(self, rank: int) -> list[int]:
        """The other receivers, from the one after `rank` on."""
        here = self.receivers.index(rank)
        return [*self.receivers[here + 1 :], *self.receivers[:here]]

    def coded_sends(self, rank: int) -> Iterator[Send]:
        """All blocks of accumulators that `rank` sends, in order."""
        own = [contributor for contributor in self.contributors if contributor.rank == rank]
        if not own:
            return
        for numbers in self._rounds:
            after = [number for number in numbers if self.blocks[number].owner > rank]
            before = [number for number in numbers if self.blocks[number].owner < rank]
            for number in [*after, *before]:
                for contributor in own:
                    yield Send(self.blocks[number].owner, number, contributor)


class Exchange:
    """One rank's side of the exchange. held: destinations that are held from the start.

    Raises ValueError when the rank is not a receiver.
    """

    def __init__(self, plan: Plan, rank: int, held: Iterable[int] = ()) -> None:
        self._plan, self._rank = plan, rank
        self._others = plan.others(rank)
        self._begun = False
        self._queue = deque(plan.coded_sends(rank))
        self._under_way: list[Send] = []
        self._waiting: dict[int, deque[Send]] = {dest: deque() for dest in held}  # sends to those that are held
        own = [number for number, block in enumerate(plan.blocks) if block.owner == rank]
        # by own block the contributors whose blocks are not there; none is left when the block is summed
        self._missing = {number: set(plan.contributors) for number in own}
        self._absent = set(range(len(plan.blocks)))  # blocks of the gradient
        self._may_be_late = False  # whether blocks of the gradient may come that are not awaited
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)

    @property
    def is_finished(self) -> bool:
        """Whether the whole gradient is here."""
        return not self._absent

    @property
    def is_done(self) -> bool:
        """Whether the whole gradient is here and nothing is left to be sent."""
        return not (self._absent or self._queue or self._under_way or any(self._waiting.values()))

    @property
    def awaited(self) -> set[int]:
        """The ranks whose accumulators this one lacks for the blocks that it is to sum."""
        return {one.rank for missing in self._missing.values() for one in missing} - {self._rank}

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done after `event`, in order. Raises ProtocolError, and then changes nothing."""
        if not self._is_possible(event):
            raise self._illegal(event)
        self._events.append(event)
        instructions: list[Instruction] = []
        match event:
            case Arrived(_, block, None):
                instructions += self._have(block) if block in self._absent else []
            case Arrived(_, block, Contributor() as contributor):
                self._missing[block].remove(contributor)
                instructions += self._sum_if_complete(block)
            case Sent(send):
                self._under_way.remove(send)
            case Begin():
                self._begun = True
                mine = {contributor for contributor in self._plan.contributors if contributor.rank == self._rank}
                for block, missing in self._missing.items() if mine else ():
                    missing -= mine
                    instructions += self._sum_if_complete(block)
            case Held(dest):
                self._waiting.setdefault(dest, deque())
            case Left(rank):
                self._others = [other for other in self._others if other != rank]
                self._queue = deque(send for send in self._queue if send.dest != rank)
                self._waiting.pop(rank, None)
            case Closed(blocks):
                instructions += self._close(blocks)
            case Quit():
                self._may_be_late = True
                self._absent &= {number for number in self._missing if self._missing[number]}
        return instructions + (self._next() if self._begun else [])

    def _is_possible(self, event: Event) -> bool:
        match event:
            case Arrived(source, block, None):
                owned_by_source = 0 <= block < len(self._plan.blocks) and self._plan.blocks[block].owner == source
                return owned_by_source and source != self._rank and (block in self._absent or self._may_be_late)
            case Arrived(source, block, contributor):
                is_others = contributor is not None and source == contributor.rank != self._rank
                return is_others and contributor in self._missing.get(block, ())
            case Sent(send):
                return send in self._under_way
            case Begin():
                return not self._begun
            case _:
                return True

    def _illegal(self, event: Event) -> ProtocolError:
        state = "done" if self.is_done else "exchanging" if self._begun else "waiting to begin"
        return ProtocolError(f"exchange: {event} is not allowed at rank {self._rank}, {state}", self._events)

    def _next(self) -> list[Instruction]:
        """The sends that may begin now."""
        instructions: list[Instruction] = []
        busy = {send.dest for send in self._under_way}
        for dest, waiting in self._waiting.items():
            if waiting and dest not in busy:
                instructions.append(waiting.popleft())
        in_window = sum(send.dest not in self._waiting for send in self._under_way)
        while self._queue and in_window < WINDOW:
            send = self._queue.popleft()
            if (waiting_for := self._waiting.get(send.dest)) is None:
                in_window += 1
                instructions.append(send)
            elif waiting_for or send.dest in busy:
                waiting_for.append(send)
            else:
                busy.add(send.dest)
                instructions.append(send)
        self._under_way += [send for send in instructions if isinstance(send, Send)]
        return instructions

    def _sum_if_complete(self, block: int) -> list[Instruction]:
        if self._missing[block] or block not in self._absent:  # the latter: it does not count
            return []
        self._queue.extend(Send(dest, block, None) for dest in self._others)
        return [Sum(block, self._plan.contributors), *self._have(block)]

    def _have(self, block: int) -> list[Instruction]:
        """A block of the gradient is here."""
        self._absent.remove(block)
        return [] if self._absent else [Finish()]

    def _close(self, blocks: Collection[int]) -> list[Instruction]:
        self._may_be_late = True

        def counts(send: Send) -> bool:
            return send.contributor is None and send.block in blocks

        self._queue = deque(filter(counts, self._queue))
        self._waiting = {dest: deque(filter(counts, sends)) for dest, sends in self._waiting.items()}
        were_absent = bool(self._absent)
        self._absent &= set(blocks) - self._missing.keys()  # those of this rank that are not summed are not needed
        return [Finish()] if were_absent and not self._absent else []
