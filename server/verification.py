"""The coordinator of a run whose gradients are checked (`verify`): copies have to agree before they count.

Besides the rules of `psgc.server.coordinator`:

1. A chunk that is *checked* in this iteration (`psgc.checks`) is committed once the copies of parts + 1 workers agree,
   to the first `parts` of these. Its coded gradients come with the reports, also with `combined` transfer.
2. As soon as more than `parts` copies of a chunk are with the server, they are compared: also surplus ones that come
   by themselves (`per_chunk`), and those that come after the commit.
3. When no parts + 1 of them agree, the chunk is *disputed*: taken back if it was committed, and done by one more
   worker, until some do. A live worker that does not hold it takes over it when all holders have done it.
4. Whose copy does not fit to those that agree is in the wrong. Nobody is as long as the chunk is disputed.
5. When the iteration has to end as it is (approximate recovery), a checked chunk is committed to the copies that are
   there; a disputed one is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psgc.checks import is_checked
from psgc.errors import RunFailed, TooFewWorkers
from psgc.schedules import Schedule
from psgc.schedules.orders import Order
from psgc.server.coordinator import Coordinator
from psgc.server.events import Compared, Report
from psgc.server.instructions import Compare, Instruction, Reassign, Wrong
from psgc.server.membership import Membership


@dataclass(frozen=True)
class Verification:
    """every: each chunk is checked once in so many iterations; tolerance: relative difference up to which copies agree;
    strikes: wrong copies after which a worker is lost."""

    every: int
    tolerance: float
    strikes: int = 3


class VerifyingCoordinator(Coordinator):
    """The loop answers each `Compare` with `Compared` before it brings the next event.

    every: each chunk is checked once in so many iterations; the others as in `Coordinator`.
    """

    def __init__(
        self, membership: Membership, schedule: Schedule, combined: bool, tolerated: int = 0, *, every: int
    ) -> None:
        self._every = every
        super().__init__(membership, schedule, combined, tolerated)

    def _forget(self) -> None:
        super()._forget()
        self._known: dict[int, list[tuple[int, int]]] = {}  # chunk -> (worker, role) of all its copies that are here
        self._comparing: dict[int, None] = {}  # chunks whose copies are being compared
        self._disputed: set[int] = set()
        self._wrong: set[tuple[int, int]] = set()  # (worker, chunk)

    # events

    def _report(self, event: Report) -> list[Instruction]:
        instructions = super()._report(event)
        return instructions + [Compare(due, tuple(self._known[due])) for due in self._comparing]

    def _compared(self, chunk: int, agreeing: Sequence[int], now: float) -> list[Instruction]:
        if chunk not in self._comparing:
            raise self._illegal(Compared(chunk, tuple(agreeing)))
        del self._comparing[chunk]
        if not agreeing:
            return self._dispute(chunk, now)
        copies = dict(self._known[chunk])
        wrong = [worker for worker in copies if worker not in agreeing and (worker, chunk) not in self._wrong]
        self._wrong.update((worker, chunk) for worker in wrong)
        self._used.update((worker, chunk, 0) for worker in agreeing)
        instructions: list[Instruction] = [Wrong(worker, chunk, tuple(agreeing)) for worker in wrong]
        if chunk not in self._committed:
            right = [(worker, copies[worker]) for worker in agreeing[: self.membership.parts]]
            unreported = [holder for holder in self.membership.holders[chunk] if (holder, chunk) not in self._reported]
            instructions += self._commit_to(chunk, right, unreported)
        if self._is_enough():
            return instructions + self._finalize()
        return instructions + list(self._schedule.tick(now))  # who was to do it may do something else

    def _lost(self, worker: int, now: float) -> list[Instruction]:
        held = self.membership.held(worker) if worker in self.membership.live else ()
        disputed = sorted(self._disputed.intersection(held))
        instructions = super()._lost(worker, now)
        return instructions + [
            order for chunk in disputed if self.phase == "working" for order in self._ask(chunk, now)
        ]

    # what they lead to

    def _begin_schedule(self) -> Sequence[Order]:
        return self._schedule.begin([chunk for chunk in range(len(self.membership.holders)) if self._is_checked(chunk)])

    def _is_checked(self, chunk: int) -> bool:
        return is_checked(chunk, self.iteration, self._every)

    def is_here(self, chunk: int) -> bool:
        return not self._combined or self._is_checked(chunk)

    def _is_disputed(self, chunk: int) -> bool:
        return chunk in self._disputed

    def _wanted(self, chunk: int) -> int:
        if chunk in self._disputed:
            return len(self._known[chunk]) + 1
        return self.membership.parts + self._is_checked(chunk)

    def _is_enough(self) -> bool:
        if self._comparing or self._open or not (self._deadline_passed or self.missing_copies <= self._tolerated):
            return False
        return bool(self._committed) or any(copies for c, copies in self._copies.items() if c not in self._disputed)

    def _count(self, worker: int, chunk: int) -> list[Instruction]:
        if not self.is_here(chunk):
            return super()._count(worker, chunk)
        if self._finalized:
            return []
        copies = self._known.setdefault(chunk, [])
        copies.append((worker, self.membership.role(worker, chunk)))
        if len(copies) > self.membership.parts:
            self._comparing[chunk] = None
        elif not self._is_checked(chunk):
            return super()._count(worker, chunk)
        else:
            self._copies[chunk] = copies  # they are missing until they agree
        return []

    def _commit_to(
        self, chunk: int, copies: Sequence[tuple[int, int]], unreported: Sequence[int] = ()
    ) -> list[Instruction]:
        self._copies.pop(chunk, None)
        self._disputed.discard(chunk)
        self._committed[chunk] = tuple(role for _, role in copies)
        self.missing_copies -= len(copies)
        return [self._commit(chunk, tuple(copies)), *self._schedule.committed(chunk, unreported)]

    def _dispute(self, chunk: int, now: float) -> list[Instruction]:
        known = self._known[chunk]
        if chunk in self._committed:
            del self._committed[chunk]
            self._used.difference_update((worker, chunk, 0) for worker, _ in known)
            self.missing_copies += self.membership.parts
        self._copies[chunk] = known
        self._disputed.add(chunk)
        try:
            return [*self._reassign(chunk), *self._ask(chunk, now)]
        except TooFewWorkers as error:
            raise RunFailed(str(error)) from None

    def _ask(self, chunk: int, now: float) -> Sequence[Order]:
        return self._schedule.disputed(chunk, len(self._known[chunk]), self._able(chunk), now)

    def _reassign(self, chunk: int) -> list[Reassign]:
        try:
            return super()._reassign(chunk)
        except TooFewWorkers as error:
            if chunk not in self._disputed:
                raise
            workers = ", ".join(str(worker) for worker, _ in self._known[chunk])
            hint = str(error).partition("; ")[2]
            raise TooFewWorkers(
                f"chunk {chunk}, iteration {self.iteration}: workers {workers} have done it, no "
                f"{self.membership.parts + 1} copies agree, and nobody is left to ask: the gradient is not "
                f"deterministic, verify.tolerance is too small, or too many are wrong{hint and '; ' + hint}"
            ) from None

    def _finalize(self) -> list[Instruction]:
        instructions: list[Instruction] = []
        for chunk in self._disputed:
            del self._copies[chunk]
        self._disputed.clear()
        for chunk in [chunk for chunk in self._copies if self._is_checked(chunk)]:
            if len(self._copies[chunk]) == self.membership.parts:
                instructions += self._commit_to(chunk, self._copies[chunk])
            else:
                self.missing_copies -= len(self._copies[chunk])
        return instructions + super()._finalize()
