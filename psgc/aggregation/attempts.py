"""What one rank sends and sums for the maps of an iteration. Pure: no clock, no MPI, no arrays.

A contributor sends each block of its accumulators to the owner of the block. The owner sums a block (decodes it, with
several parts) and sends the block of the gradient, `parts` times as long, to all other receivers. The rules:

1. At most WINDOW blocks of an attempt are under way, or as many shorter ones as have their entries, since many senders
   to one receiver are slow.
2. Sends are staggered: each rank begins with the rank after itself, so that all ranks receive from different ranks at
   any time. The first blocks of all slices go first, then the second blocks, and so on.
3. Blocks of accumulators go before blocks of the gradient, since owners wait for accumulators to sum.
4. An owner sums a block when it has the blocks of all contributors, in the order of contributors. So the gradient does
   not depend on the order of arrival, and no block is summed twice.
5. A slow destination is *held*: sends to it do not count in the window, and there is one at a time.
6. Between ranks of a host (`psgc.aggregation.map.Routes`), notes say that a rank's accumulators can be read, and which
   blocks of the gradient. Notes are short: they go first, and do not count in the window. A rank that sums nothing gets
   notes of the gradient only, so a stopped rank has no more unread messages than without shared memory. Rank 0 gets
   notes of the gradient after the others. A carrier sums a block of its host when all accumulators of the host can be
   read and the block is next to be sent.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from psgc.aggregation.map import Contributor, Routes
from psgc.aggregation.protocol import WHOLE, Arrived, BlockKey, Forget, Have, Instruction, Phase, Place, SendBlock

WINDOW = 2  # blocks under way: one is on the link, and the next is ready


class Attempt:
    """One map, as one rank carries it out.

    slice_of: by block, the number of its slice in the map of attempt 0
    owners: by slice number
    of_host: the other ranks of the host
    unpublished: accumulators of these ranks that cannot be read yet
    missing: by own block, the contributors whose blocks are not here; the block is summed when none is left, and none
        is unpublished
    absent: the blocks of the gradient that have not come
    left: by slice, how many blocks have not come
    relayed: the absent blocks that other ranks of the host wait for too
    under_way: the sends that have begun
    """

    def __init__(self, routes: Routes, rank: int, numbers: dict[int, int], held: Collection[int]) -> None:
        self.routes, self._rank = routes, rank
        slices, blocks = routes.map.slices, range(len(routes.blocks))
        self.slice_of = [numbers[slices[place].start] for place in routes.slice_of]
        self.owners = {numbers[part.start]: part.owner for part in slices}
        self.of_host = routes.of_host(rank)
        awaited = routes.map.contributors if rank in routes.summing else ()
        self.unpublished = {one for one in awaited if one.rank in self.of_host}
        self.missing = {block: routes.awaited(block) for block in blocks if routes.blocks[block].owner == rank}
        self.absent = set(blocks)
        self.left = Counter(self.slice_of)
        self.relayed = {block for block in blocks if routes.relays(block, rank)} if self.of_host else set()
        self._gone: set[int] = set()
        self._queue: deque[SendBlock] = deque()
        self._notes = deque(
            SendBlock(other, self.key(WHOLE, own)) for own in routes.own(rank) for other in routes.readers(rank)
        )
        self.under_way: list[SendBlock] = []
        self._waiting: dict[int, deque[SendBlock]] = {dest: deque() for dest in held}  # sends to held destinations
        self._is_closed = self._may_be_late = False  # whether blocks of the gradient may come that are not absent
        self.is_skipped = False
        if not self.unpublished:
            self._send_coded()

    def key(self, block: int, contributor: Contributor | None = None) -> BlockKey:
        """The name of this block."""
        return BlockKey(self.routes.map.iteration, self.routes.map.attempt, block, contributor)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to receive or send."""
        return not (self.absent or self._notes or self._queue or self.under_way or any(self._waiting.values()))

    def is_possible(self, event: Arrived, parts: int) -> bool:
        """Whether a correct rank can send this block."""
        blocks, number, contributor = self.routes.blocks, event.key.number, event.key.contributor
        is_near = event.source in self.of_host
        if number == WHOLE:
            is_own = contributor in self.unpublished and contributor.rank == event.source if contributor else is_near
            return is_own and event.length in (None, 0)
        if not 0 <= number < len(blocks):
            return False
        _, start, stop = blocks[number]
        length = 0 if is_near else (stop - start) * (parts if contributor is None else 1)
        if event.length not in (None, length):
            return False
        if contributor is None:
            is_awaited = number not in self.missing and (number in self.absent or self._may_be_late)
            return is_awaited and self.routes.source(number, self._rank) == event.source
        return contributor.rank == event.source and contributor in self.missing.get(number, ())

    def publish(self, contributor: Contributor) -> bool:
        """An accumulator of another rank of the host can be read. Returns whether it was the last one."""
        self.unpublished.remove(contributor)
        if not (self.unpublished or self._is_closed):
            self._send_coded()
        return not self.unpublished

    def _send_coded(self) -> None:
        self._queue.extend(
            SendBlock(self.routes.blocks[block].owner, self.key(block, one))
            for block, one in self.routes.coded_sends(self._rank)
            if self.routes.blocks[block].owner not in self._gone
        )

    def is_summed(self, block: int) -> bool:
        """Whether everything is here that an own block is summed from."""
        return not (self.missing[block] or self.unpublished)

    def pass_on(self, block: int) -> None:
        """A block of the gradient is summed here: send it to the other receivers."""
        self.absent.remove(block)
        others = self.routes.others(block, self._rank)
        self._queue.extend(SendBlock(dest, self.key(block)) for dest in others if dest not in self._gone)
        self._tell_host(block)

    def relay(self, block: int) -> bool:
        """A block of the gradient goes into the memory of the host. Returns whether another rank there needs it."""
        self.relayed.remove(block)
        self._tell_host(block)
        return not self._gone.issuperset(self.of_host)

    def _tell_host(self, block: int) -> None:
        """Rank 0 last: when it has all slices the iteration ends, and a rank that lacks one waits for this rank."""
        for other in self.of_host:
            if other not in self._gone:
                (self._notes if other else self._queue).append(SendBlock(other, self.key(block)))

    def skip(self) -> None:
        """This rank has gone on without the map."""
        self.is_skipped = self._is_closed = True
        self.absent, self.missing = set(), {}
        self.unpublished.clear()
        self._queue.clear()
        self._notes.clear()
        self.stop_relaying()

    def stop_relaying(self) -> None:
        """Tell the ranks of the host not to wait for blocks that this rank should pass on and does not have."""
        if self.relayed:
            self.absent -= self.relayed
            self.relayed = set()
            self._notes.extend(SendBlock(one, self.key(WHOLE)) for one in self.of_host if one not in self._gone)

    def awaits(self, rank: int) -> bool:
        """Whether `rank` must still send or pass on a block of the gradient."""
        return any(self.routes.source(block, self._rank) == rank for block in self.absent)

    def sources(self, which: int) -> set[int]:
        """The ranks that must send or pass on the absent blocks of a slice."""
        absent = [block for block in self.absent if self.slice_of[block] == which] if self.of_host else ()
        return {self.owners[which], *(self.routes.source(block, self._rank) for block in absent)}

    def due(self) -> list[SendBlock]:
        """The sends that may begin now."""
        due: list[SendBlock] = []
        busy = {send.dest for send in self.under_way}
        for dest, waiting in self._waiting.items():
            if waiting and dest not in busy:
                busy.add(dest)
                due.append(waiting.popleft())
        room = WINDOW * self.routes.most - sum(map(self._entries_in_window, self.under_way))
        while self._notes or (self._queue and self._entries_in_window(self._queue[0]) <= room):
            send = (self._notes or self._queue).popleft()
            if (waiting_for := self._waiting.get(send.dest)) is None:
                room -= self._entries_in_window(send)
                due.append(send)
            elif waiting_for or send.dest in busy:
                waiting_for.append(send)
            else:
                busy.add(send.dest)
                due.append(send)
        self.under_way += due
        return due

    def _entries_in_window(self, send: SendBlock) -> int:
        if send.dest in self._waiting or send.dest in self.of_host:
            return 0
        _, start, stop = self.routes.blocks[send.key.number]
        return stop - start

    def hold(self, dest: int) -> None:
        """Sends to `dest` are slow."""
        self._waiting.setdefault(dest, deque())

    def leave(self, rank: int) -> None:
        """`rank` is lost: send it nothing more, and pass on nothing that it had to send."""
        self._gone.add(rank)
        self.relayed = {block for block in self.relayed if self.routes.blocks[block].owner != rank}
        self._queue = deque(send for send in self._queue if send.dest != rank)
        self._notes = deque(send for send in self._notes if send.dest != rank)
        self._waiting.pop(rank, None)

    def close(self, blocks: Collection[int]) -> None:
        """Only these blocks of the gradient count, and all of them have been summed."""
        self._is_closed = self._may_be_late = True

        def counts(send: SendBlock) -> bool:
            return send.key.contributor is None and send.key.number in blocks

        self._queue, self._notes = deque(filter(counts, self._queue)), deque(filter(counts, self._notes))
        self._waiting = {dest: deque(filter(counts, sends)) for dest, sends in self._waiting.items()}
        self.absent &= set(blocks) - self.missing.keys()  # own blocks that are not summed are not needed
        self.relayed &= self.absent

    def quit(self) -> None:
        """This rank does not need the gradient any more. It still sends what other ranks need."""
        self._may_be_late = True
        if self.absent:
            self.absent &= {block for block in self.missing if not self.is_summed(block)} | self.relayed


@dataclass
class Iteration:
    """One iteration on one rank.

    phase: see `protocol`; the exchange may know that the iteration is further
    attempts: by number; the number is the version of the slices that the attempt sums
    numbers: first entry of a slice -> its number
    early: blocks whose map has not come
    kept: (attempt, slice) -> blocks that are not placed yet
    versions: by slice the version that counts, None while that is not known
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
        """Version 0 of each slice counts, or the version that `others` has for it."""
        self.phase, versions = "chosen", tuple(others.get(which, 0) for which in range(len(self.numbers)))
        self.versions = versions
        for version, attempt in self.attempts.items():
            attempt.close({block for block, which in enumerate(attempt.slice_of) if versions[which] == version})
        return self._due()

    def place_kept(self) -> list[Instruction]:
        """Place the kept blocks that count."""
        counts = [
            (version, which) for which, version in enumerate(self.versions or ()) if (version, which) in self.kept
        ]
        placed = [Place(self.attempts[place[0]].key(block)) for place in counts for block in self.kept[place]]
        self.kept.clear()
        return [*placed]

    def hold(self, dest: int) -> list[Instruction]:
        """Sends to `dest` are slow."""
        for attempt in self.attempts.values():
            attempt.hold(dest)
        return self._due()

    def leave(self, rank: int) -> list[Instruction]:
        """`rank` is lost: send it nothing more."""
        for attempt in self.attempts.values():
            attempt.leave(rank)
        return self._due()

    def give_up(self, passes_nothing_on: bool) -> list[Instruction]:
        """The iteration is over, and this rank was not told which versions count: any may."""
        for attempt in self.attempts.values():
            attempt.close(range(len(attempt.slice_of)))
            if passes_nothing_on:
                attempt.relayed.clear()
        return self._due()

    def stop_relaying(self) -> list[Instruction]:
        """The iteration is long past: no rank must wait for blocks that have not come."""
        for attempt in self.attempts.values():
            attempt.stop_relaying()
        return self._due()

    def let_go(self, number: int) -> list[Instruction]:
        """The iteration is past: forget the attempts with nothing left to send. number: of the iteration."""
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
        """The ranks that must send or pass on what is absent of the versions that count."""
        for number, version in enumerate(self.versions or ()):
            attempt = self.attempts[version]
            if attempt.left[number]:
                yield from attempt.sources(number)
