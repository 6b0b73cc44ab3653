"""What the digests of an iteration lead to: more checks, wrong workers, doubts (`verify: {idle: true}`).

`psgc.server.idle` keeps the digests. The coordinator asks this class, which knows what counts in the iteration.
"""

from collections.abc import Sequence

from psgc.errors import RunFailed
from psgc.schedules import Schedule
from psgc.server.copies import Books
from psgc.server.events import WORKING, Abandoned, Digested, Event, Lost, Phase, Report
from psgc.server.idle import IdleChecks
from psgc.server.instructions import Check, Doubt, Fate, Instruction, Wrong
from psgc.server.membership import Membership


class Disputes:
    """The rules about digests, for one iteration after another.

    idle: the digests, and the checks that were ordered
    """

    def __init__(self, idle: IdleChecks) -> None:
        self._idle = idle
        self._books = self._books_before = Books(0, 1)
        self._iteration, self._is_evaluated = -1, False

    def begin(
        self,
        iteration: int,
        membership: Membership,
        schedule: Schedule,
        books: Books,
        has_gradient: bool,
        is_evaluated: bool,
    ) -> None:
        """A new iteration; arguments as for a `Coordinator`. With is_evaluated it has no checks."""
        self._iteration, self._membership, self._schedule = iteration, membership, schedule
        self._is_evaluated = is_evaluated
        self._books_before, self._books = self._books, books
        self._idle.begin(iteration, len(books.chunks) if has_gradient else 0)

    def is_possible(self, event: Digested) -> bool:
        """Whether a correct worker can send this digest."""
        is_known = event.worker in self._membership.workers and 0 <= event.iteration <= self._iteration
        return is_known and all(0 <= chunk < len(self._books.chunks) for chunk in event.piece)

    def digested(self, event: Digested, phase: Phase) -> list[Instruction]:
        """A digest arrives. Raises RunFailed when it leaves a dispute that no worker can settle."""
        idle, piece, before = self._idle, event.piece, self._iteration - event.iteration
        errors = idle.told(event.worker, event.iteration, piece, event.digest, event.is_check)
        if errors is None:
            return []
        is_open = phase == WORKING and not before
        instructions: list[Instruction] = []
        if (digests := idle.of(event.iteration, piece)).is_disputed and not digests.awaited:
            if is_open:
                instructions += self._repeat(piece)
            else:
                books = self._books_before if before else self._books
                counts = any(_counts(worker, piece, books) for worker in digests.workers)
                instructions.append(Doubt(event.chunk, tuple(sorted(digests.workers)), before, counts))
                errors += idle.doubt(event.iteration, piece)
        for worker, others, is_reported in errors:
            counts = is_reported and _counts(worker, piece, self._books_before if before else self._books)
            is_out = is_open and is_reported and worker in self._membership.live
            fate: Fate = "taken out" if is_out else "late" if counts else "unused"
            instructions.append(Wrong(worker, event.chunk, others, fate, before))
        return instructions

    def lost(self, worker: int) -> list[Instruction]:
        """Another worker repeats the disputed passes that the lost `worker` was to repeat."""
        return [check for piece in self._idle.lost(worker) for check in self._repeat(piece)]

    def hold_up(self) -> bool:
        """Whether a copy that counts is disputed. Then the iteration must not end."""
        disputed = self._idle.disputed
        return any(
            _counts(worker, piece, self._books) for piece, digests in disputed.items() for worker in digests.workers
        )

    def after(self, event: Event, instructions: list[Instruction], phase: Phase) -> list[Check]:
        """The checks to order after this event and its instructions.

        phase: after the event; the iteration was *working* before the event
        """
        if phase != WORKING:
            if isinstance(event, Report | Digested | Lost):
                self._idle.ended(event.now)
            return []
        if isinstance(event, Digested) and not event.is_check:  # the report comes next
            return []
        if not isinstance(event, Report | Abandoned | Digested) or takes_out(instructions):
            return []
        self._idle.done(event.worker, event.piece, event.seconds)
        if self._is_evaluated:
            return []

        def free_until(worker: int) -> float:
            return self._schedule.free_until(worker, lambda chunk: self._is_over(worker, chunk))

        def may(worker: int, owner: int, piece: Sequence[int]) -> bool:
            return self._may_do(worker, piece) and _counts(owner, piece, self._books)

        return [Check(worker, piece) for worker, piece in self._idle.orders(event.now, free_until, may)]

    def _repeat(self, piece: tuple[int, ...]) -> list[Check]:
        """Have one more worker do a disputed pass. Raises RunFailed when no worker is left to do it."""
        idle, live = self._idle, self._membership.live
        able = [worker for worker in live if self._may_do(worker, piece)]
        if (worker := idle.one_more(piece, able)) is not None:
            return [Check(worker, piece, at_once=True)]
        if not idle.is_settled(piece, live):
            workers = ", ".join(map(str, sorted(idle.disputed[piece].workers)))
            raise RunFailed(
                f"chunk {piece[0]}, iteration {self._iteration}: workers {workers} have done it, no 2 copies have the "
                "same bits, and nobody is left to ask: the gradient is not deterministic, or too many are wrong"
            )
        return []

    def _may_do(self, worker: int, piece: Sequence[int]) -> bool:
        return self._membership.reassigning or all(worker in self._membership.holders[chunk] for chunk in piece)

    def _is_over(self, worker: int, chunk: int) -> bool:
        """Whether `worker` has nothing left to do for `chunk`."""
        copies = self._books.chunks[chunk]
        return worker in copies.reported or bool(copies.contributors and not copies.redo)


def takes_out(instructions: Sequence[Instruction]) -> bool:
    """Whether one of these instructions makes a worker lost for the rest of the iteration."""
    return any(isinstance(one, Wrong) and one.fate == "taken out" for one in instructions)


def _counts(worker: int, piece: Sequence[int], books: Books) -> bool:
    """Whether the gradient has a copy of `worker` of one of these chunks."""
    return any(who == worker for chunk in piece for who, _ in books.chunks[chunk].used)
