"""Which copies of chunks count in one iteration, and which chunks are done again.

The rules are in `psgc.server.coordinator`, which also decides when the iteration ends.
"""

from collections.abc import Sequence

from psgc.errors import RunFailed, TooFewWorkers
from psgc.schedules import Schedule
from psgc.schedules.schedule import Loss, Order
from psgc.server.copies import Books, Copy
from psgc.server.instructions import Commit, Discard, Instruction, Invalidate, Reassign
from psgc.server.membership import Membership
from psgc.server.verification import Checks


class Counting:
    """The copies of one iteration. Arguments as for a `Coordinator`.

    books: the copies
    closed: whether the iteration ends with what is committed; then only invalidated chunks are done again
    """

    def __init__(
        self,
        iteration: int,
        membership: Membership,
        schedule: Schedule,
        combined: bool,
        checks: Checks,
        in_nodes: bool = False,
    ) -> None:
        self._iteration, self._membership, self._schedule = iteration, membership, schedule
        self._combined, self._checks = combined, checks
        self.books = Books(len(membership.holders), membership.parts, in_nodes)
        self._copies = self.books.chunks
        self.closed = False

    def is_sketched(self, chunk: int) -> bool:
        """Whether reports of `chunk` come with sketches of the copies, which the workers keep."""
        return self._combined and chunk in self._checks.checked

    def usable(self, chunk: int) -> tuple[Copy, ...]:
        """The copies that are there and can be committed."""
        copies, live = self._copies[chunk], self._membership.live
        if not self.is_sketched(chunk):
            return copies.there
        return tuple(copy for copy in copies.there if copy[0] in live and copy[0] in copies.reported)

    # reports

    def is_needed(self, chunk: int) -> bool:
        """Whether one more copy of `chunk` is needed."""
        copies = self._copies[chunk]
        return bool(copies.redo) or not (self.closed or copies.contributors)

    def counts_whole(self, worker: int, piece: Sequence[int]) -> bool:
        """Whether one gradient of all these chunks can count: no other copy counts, and one accumulator takes it."""
        roles = {self._membership.role(worker, chunk) for chunk in piece}
        is_plain = self._membership.parts == 1 and not self._checks.every and len(roles) == 1
        free = (self.is_needed(chunk) and self._copies[chunk].attempt == 0 for chunk in piece)
        return is_plain and all(free)

    def count(self, worker: int, chunk: int, is_told: bool = True) -> list[Instruction]:
        """Count the copy of `worker`, if it is needed. is_told: whether the worker must hear of its commit."""
        copies, parts, here = self._copies[chunk], self._membership.parts, not self._combined
        compared = self.is_sketched(chunk) or (here and self._checks.every > 0)
        if copies.redo and not compared:
            return self._redone(worker, chunk)
        if not copies.redo and (self.closed or (copies.contributors and not compared)):
            return [] if here else [Discard(worker, chunk)]
        before = tuple(copy for copy in copies.there if copy[0] != worker)  # the worker may do the chunk again
        copies.there = (*before, (worker, self._membership.role(worker, chunk)))
        if len(copies.there) > parts:
            self._checks.comparing.append(chunk)
        elif chunk not in self._checks.checked:
            self.books.missing -= 1
            if len(copies.there) == parts:
                return self._recover(chunk, copies.there, is_told)
        return []

    def _redone(self, worker: int, chunk: int) -> list[Instruction]:
        """Commit an invalidated chunk to the copy of `worker`, in one of the roles that it lacks."""
        copies = self._copies[chunk]
        again = ((worker, copies.redo[0]),)
        copies.redo = copies.redo[1:]
        if copies.redo:
            return [self.commit(chunk, again)]
        self.books.redo.remove(chunk)
        return self._recover(chunk, again)

    def _recover(self, chunk: int, from_these: tuple[Copy, ...], is_told: bool = True) -> list[Instruction]:
        commit, reported = self.commit(chunk, from_these, is_told), self._copies[chunk].reported
        unreported = [holder for holder in self._membership.holders[chunk] if holder not in reported]
        return [commit, *self._schedule.committed(chunk, unreported)]

    def commit(self, chunk: int, to_these: tuple[Copy, ...], is_told: bool = True) -> Commit:
        """Count these copies. is_told: whether their workers must hear of it; a piece is told once."""
        copies = self._copies[chunk]
        copies.commit(to_these)
        if self._combined:
            for copy in to_these:
                self.books.accumulators.add(copy, chunk, copies.attempt)
        return Commit(chunk, copies.contributors, to_these if is_told else (), self.books.accumulators.serial)

    # copies that were compared

    def compared(self, chunk: int, agreeing: tuple[int, ...], now: float) -> list[Instruction]:
        """The copies of the workers `agreeing` agree; none when no parts + 1 copies agree."""
        copies, parts = self._copies[chunk], self._membership.parts
        instructions: list[Instruction] = [*self._checks.judge(chunk, copies.there, agreeing)]
        if not agreeing:
            return self._take_back(chunk, now)
        usable = dict(self.usable(chunk))
        chosen = [worker for worker in agreeing if worker in usable][:parts]
        if copies.contributors and not copies.redo:
            chosen = []
        elif not chosen:  # the workers that agree are lost, or have dropped their copies
            instructions += self._find_one_more(chunk, now)
        elif copies.redo:
            instructions += self._redone(chosen[0], chunk)
        else:
            self.books.missing -= parts
            instructions += self._recover(chunk, tuple((worker, usable[worker]) for worker in chosen))
        if self._combined:
            surplus = usable if chosen else [copies.there[-1][0]]  # the earlier copies were discarded before
            instructions += [Discard(worker, chunk) for worker in surplus if worker not in chosen]
            copies.there = tuple(copy for copy in copies.there if copy[0] in agreeing)
        compared = [(worker, copies.attempt) for worker in agreeing if worker in copies.reported]
        copies.used += tuple(copy for copy in compared if copy not in copies.used)
        return instructions

    def _take_back(self, chunk: int, now: float) -> list[Instruction]:
        """The copies do not agree: take back the commit, and have one more worker do the chunk."""
        if not self._copies[chunk].redo:
            self.books.take_back(chunk)
        try:
            return self._find_one_more(chunk, now)
        except TooFewWorkers as error:  # other machines would not help
            raise RunFailed(str(error)) from None

    def _find_one_more(self, chunk: int, now: float) -> list[Instruction]:
        """Have one more worker do `chunk`, if need be a worker that does not hold it."""
        reassigned, attempt = self._reassign(chunk), self._copies[chunk].attempt
        invalidated = [Invalidate(reassign.worker, chunk, attempt) for reassign in reassigned if attempt]
        return [*reassigned, *invalidated, *self._ask_one_more(chunk, now)]

    def _ask_one_more(self, chunk: int, now: float) -> Sequence[Order]:
        copies, holders = self._copies[chunk], self._membership.holders[chunk]
        return self._schedule.disputed(chunk, len(copies.there), copies.able(holders), now)

    # losses

    def lost(self, worker: int, held: Sequence[int], collected: bool, now: float) -> list[Instruction]:
        """`worker` is lost, which held the chunks `held`. collected: whether the sums had begun."""
        holders = self._membership.holders
        kept = [chunk for chunk in held if self._combined and not self.is_sketched(chunk)]
        dropped, invalidated = self.books.lose(worker, kept)
        affected = dict.fromkeys([*held, *invalidated])
        reassigned = [reassign for chunk in affected for reassign in self._reassign(chunk)]
        instructions: list[Instruction] = [*reassigned]
        for chunk in affected:
            if attempt := self._copies[chunk].attempt:
                new = [reassign.worker for reassign in reassigned if reassign.chunk == chunk]
                hear = holders[chunk] if chunk in invalidated else new
                instructions += [Invalidate(holder, chunk, attempt) for holder in hear]
        redo = {chunk: self._copies[chunk] for chunk in affected if chunk in self.books.redo}
        loss = Loss(
            worker=worker,
            dropped=dropped,
            invalidated={chunk: (len(copies.redo), copies.able(holders[chunk])) for chunk, copies in redo.items()},
            reassigned=tuple((reassign.worker, reassign.chunk) for reassign in reassigned),
            holders=holders,
            collected=collected,
        )
        instructions += self._schedule.lost(loss, now)
        for chunk in sorted(self._checks.disputed.intersection(held) - self.books.redo):
            instructions += self._ask_one_more(chunk, now)
        return instructions

    def _reassign(self, chunk: int) -> list[Reassign]:
        """Reassign `chunk` until enough workers can do it."""
        copies, parts = self._copies[chunk], self._membership.parts
        if copies.contributors or self.closed:
            needed = len(copies.redo)
        else:
            needed = self._checks.wanted(chunk, parts, len(copies.there)) - len(copies.there)
        reassigned: list[Reassign] = []
        while len(copies.able(self._membership.holders[chunk])) < needed:
            try:
                worker = self._membership.reassign(chunk, copies.waiting)
            except TooFewWorkers as error:
                raise self._checks.explain(error, chunk, self._iteration, copies.there, parts) from None
            reassigned.append(Reassign(worker, chunk, self._membership.role(worker, chunk)))
        return reassigned
