"""The data exchange of the coded all-reduce: what one rank sends and sums in one iteration, as a pure state machine.

No clock, no MPI, no arrays. Events go in, instructions come out; the caller carries them out in order. Every live rank
has an `Exchange` with the same `Plan`. It is driven by MPI in production and by a virtual network in simulation.

A contributor sends each block of its accumulators to the owner of the block. The owner sums a block (decodes it, with
several parts) and sends the block of the gradient, `parts` times as long, to all other live ranks. The rules:

1. A rank sends nothing before `Begin`, which says that its own accumulators are complete. Blocks may arrive before.
2. At most WINDOW sends of a rank are under way: many senders to one receiver at once are what costs.
3. Sends are staggered: each rank begins with the rank after itself, so that at any time all ranks receive from
   different ones. The first blocks of all slices go first, then the second blocks, and so on.
4. Blocks of accumulators go before blocks of the gradient, since other ranks wait for the former to sum.
5. An owner sums a block when the blocks of all contributors are there, in the order of roles. So the gradient does not
   depend on the order of arrival, and no block is summed twice.
6. `Finish` comes once, when all blocks of the gradient are here. Sends may then still be left: `is_done` says when none
   is, and accumulators and gradient are needed until then.
7. An event that no correct rank can cause (a block that arrives twice, at a rank that does not own it, or from a rank
   that does not contribute it, and the end of a send that is not under way) raises ProtocolError and changes nothing.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

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
    """A block is here: of the accumulator of `source` in `role`, or of the gradient when `role` is None."""

    source: int
    block: int
    role: int | None


@dataclass(frozen=True, slots=True)
class Sent:
    """A send has ended: its memory may be used again, as far as the transport is concerned."""

    send: "Send"


Event = Begin | Arrived | Sent


# what is to be done


@dataclass(frozen=True, slots=True)
class Send:
    """Send to `dest` a block of the accumulator in `role`, or of the gradient when `role` is None."""

    dest: int
    block: int
    role: int | None


@dataclass(frozen=True, slots=True)
class Sum:
    """Sum or decode the block from the accumulators in these roles, in this order: a block of the gradient."""

    block: int
    roles: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The whole gradient is here."""


Instruction = Send | Sum | Finish


class Plan:
    """Who sends what to whom in one iteration; the same on all ranks.

    live: the ranks that get the gradient, ascending; contributors: (rank, role) of every accumulator, in the order of
    roles; blocks: of the coded vector, by number, in the order of their entries.

    Args:
        live: ranks, in any order.
        contributors: (rank, role) pairs, in any order. A rank may have several roles, and need not have any.
        slices: in the order of their entries, each with a live owner; an owner may have several.
        most: entries of a block.

    Raises ValueError when these do not fit each other.
    """

    def __init__(
        self, live: Iterable[int], contributors: Iterable[tuple[int, int]], slices: Sequence[Slice], most: int
    ) -> None:
        self.live = tuple(sorted(set(live)))
        self.contributors = tuple(sorted(contributors, key=lambda contributor: contributor[1]))
        self.roles = tuple(role for _, role in self.contributors)
        if not self.contributors or len(set(self.roles)) < len(self.roles):
            raise ValueError(f"expected contributors with different roles, got {self.contributors}")
        starts, stops = [part.start for part in slices], [part.stop for part in slices]
        if not slices or starts != [0, *stops[:-1]] or any(a >= b for a, b in zip(starts, stops, strict=True)):
            raise ValueError(f"expected slices that follow each other from entry 0 on, got {slices}")
        named = {rank for rank, _ in self.contributors} | {part.owner for part in slices}
        if strangers := named - set(self.live):
            raise ValueError(f"ranks {sorted(strangers)} contribute or own, but are not live")
        blocks: list[Block] = []
        rounds: dict[int, list[int]] = {}  # the first blocks of all slices, the second blocks, ...
        for part in slices:
            for place, block in enumerate(cut(part, most)):
                rounds.setdefault(place, []).append(len(blocks))
                blocks.append(block)
        self.blocks = tuple(blocks)
        self._rounds = [sorted(numbers, key=lambda number: blocks[number].owner) for numbers in rounds.values()]

    def others(self, rank: int) -> list[int]:
        """The other live ranks, from the one after `rank` on."""
        here = self.live.index(rank)
        return [*self.live[here + 1 :], *self.live[:here]]

    def coded_sends(self, rank: int) -> Iterator[Send]:
        """All blocks of accumulators that `rank` sends, in order."""
        roles = [role for contributor, role in self.contributors if contributor == rank]
        if not roles:
            return
        for numbers in self._rounds:
            after = [number for number in numbers if self.blocks[number].owner > rank]
            before = [number for number in numbers if self.blocks[number].owner < rank]
            for number in [*after, *before]:
                for role in roles:
                    yield Send(self.blocks[number].owner, number, role)


class Exchange:
    """One rank's side of the exchange. Raises ValueError when the rank is not live."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self._plan, self._rank = plan, rank
        self._others = plan.others(rank)
        self._begun = False
        self._queue = deque(plan.coded_sends(rank))
        self._under_way: list[Send] = []
        own = [number for number, block in enumerate(plan.blocks) if block.owner == rank]
        # by own block the (rank, role) whose accumulators are not there; none is left when the block is summed
        self._missing = {number: set(plan.contributors) for number in own}
        self._absent = set(range(len(plan.blocks)))  # blocks of the gradient
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)

    @property
    def is_finished(self) -> bool:
        """Whether the whole gradient is here."""
        return not self._absent

    @property
    def is_done(self) -> bool:
        """Whether the whole gradient is here and nothing is left to be sent."""
        return not (self._absent or self._queue or self._under_way)

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done after `event`, in order. Raises ProtocolError, and then changes nothing."""
        if not self._is_possible(event):
            raise self._illegal(event)
        self._events.append(event)
        instructions: list[Instruction] = []
        match event:
            case Arrived(_, block, None):
                instructions += self._have(block)
            case Arrived(source, block, int(role)):
                self._missing[block].remove((source, role))
                instructions += self._sum_if_complete(block)
            case Sent(send):
                self._under_way.remove(send)
            case Begin():
                self._begun = True
                mine = {contributor for contributor in self._plan.contributors if contributor[0] == self._rank}
                for block, missing in self._missing.items() if mine else ():
                    missing -= mine
                    instructions += self._sum_if_complete(block)
        if self._begun:
            while self._queue and len(self._under_way) < WINDOW:
                send = self._queue.popleft()
                self._under_way.append(send)
                instructions.append(send)
        return instructions

    def _is_possible(self, event: Event) -> bool:
        match event:
            case Arrived(source, block, None):
                owned_by_source = 0 <= block < len(self._plan.blocks) and self._plan.blocks[block].owner == source
                return owned_by_source and source != self._rank and block in self._absent
            case Arrived(source, block, role):
                return source != self._rank and (source, role) in self._missing.get(block, ())
            case Sent(send):
                return send in self._under_way
            case Begin():
                return not self._begun

    def _illegal(self, event: Event) -> ProtocolError:
        state = "done" if self.is_done else "exchanging" if self._begun else "waiting to begin"
        return ProtocolError(f"exchange: {event} is not allowed at rank {self._rank}, {state}", self._events)

    def _sum_if_complete(self, block: int) -> list[Instruction]:
        if self._missing[block]:
            return []
        self._queue.extend(Send(dest, block, None) for dest in self._others)
        return [Sum(block, self._plan.roles), *self._have(block)]

    def _have(self, block: int) -> list[Instruction]:
        """A block of the gradient is here."""
        self._absent.remove(block)
        return [] if self._absent else [Finish()]
