"""One rank's part in the exchanges of a run, as a pure state machine: no clock, no MPI, no arrays.

Events go in, instructions come out, and the caller carries them out in order. A table in `psgc.aggregation.protocol`
says which event is allowed when. `psgc.aggregation.blocks` carries instructions out on arrays, `psgc simulate` on a
virtual network. `psgc.aggregation.attempts` decides how blocks travel within one attempt. The rules of this file:

1. A rank makes step t when it has the closed version of every slice of iteration t. It makes the steps in order.
2. A *version* of a slice is the attempt in which it was summed. Blocks of attempt 0 go into the gradient as they come.
   Blocks of later attempts are kept until `Chosen` (on rank 0) or `Closed` says which version counts. What counts has
   been summed, so no more accumulators are sent or awaited after that, and no other blocks of the gradient.
3. Blocks that come before their map are kept. Blocks of iterations whose step is made are dropped. A block that no
   correct rank sends is refused, and changes nothing: one that comes twice, that comes to a rank that does not own it,
   or that its sender does not contribute.
4. A rank that a map leaves out is *behind*: it does not follow that iteration and earlier ones, and tells rank 0 so.
   `Loaded` ends that: the replica has got the state of another rank. A rank that is behind still sums its slices for
   others. The same holds for a rank whose replica is wrong (`Dropped`). A rank that has loaded a later state before a
   map comes tells the ranks of its host for which it was the carrier: they are behind too.
5. A lost rank is sent nothing. A rank that lacks a closed slice of a lost owner is behind too.
"""

from collections import deque
from collections.abc import Collection

from psgc.aggregation.attempts import Attempt, Iteration
from psgc.aggregation.map import Map, Routes
from psgc.aggregation.protocol import (
    TRANSITIONS,
    WHOLE,
    Arrived,
    BlockKey,
    Chosen,
    Closed,
    Drop,
    Dropped,
    Evaluated,
    Event,
    FallBehind,
    Instruction,
    Loaded,
    Mapped,
    Missed,
    Phase,
    Publish,
    RankLeft,
    Refuse,
    Relay,
    SendBlock,
    Sent,
    SlowSends,
    Step,
    Stepped,
    SumBlock,
)
from psgc.aggregation.slices import Block
from psgc.aggregation.step_position import StepPosition
from psgc.errors import ProtocolError

EVENTS_KEPT = 20  # for the traceback of a ProtocolError


class Exchange:
    """One rank's part in the exchanges.

    parts: of the gradient; a block of it is so many times as long as a block of an accumulator
    position: where the replica is, and which iterations it follows

    An iteration is forgotten when it is past and nothing is left to send.
    """

    def __init__(self, rank: int, parts: int = 1) -> None:
        self._rank, self._parts = rank, parts
        self.position = StepPosition()
        self._iterations: dict[int, Iteration] = {}
        self._routes: Routes | None = None  # of the newest map
        self._held: set[int] = set()
        self._left: set[int] = set()
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)

    # questions

    def block(self, key: BlockKey) -> Block:
        """The block of the coded vector."""
        return self.routes(key).blocks[key.number]

    def routes(self, key: BlockKey) -> Routes:
        """The routes of a block."""
        return self._iterations[key.iteration].attempts[key.attempt].routes

    @property
    def is_busy(self) -> bool:
        """Whether blocks are still to be received or sent."""
        return any(iteration.attempts for iteration in self._iterations.values())

    def awaited(self, iteration: int) -> set[int]:
        """The ranks whose accumulators this rank lacks for its own slices."""
        known = self._iterations.get(iteration)
        attempts = known.attempts.values() if known else ()
        return {
            one.rank
            for attempt in attempts
            for missing in (*attempt.missing.values(), attempt.unpublished if attempt.missing else ())
            for one in missing
        }

    @property
    def left(self) -> Collection[int]:
        """The ranks known to be lost."""
        return self._left

    def phase(self, iteration: int) -> Phase:
        """The phase of an iteration on this rank, see `protocol`."""
        if self.position.is_past(iteration):
            return "past"
        if self.position.is_stepping(iteration):
            return "stepping"
        known = self._iterations.get(iteration)
        return known.phase if known else "awaited"

    # events

    def handle(self, event: Event) -> list[Instruction]:
        """The instructions that follow from `event`. Raises ProtocolError, and changes nothing, when it is illegal."""
        number, is_possible = self._concerns(event)
        may_follow = None if number is None else TRANSITIONS[type(event)].get(self.phase(number))
        if number is not None and (may_follow is None or not is_possible):
            text = f"exchange: {event} is not allowed at rank {self._rank}, iteration {number} is {self.phase(number)}"
            raise ProtocolError(text, self._events)
        self._events.append(event)
        if may_follow == ():
            return []
        instructions = self._react(event)
        assert may_follow is None or number is None or self.phase(number) in may_follow, event
        return instructions

    def _concerns(self, event: Event) -> tuple[int | None, bool]:
        """The iteration that an event belongs to, None for no iteration, and whether the event is possible there."""
        match event:
            case Mapped(map):
                return map.iteration, True
            case Arrived(_, key):
                return key.iteration, True
            case Sent(SendBlock(_, key) as send):
                attempt = self._attempt(key)
                return key.iteration, attempt is not None and send in attempt.under_way
            case Chosen(iteration) | Closed(iteration) | Evaluated(iteration) | Missed(iteration):
                return iteration, True
            case Stepped():
                return self.position.steps, self.position.is_stepping(self.position.steps)
        return None, True

    def _attempt(self, key: BlockKey) -> Attempt | None:
        known = self._iterations.get(key.iteration)
        return known.attempts.get(key.attempt) if known else None

    def _react(self, event: Event) -> list[Instruction]:
        match event:
            case Mapped(map, most):
                return self._mapped(map, most)
            case Arrived():
                return self._arrived(event)
            case Sent(send):
                attempt = self._iterations[send.key.iteration].attempts[send.key.attempt]
                attempt.under_way.remove(send)
                return [*attempt.due(), *self._let_go()]
            case SlowSends(dest, False):
                self._held.discard(dest)
                return []
            case SlowSends(dest):
                is_known = dest in self._held
                self._held.add(dest)
                return [] if is_known else [due for it in self._iterations.values() for due in it.hold(dest)]
            case Chosen(number, others):
                return self._choose(number, others)
            case Closed(number, others) if self.phase(number) == "past":
                known = self._iterations.get(number)
                return [*known.choose(others), *self._let_go()] if known and known.numbers else []
            case Closed(number, others):
                iteration = self._iterations[number]
                instructions = [] if iteration.phase == "chosen" else self._choose(number, others)
                iteration.phase = "closed"
            case Evaluated(number):
                instructions = self._give_up_before(number, is_told=True)
                self._iterations[number] = Iteration("closed", versions=())
                self.position.follow(number)
            case RankLeft(rank):
                self._left.add(rank)
                instructions = [due for it in self._iterations.values() for due in it.leave(rank)] + self._let_go()
                for number, iteration in self._iterations.items():
                    if self.phase(number) != "past" and rank in iteration.lacks():
                        return instructions + self._fall_behind(number)
            case Stepped():
                self.position.stepped()
                instructions = self._let_go()
            case Loaded(number):
                self.position.loaded(number)
                instructions = self._give_up_before(number)
            case Missed(number):
                self.position.missed(number)
                return [*self._let_go(), FallBehind(number)]
            case Dropped():
                last = self.position.drop()
                return [*self._let_go(), FallBehind(last)]
        return instructions + self._step_if_complete()

    # maps

    def _skip(self, map: Map, most: int) -> list[Instruction]:
        """The map of a past iteration: ranks of the host may wait for this rank as their carrier."""
        if self._rank not in map.receivers:
            return []
        routes = Routes(map, most)
        if not any(routes.relays(block, self._rank) for block in range(len(routes.blocks))):
            return []
        attempt = self._iterations.setdefault(map.iteration, Iteration()).add(routes, self._rank, ())
        attempt.skip()
        return [*attempt.due(), *self._let_go()]

    def _mapped(self, map: Map, most: int) -> list[Instruction]:
        if self.phase(map.iteration) == "past":
            return self._skip(map, most)
        self._left -= set(map.receivers)
        instructions = self._give_up_before(map.iteration, is_told=True)
        if self._rank not in map.receivers:
            return instructions + self._fall_behind(map.iteration, self.position.comes_to(map.iteration))
        self.position.follow(map.iteration)
        iteration = self._iterations.setdefault(map.iteration, Iteration())
        self._routes = self._routes.of(map, most) if self._routes else Routes(map, most)
        attempt = iteration.add(self._routes, self._rank, self._held.intersection(map.receivers))
        if attempt.of_host and (own := attempt.routes.own(self._rank)):
            instructions.append(Publish(map.iteration, tuple(sorted(own, key=lambda one: attempt.routes.slots[one]))))
        instructions += [*attempt.due(), *self._sum_complete(attempt)]
        early, iteration.early = iteration.early, []
        for event in early:
            instructions += self._arrived(event)
        return instructions

    # blocks

    def _arrived(self, event: Arrived) -> list[Instruction]:
        number, _, block, contributor = event.key
        attempt, is_past = self._attempt(event.key), self.phase(number) == "past"
        if is_past and (attempt is None or attempt.is_skipped or not (contributor or block in attempt.relayed)):
            return [Drop(event.key)]
        if attempt is None:
            self._iterations.setdefault(number, Iteration()).early.append(event)
            return []
        if not attempt.is_possible(event, self._parts):
            return [Refuse(event)]
        if contributor is None and block == WHOLE:
            return self._fall_behind(number) if self._rank and attempt.awaits(event.source) else []
        if contributor is None:
            attempt.absent.discard(block)
            return [
                *self._relay(attempt, block),
                *([Drop(event.key), *self._let_go()] if is_past else self._got(event.key)),
            ]
        if block == WHOLE:
            return [*self._sum_complete(attempt), *attempt.due()] if attempt.publish(contributor) else []
        attempt.missing[block].remove(contributor)
        return [*self._sum(attempt, block), *attempt.due()] if attempt.is_summed(block) else []

    def _relay(self, attempt: Attempt, block: int) -> list[Instruction]:
        """A block of the gradient has come: pass it on to the host if it is for the host."""
        if block not in attempt.relayed or not attempt.relay(block):
            return []
        return [Relay(attempt.key(block)), *attempt.due()]

    def _sum_complete(self, attempt: Attempt) -> list[Instruction]:
        """Sum the own blocks that are complete, after accumulators of the host could be read."""
        instructions: list[Instruction] = []
        for block in filter(attempt.is_summed, attempt.missing):
            instructions += [*self._sum(attempt, block), *attempt.due()]
        return instructions

    def _sum(self, attempt: Attempt, block: int) -> list[Instruction]:
        """An own block is complete."""
        if block not in attempt.absent:  # this version does not count
            return []
        attempt.pass_on(block)
        key = attempt.key(block)
        return [SumBlock(key, attempt.routes.terms(block)), *self._got(key)]

    def _got(self, key: BlockKey) -> list[Instruction]:
        """A block of the gradient is here."""
        if self.phase(key.iteration) == "past":
            return []
        return self._iterations[key.iteration].got(key) + self._step_if_complete()

    # the end of an iteration

    def _choose(self, number: int, others: dict[int, int]) -> list[Instruction]:
        iteration = self._iterations[number]
        instructions = iteration.choose(others)
        if self._left.intersection(iteration.lacks()):
            return instructions + self._fall_behind(number)
        return instructions + iteration.place_kept()

    def _step_if_complete(self) -> list[Instruction]:
        steps = self.position.steps
        is_closed = not self.position.is_behind and self.phase(steps) == "closed"
        if not is_closed or any(True for _ in self._iterations[steps].lacks()):
            return []
        self.position.begin_step()
        return [Step(steps)]

    def _let_go(self) -> list[Instruction]:
        """Wait for nothing more of past iterations, and forget those with nothing left to send."""
        instructions: list[Instruction] = []
        for number in [number for number in self._iterations if self.phase(number) == "past"]:
            instructions += self._iterations[number].let_go(number)
            if not self._iterations[number].attempts:
                del self._iterations[number]
        return instructions

    # ranks that are slow, lost or behind

    def _fall_behind(self, number: int, may_redo: bool = False) -> list[Instruction]:
        self.position.fall_behind(number, may_redo)
        return [*self._let_go(), FallBehind(number)]

    def _give_up_before(self, number: int, is_told: bool = False) -> list[Instruction]:
        """Stop following the iterations before `number` whose CLOSE has not come here; all of them are closed.

        That happens after rank 0 took this rank for lost, or when a state arrives before CLOSE.
        is_told: whether rank 0 has gone on to `number`; then no earlier CLOSE will come, and this rank passes nothing
        more on to its host.
        """
        instructions: list[Instruction] = []
        for past, iteration in self._iterations.items():
            if past < number and iteration.versions is None:
                self.position.ended_unheard(past)
                instructions += iteration.give_up(is_told)
            if is_told and past < number - 1 and self.phase(past) == "past":  # the sums of its host are overwritten
                instructions += iteration.stop_relaying()
        return instructions + self._let_go()
