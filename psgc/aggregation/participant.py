"""One rank's part in the coded all-reduce over the iterations of a run, as a pure state machine.

No clock, no MPI, no arrays. Events go in, instructions come out; `psgc.aggregation.blocks` carries them out. The rules:

1. A rank makes step t when it has the closed version of every slice of iteration t. It makes the steps in order.
2. A *version* of a slice is the attempt in which it was summed. Of attempt 0 blocks go into the gradient as they come;
   of later attempts they are kept until `Chosen` (on rank 0) or `Closed` says which version counts.
3. Blocks may come before their map. They are kept. Those of iterations whose step is made are dropped. Those that no
   correct rank sends are refused, and change nothing.
4. A rank that a map leaves out is *behind*: it does not follow that iteration and those before, and says so. `Loaded`
   ends that: the replica has the state of another rank. What it has to sum for others it sums all the same. So does
   a rank whose replica is wrong (`Dropped`).
5. A rank that has left is sent nothing. A rank that lacks a closed slice whose owner has left is behind as well.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from psgc.aggregation import exchange
from psgc.aggregation.exchange import Exchange, Plan
from psgc.aggregation.map import Map
from psgc.aggregation.protocol import (
    Arrived,
    Chosen,
    Closed,
    Drop,
    Dropped,
    Event,
    FallBehind,
    Forget,
    Have,
    Held,
    Instruction,
    Left,
    Loaded,
    Mapped,
    Place,
    Refuse,
    SendBlock,
    Sent,
    Step,
    Stepped,
    SumBlock,
)
from psgc.aggregation.slices import Block
from psgc.errors import ProtocolError


@dataclass
class _Attempt:
    """What is known of one attempt. left: how many blocks of the gradient of each slice are not here."""

    plan: Plan
    exchange: Exchange
    slice_of: dict[int, int]  # block -> number of its slice
    owners: dict[int, int]  # number of the slice -> owner
    left: Counter[int]


@dataclass
class _Iteration:
    attempts: dict[int, _Attempt] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)  # where a slice starts -> its number
    early: list[Arrived] = field(default_factory=list)  # blocks whose map has not come
    kept: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # (attempt, slice) -> blocks not placed yet
    versions: tuple[int, ...] | None = None  # that count
    is_closed: bool = False

    def lacks(self) -> Iterator[int]:
        """The owners of the closed versions that are not complete."""
        for number, version in enumerate(self.versions or ()):
            attempt = self.attempts[version]
            if attempt.left[number]:
                yield attempt.owners[number]


class Participant:
    """parts: of the gradient, so that a block of it is so many times as long as one of an accumulator.

    steps: how many steps the replica has made: the iteration that is next or under way; -1 before `Loaded`.

    An iteration is *past* when its step is made or will not be made. It is forgotten when nothing is left to be sent.
    """

    def __init__(self, rank: int, parts: int = 1) -> None:
        self._rank, self._parts = rank, parts
        self.steps = -1
        self._iterations: dict[int, _Iteration] = {}
        self._held: set[int] = set()
        self._left: set[int] = set()
        self._stepping = False
        self.is_behind = False
        self._is_wrong = False  # the replica, which is not gone on from
        self._dropped = -1  # this iteration and those before are not followed

    def block(self, iteration: int, attempt: int, number: int) -> Block:
        """What a block is a part of."""
        return self._iterations[iteration].attempts[attempt].plan.blocks[number]

    @property
    def is_busy(self) -> bool:
        """Whether blocks are awaited, or left to be sent."""
        return any(iteration.attempts for iteration in self._iterations.values())

    def awaited(self, iteration: int) -> set[int]:
        """The ranks whose accumulators this one lacks for the slices that it owns."""
        known = self._iterations.get(iteration)
        attempts = known.attempts.values() if known else ()
        return {rank for attempt in attempts for rank in attempt.exchange.awaited}

    def is_at(self, iteration: int) -> bool:
        """Whether the replica is where gradients of `iteration` can be computed, whoever gets their sum."""
        return self.steps == iteration and not self._is_wrong

    def can_use(self, iteration: int) -> bool:
        """Whether this rank gets on with the state of another one at the beginning of `iteration`."""
        return iteration > self.steps - self._is_wrong and iteration >= self._dropped

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done after `event`, in order.

        Raises ProtocolError for the end of a send that is not under way.
        """
        match event:
            case Mapped(map, most):
                return self._mapped(map, most)
            case Arrived():
                return self._arrived(event)
            case Sent(iteration, attempt, send):
                return self._bring(iteration, attempt, exchange.Sent(send)) + self._clear()
            case Held(dest, is_held):
                return self._hold(dest, is_held)
            case Chosen(iteration, others):
                return self._choose(iteration, others)
            case Closed(iteration, others):
                return self._closed(iteration, others)
            case Left(rank):
                return self._leave(rank)
            case Stepped():
                self._stepping = False
                self.steps += 1
                return self._quit() + self._step_if_complete()
            case Loaded(iteration):
                return self._loaded(iteration)
            case Dropped():
                self._is_wrong, missed = True, self.steps + self._stepping - 1
                return self._fall_behind(missed, missed)

    # maps

    def _mapped(self, map: Map, most: int) -> list[Instruction]:
        self._left -= set(map.receivers)
        if self._is_past(map.iteration):
            return []
        missed = self._give_up_before(map.iteration)
        is_there = self.steps + self._stepping == map.iteration and not self._is_wrong  # or about to be
        if self._rank not in map.receivers:  # if its replica is there it may still be asked to redo what is lost
            return missed + self._fall_behind(map.iteration, map.iteration - is_there)
        self.is_behind = self.is_behind and not is_there
        iteration = self._iterations.setdefault(map.iteration, _Iteration())
        if not iteration.numbers:
            iteration.numbers = {part.start: number for number, part in enumerate(map.slices)}
        plan = Plan(map.receivers, map.contributors, map.slices, most)
        owners = {iteration.numbers[part.start]: part.owner for part in map.slices}
        slice_of: dict[int, int] = {}
        number = -1
        for block, (_, start, _) in enumerate(plan.blocks):
            number = iteration.numbers.get(start, number)  # its slice begins here, or before
            slice_of[block] = number
        made = Exchange(plan, self._rank, self._held & set(plan.receivers))
        iteration.attempts[map.attempt] = _Attempt(plan, made, slice_of, owners, Counter(slice_of.values()))
        instructions = missed + self._bring(map.iteration, map.attempt, exchange.Begin())
        early, iteration.early = iteration.early, []
        for event in early:
            instructions += self._arrived(event)
        return instructions

    # blocks

    def _arrived(self, event: Arrived) -> list[Instruction]:
        number, attempt, is_gradient = event.iteration, event.attempt, event.contributor is None
        known = self._iterations.get(number)
        is_mapped = known is not None and attempt in known.attempts
        if self._is_past(number) and (is_gradient or not is_mapped):
            return [Drop()]
        if not is_mapped:
            self._iterations.setdefault(number, _Iteration()).early.append(event)
            return []
        if not self._has_its_length(event):
            return [Refuse(event)]
        try:
            instructions = self._bring(number, attempt, exchange.Arrived(event.source, event.block, event.contributor))
        except ProtocolError:
            return [Refuse(event)]
        return instructions + self._got(number, attempt, event.block) if is_gradient else instructions

    def _has_its_length(self, event: Arrived) -> bool:
        blocks = self._iterations[event.iteration].attempts[event.attempt].plan.blocks
        if event.length is None or not 0 <= event.block < len(blocks):
            return True
        _, start, stop = blocks[event.block]
        return event.length == (stop - start) * (self._parts if event.contributor is None else 1)

    def _is_past(self, number: int) -> bool:
        return number < self.steps or number <= self._dropped

    def _bring(self, number: int, attempt: int, event: exchange.Event) -> list[Instruction]:
        known = self._iterations.get(number)
        if known is None or attempt not in known.attempts:
            return []
        instructions: list[Instruction] = []
        for instruction in known.attempts[attempt].exchange.handle(event):
            match instruction:
                case exchange.Send():
                    instructions.append(SendBlock(number, attempt, instruction))
                case exchange.Sum(block, contributors):
                    instructions.append(SumBlock(number, attempt, block, contributors))
                    instructions += self._got(number, attempt, block)
        return instructions

    def _got(self, number: int, version: int, block: int) -> list[Instruction]:
        """A block of the gradient is here."""
        if self._is_past(number):
            return []
        iteration = self._iterations[number]
        attempt = iteration.attempts[version]
        which = attempt.slice_of[block]
        attempt.left[which] -= 1
        instructions: list[Instruction] = []
        if iteration.versions is None and version:
            iteration.kept.setdefault((version, which), []).append(block)
        elif iteration.versions is None or iteration.versions[which] == version:
            instructions.append(Place(number, version, block))
        if not attempt.left[which]:
            instructions.append(Have(number, version, which))
        return instructions + self._step_if_complete()

    # the end of an iteration

    def _closed(self, number: int, others: dict[int, int]) -> list[Instruction]:
        iteration = self._iterations.get(number)
        if iteration is None or not iteration.attempts or self._is_past(number):
            return []
        instructions = self._choose(number, others) if iteration.versions is None else []
        iteration.is_closed = True
        return instructions + self._step_if_complete()

    def _choose(self, number: int, others: dict[int, int]) -> list[Instruction]:
        iteration = self._iterations[number]
        versions = tuple(others.get(which, 0) for which in range(len(iteration.numbers)))
        iteration.versions = versions
        instructions: list[Instruction] = []
        for version, attempt in iteration.attempts.items():
            count = frozenset(block for block, which in attempt.slice_of.items() if versions[which] == version)
            instructions += self._bring(number, version, exchange.Closed(count))
        if self._left.intersection(iteration.lacks()):
            return instructions + self._fall_behind(number, number)
        for which, version in enumerate(versions):
            instructions += [Place(number, version, block) for block in iteration.kept.pop((version, which), ())]
        iteration.kept.clear()
        return instructions

    def _step_if_complete(self) -> list[Instruction]:
        iteration = self._iterations.get(self.steps)
        if (
            self._stepping
            or self.is_behind
            or iteration is None
            or not iteration.is_closed
            or any(True for _ in iteration.lacks())
        ):
            return []
        self._stepping = True
        return [Step(self.steps)]

    def _clear(self) -> list[Instruction]:
        """Forget the exchanges of past iterations of which nothing is left to be sent."""
        instructions: list[Instruction] = []
        for number in [number for number in self._iterations if self._is_past(number)]:
            attempts = self._iterations[number].attempts
            done = [version for version, attempt in attempts.items() if attempt.exchange.is_done]
            for version in done:
                del attempts[version]
            if not attempts:
                del self._iterations[number]
            instructions += [Forget(number, version) for version in done] if attempts else [Forget(number, None)]
        return instructions

    # ranks that are slow, lost or behind

    def _hold(self, dest: int, is_held: bool) -> list[Instruction]:
        if not is_held:
            self._held.discard(dest)
            return []
        if dest in self._held:
            return []
        self._held.add(dest)
        return self._everywhere(exchange.Held(dest))

    def _leave(self, rank: int) -> list[Instruction]:
        self._left.add(rank)
        instructions = self._everywhere(exchange.Left(rank))
        for number, iteration in [*self._iterations.items()]:
            if not self._is_past(number) and rank in iteration.lacks():
                return instructions + self._fall_behind(number, number)
        return instructions

    def _everywhere(self, event: exchange.Event) -> list[Instruction]:
        instructions: list[Instruction] = []
        for number, iteration in [*self._iterations.items()]:
            for version in [*iteration.attempts]:
                instructions += self._bring(number, version, event)
        return instructions + self._clear()

    def _fall_behind(self, number: int, dropped: int) -> list[Instruction]:
        self.is_behind = True
        self._dropped = max(self._dropped, dropped)
        return [*self._quit(), FallBehind(number)]

    def _quit(self) -> list[Instruction]:
        """Wait for nothing more of past iterations."""
        instructions: list[Instruction] = []
        for number in [number for number in self._iterations if self._is_past(number)]:
            self._iterations[number].kept.clear()
            for version in [*self._iterations[number].attempts]:
                instructions += self._bring(number, version, exchange.Quit())
        return instructions + self._clear()

    def _give_up_before(self, number: int) -> list[Instruction]:
        """All iterations before this one are closed. One whose end was not said here is not followed.

        That is so when this rank was lost meanwhile, and when a state comes before the end of the iteration before.
        """
        instructions: list[Instruction] = []
        for past, iteration in self._iterations.items():
            if past < number and iteration.versions is None:
                self._dropped = max(self._dropped, past)
                self.is_behind = self.is_behind or past >= self.steps
                for version, attempt in iteration.attempts.items():
                    instructions += self._bring(past, version, exchange.Closed(frozenset(attempt.slice_of)))
        return instructions + self._quit()

    def _loaded(self, number: int) -> list[Instruction]:
        self.is_behind = number == self._dropped  # it may redo what is lost, but its sum does not come here
        self._stepping, self._is_wrong = False, False
        self.steps, self._dropped = number, number - 1
        return self._give_up_before(number) + self._step_if_complete()
