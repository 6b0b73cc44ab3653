"""What maps have one rank send and sum: what its `Exchange` knows of an iteration. Pure: no clock, no MPI, no arrays.

A contributor sends each block of its accumulators to the owner of the block. The owner sums a block (decodes it, with
several parts) and sends the block of the gradient, `parts` times as long, to all other receivers. The rules:

1. At most WINDOW sends of an attempt are under way: many senders to one receiver at once are what costs.
2. Sends are staggered: each rank begins with the rank after itself, so that at any time all ranks receive from
   different ones. The first blocks of all slices go first, then the second blocks, and so on.
3. Blocks of accumulators go before blocks of the gradient, since other ranks wait for the former to sum.
4. An owner sums a block when the blocks of all contributors are there, in the order of contributors. So the gradient
   does not depend on the order of arrival, and no block is summed twice.
5. A destination that takes long is *held*: sends to it do not count in the window, and there is one at a time.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from psgc.aggregation.map import Contributor, Routes
from psgc.aggregation.protocol import Arrived, BlockKey, Forget, Have, Instruction, Phase, Place, SendBlock

WINDOW = 2  # sends under way: while one is on the link the next is ready


class Attempt:
    """slice_of: by block the number of its slice in the map of attempt 0; owners: by that number;
    missing: by own block the contributors whose blocks are not here: none is left when the block is summed;
    absent: blocks of the gradient that are awaited; left: by slice how many have not come;
    under_way: sends that have begun.
    """

    def __init__(self, routes: Routes, rank: int, numbers: dict[int, int], held: Collection[int]) -> None:
        self.routes = routes
        slices, blocks = routes.map.slices, range(len(routes.blocks))
        self.slice_of = [numbers[slices[place].start] for place in routes.slice_of]
        self.owners = {numbers[part.start]: part.owner for part in slices}
        others = {one for one in routes.map.contributors if one.rank != rank}
        self.missing = {block: {*others} for block in blocks if routes.blocks[block].owner == rank}
        self.absent = set(blocks)
        self.left = Counter(self.slice_of)
        self._others = routes.others(rank)
        self._queue = deque(
            SendBlock(routes.blocks[block].owner, self.key(block, own)) for block, own in routes.coded_sends(rank)
        )
        self.under_way: list[SendBlock] = []
        self._waiting: dict[int, deque[SendBlock]] = {dest: deque() for dest in held}  # sends to those that are held
        self._may_be_late = False  # whether blocks of the gradient may come that are not awaited

    def key(self, block: int, contributor: Contributor | None = None) -> BlockKey:
        """By which others know this block."""
        return BlockKey(self.routes.map.iteration, self.routes.map.attempt, block, contributor)

    @property
    def is_done(self) -> bool:
        """Whether nothing is awaited, nor left to be sent."""
        return not (self.absent or self._queue or self.under_way or any(self._waiting.values()))

    def is_possible(self, event: Arrived, parts: int) -> bool:
        """Whether a correct rank sends this block."""
        blocks, number, contributor = self.routes.blocks, event.key.number, event.key.contributor
        if not 0 <= number < len(blocks):
            return False
        owner, start, stop = blocks[number]
        if event.length not in (None, (stop - start) * (parts if contributor is None else 1)):
            return False
        if contributor is None:
            return owner == event.source and number not in self.missing and (number in self.absent or self._may_be_late)
        return contributor.rank == event.source and contributor in self.missing.get(number, ())

    def pass_on(self, block: int) -> None:
        """A block of the gradient is summed here: the others are to get it."""
        self.absent.remove(block)
        self._queue.extend(SendBlock(dest, self.key(block)) for dest in self._others)

    def due(self) -> list[SendBlock]:
        """The sends that may begin now."""
        due: list[SendBlock] = []
        busy = {send.dest for send in self.under_way}
        for dest, waiting in self._waiting.items():
            if waiting and dest not in busy:
                due.append(waiting.popleft())
        in_window = sum(send.dest not in self._waiting for send in self.under_way)
        while self._queue and in_window < WINDOW:
            send = self._queue.popleft()
            if (waiting_for := self._waiting.get(send.dest)) is None:
                in_window += 1
                due.append(send)
            elif waiting_for or send.dest in busy:
                waiting_for.append(send)
            else:
                busy.add(send.dest)
                due.append(send)
        self.under_way += due
        return due

    def hold(self, dest: int) -> None:
        """Sends to `dest` take long."""
        self._waiting.setdefault(dest, deque())

    def leave(self, rank: int) -> None:
        """Send nothing more to `rank`."""
        self._others = [other for other in self._others if other != rank]
        self._queue = deque(send for send in self._queue if send.dest != rank)
        self._waiting.pop(rank, None)

    def close(self, blocks: Collection[int]) -> None:
        """Only these blocks of the gradient count, and all of them have been summed."""
        self._may_be_late = True

        def counts(send: SendBlock) -> bool:
            return send.key.contributor is None and send.key.number in blocks

        self._queue = deque(filter(counts, self._queue))
        self._waiting = {dest: deque(filter(counts, sends)) for dest, sends in self._waiting.items()}
        self.absent &= set(blocks) - self.missing.keys()  # those of this rank that are not summed are not needed

    def quit(self) -> None:
        """This rank does not need the gradient any more. What it owes to others it still does."""
        self._may_be_late = True
        if self.absent:
            self.absent &= {block for block, missing in self.missing.items() if missing}


@dataclass
class Iteration:
    """phase: unless the exchange knows better; attempts: by their number, which is the version of what they sum.

    numbers: where a slice starts -> its number; early: blocks whose map has not come;
    kept: (attempt, slice) -> blocks that are not placed yet; versions: that count, by slice, once that is known.
    """

    phase: Phase = "awaited"
    attempts: dict[int, Attempt] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    early: list[Arrived] = field(default_factory=list)
    kept: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    versions: tuple[int, ...] | None = None

    def add(self, routes: Routes, rank: int, held: Collection[int]) -> Attempt:
        """A map has come."""
        if not self.numbers:
            self.numbers = {part.start: number for number, part in enumerate(routes.map.slices)}
        self.phase = "summing"
        self.attempts[routes.map.attempt] = attempt = Attempt(routes, rank, self.numbers, held)
        return attempt

    def got(self, key: BlockKey) -> list[Instruction]:
        """A block of the gradient is here."""
        number, version, block, _ = key
        attempt = self.attempts[version]
        which = attempt.slice_of[block]
        attempt.left[which] -= 1
        instructions: list[Instruction] = []
        if self.versions is None and version:
            self.kept.setdefault((version, which), []).append(block)
        elif self.versions is None or self.versions[which] == version:
            instructions.append(Place(key))
        if not attempt.left[which]:
            instructions.append(Have(number, version, which))
        return instructions

    def choose(self, others: Mapping[int, int]) -> list[Instruction]:
        """Version 0 of each slice counts; others: version by slice where it is another one."""
        self.phase, versions = "chosen", tuple(others.get(which, 0) for which in range(len(self.numbers)))
        self.versions = versions
        for version, attempt in self.attempts.items():
            attempt.close({block for block, which in enumerate(attempt.slice_of) if versions[which] == version})
        return self._due()

    def place_kept(self) -> list[Instruction]:
        """Of what has been kept, place what counts."""
        counts = [
            (version, which) for which, version in enumerate(self.versions or ()) if (version, which) in self.kept
        ]
        placed = [Place(self.attempts[place[0]].key(block)) for place in counts for block in self.kept[place]]
        self.kept.clear()
        return [*placed]

    def hold(self, dest: int) -> list[Instruction]:
        """Sends to `dest` take long."""
        for attempt in self.attempts.values():
            attempt.hold(dest)
        return self._due()

    def leave(self, rank: int) -> list[Instruction]:
        """Send nothing more to `rank`."""
        for attempt in self.attempts.values():
            attempt.leave(rank)
        return self._due()

    def give_up(self) -> list[Instruction]:
        """It is over, and which versions count was not said here: any may."""
        for attempt in self.attempts.values():
            attempt.close(range(len(attempt.slice_of)))
        return self._due()

    def let_go(self, number: int) -> list[Instruction]:
        """It is past: forget the attempts of which nothing is left to be sent. number: its own."""
        self.kept.clear()
        for attempt in self.attempts.values():
            attempt.quit()
        done = [version for version, attempt in self.attempts.items() if attempt.is_done]
        for version in done:
            del self.attempts[version]
        return [Forget(number, version) for version in done] if self.attempts else [Forget(number, None)]

    def _due(self) -> list[Instruction]:
        return [send for attempt in self.attempts.values() for send in attempt.due()]

    def lacks(self) -> Iterator[int]:
        """The owners of the versions that count and are not complete."""
        for number, version in enumerate(self.versions or ()):
            attempt = self.attempts[version]
            if attempt.left[number]:
                yield attempt.owners[number]
