"""The server's side of the protocol as a pure state machine: no clock, no MPI, no arrays.

`Coordinator.handle` takes an event (`psgc.server.events`) and returns the instructions that the loop carries out, in
order. The same object is driven by MPI in production and by a virtual clock in simulation.

It knows the phases, and when an iteration ends. `psgc.server.counting` says which copies count, and what is done again.
The rules of both, said once:

1. A chunk is committed once, to the first `parts` distinct holders whose copies count, at the moment the last of them
   does. Which copies have to agree before they count is for `psgc.server.verification` to say.
2. A copy that comes too late is discarded: the worker that keeps it is told, so that it can free it.
3. Events of an earlier iteration and of a lost worker change nothing; neither does a report that was heard before, nor
   one of a copy that was done before its chunk was invalidated.
4. An event that no correct worker can send (a chunk it does not hold, an iteration that has not begun) raises
   ProtocolError and changes nothing.
5. Copies that a lost worker keeps do not count. A chunk that is committed to one of them is *invalidated*: a live
   holder does it again, in the role of the lost worker, and S_i stays what it is. With `per_chunk` what was reported
   counts. Chunks with too few live workers that can still do them are reassigned.
6. Approximate recovery: once no more than `tolerated` copies are missing, or after the deadline, the iteration ends
   with the copies that are there. Chunks with some copies are committed to these, those with none are left out. It does
   not end before there is a copy, nor while an invalidated chunk is missing, without which accumulators are useless.
   Iterations that evaluate held-out rows are exact: their figures are of all rows.
7. With `combined` the accumulators are *shared out*: the ranks sum them. What is committed after that, since a worker
   was lost, goes to new accumulators, and all of them are shared out again. The gradient may be there before, from what
   was shared out last: then the iteration is over, and what is being done again is not needed.
8. The chunks of a *piece*, which its worker has done in one pass, count together, or not at all: if the copy of another
   worker counts for one of them, or one was invalidated, those that are still needed are done again.
9. Nothing survives into the next iteration but the membership. Lost workers return between two iterations
   (`rebalance`).
"""

from collections import deque
from collections.abc import Sequence
from math import inf

from psgc.errors import ProtocolError, RunFailed
from psgc.iteration import is_evaluated
from psgc.schedules import Schedule
from psgc.schedules.schedule import Order, Pass
from psgc.server.copies import Books
from psgc.server.counting import Counting
from psgc.server.events import (
    COLLECTING,
    IDLE,
    REDOING,
    TRANSITIONS,
    WORKING,
    Abandoned,
    Begin,
    Compared,
    Deadline,
    Digested,
    Event,
    Lost,
    Phase,
    Report,
    Summed,
    Tick,
)
from psgc.server.idle import IdleChecks
from psgc.server.instructions import (
    Check,
    Compare,
    Discard,
    Doubt,
    Fate,
    Finish,
    Instruction,
    Invalidate,
    Share,
    Wrong,
)
from psgc.server.membership import Membership
from psgc.server.verification import Checks

EVENTS_KEPT = 20  # for the report of a ProtocolError


class Coordinator:
    """Decides, report by report, which copies count, and knows when the gradient is there.

    membership: the live workers and what they hold, changed by losses; schedule: says who does which chunk next;
    combined: whether contributors keep their copies, and what they have added up is shared out (transfer `combined`);
    tolerated: how many of the N * l copies may be missing in the end;
    checks: which copies have to agree (`verify`), none by default;
    every: iterations from one evaluation of held-out rows to the next, 0 for none;
    in_nodes: whether nodes of the tree are shared out in place of accumulators (`reproducible`);
    idle: what is compared by digests (`verify: {idle: true}`), None for nothing.
    books: the copies of this iteration; is_combined: as `combined`, but not where the sums come with the reports.

    The caller answers each `Compare` with `Compared` before it brings the next event.
    """

    def __init__(
        self,
        membership: Membership,
        schedule: Schedule,
        combined: bool,
        tolerated: int = 0,
        checks: Checks | None = None,
        every: int = 0,
        in_nodes: bool = False,
        idle: IdleChecks | None = None,
    ) -> None:
        assert not (combined and checks and checks.every and membership.parts > 1), "sketches do not tell what fits"
        self.membership = membership
        self.phase: Phase = IDLE
        self._schedule, self._combined, self._tolerated = schedule, combined, tolerated
        self._checks, self._every, self._in_nodes = checks or Checks(), every, in_nodes
        self._idle, self.books = idle, Books(0, 1)
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._start(-1)

    def _start(self, iteration: int, has_gradient: bool = True) -> None:
        self.iteration, self.is_combined = iteration, self._combined and has_gradient
        self._may_miss: float = 0 if is_evaluated(iteration, self._every) else self._tolerated
        self._checks.begin(iteration, len(self.membership.holders))
        self._books_before = self.books if self._idle is not None else Books(0, 1)
        self._counting = Counting(
            iteration, self.membership, self._schedule, self.is_combined, self._checks, self._in_nodes
        )
        self.books = self._counting.books
        self._copies = self.books.chunks
        if self._idle is not None and iteration >= 0:
            self._idle.begin(iteration, len(self._copies) if has_gradient else 0)

    # what can be asked

    def is_sketched(self, chunk: int) -> bool:
        """Whether sketches of copies of `chunk`, which the workers keep, come with the reports."""
        return self._counting.is_sketched(chunk)

    @property
    def wake(self) -> float:
        """When the schedule wants a `Tick`, in seconds since the iteration began; infinite for never."""
        return self._schedule.wake if TRANSITIONS[Tick][self.phase] else inf

    # what happens

    def rebalance(self, membership: Membership, schedule: Schedule) -> None:
        """From the next iteration on these live, hold and are scheduled so."""
        if self.phase != IDLE:
            raise self._illegal("rebalance")
        self.membership, self._schedule = membership, schedule

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done after `event`, in order.

        Raises ProtocolError when the event is not allowed, and then changes nothing; TooFewWorkers when the workers
        that are left are too few; RunFailed when copies of a chunk do not agree and nobody is left to ask.
        """
        may_follow = TRANSITIONS[type(event)].get(self.phase)
        late = self._is_late(event)
        if may_follow is None and not late:
            raise self._illegal(event)
        self._events.append(event)
        if late or not may_follow:
            return []
        before = self.phase
        instructions = self._react(event)
        assert self.phase in may_follow, (event, self.phase)
        if self._idle is not None and before == WORKING:
            self._use_idle(self._idle, event, instructions)
        return instructions

    def _is_late(self, event: Event) -> bool:
        """Whether an event comes too late to matter. Raises ProtocolError when nobody can bring it."""
        late, possible = False, True
        if isinstance(event, Report | Abandoned):
            late = event.iteration < self.iteration or event.worker not in self.membership.live
            possible = 0 <= event.iteration <= self.iteration and event.worker in self.membership.workers
        match event:
            case Report() | Abandoned():
                possible = possible and all(0 <= chunk < len(self._copies) for chunk in event.piece)
                if possible and not late:
                    piece = [(chunk, self._copies[chunk]) for chunk in event.piece]
                    possible = all(event.worker in self.membership.holders[chunk] for chunk, _ in piece)
                    possible = possible and 0 <= event.attempt <= piece[0][1].attempt
                    late = any(event.worker in copies.reported for _, copies in piece)
            case Begin(iteration):
                possible = iteration > self.iteration
            case Lost(worker):
                possible = worker in self.membership.live
            case Compared(chunk):
                possible = chunk in self._checks.comparing
            case Digested(worker, iteration):
                late = worker not in self.membership.live
                possible = self._idle is not None and 0 <= iteration <= self.iteration
                possible = possible and worker in self.membership.workers
                possible = possible and all(0 <= chunk < len(self._copies) for chunk in event.piece)
        if not possible:
            raise self._illegal(event)
        return late

    def _illegal(self, event: Event | str) -> ProtocolError:
        text = f"coordinator: {event} is not allowed while {self.phase} in iteration {self.iteration}"
        return ProtocolError(text, self._events)

    def _react(self, event: Event) -> list[Instruction]:
        match event:
            case Report():
                return self._report(event)
            case Abandoned(others=others) if others:
                return self._do_again(event)
            case Abandoned(_, _, chunk):
                done = event.attempt == self._copies[chunk].attempt and chunk not in self._checks.disputed
                return [*self._freed(event, done)]
            case Tick(now):
                return [*self._schedule.tick(now)]
            case Summed():
                self.books.summed()
                self.phase = IDLE
                return [Finish()]
            case Begin(iteration, has_gradient):
                self._start(iteration, has_gradient)
                self.phase = WORKING
                return [*self._schedule.begin(sorted(self._checks.checked))]
            case Deadline():
                self._may_miss = inf
                return self._finalize() if self._is_enough() else []
            case Lost(worker, now):
                held = self.membership.lose(worker)
                return [] if self.phase == IDLE else self._lost(worker, held, now)
            case Compared(chunk, agreeing, now):
                instructions = self._counting.compared(chunk, agreeing, now)
                if not agreeing:
                    return instructions
                if self._is_enough():
                    return instructions + self._finalize()
                return [*instructions, *self._schedule.tick(now)]  # workers that were to do it may do something else
            case Digested():
                assert self._idle is not None
                return self._digested(self._idle, event)

    # reports and losses

    def _report(self, event: Report) -> list[Instruction]:
        if event.others:
            return self._report_piece(event)
        copies = self._copies[event.chunk]
        if event.attempt < copies.attempt:  # the worker has dropped it since
            return [*self._freed(event, done=False)]
        copies.reported += (event.worker,)
        instructions: list[Instruction] = []
        for counted in self._schedule.counts(event.worker, event.chunk):
            instructions += self._counting.count(event.worker, counted)
        if self._is_enough():
            return instructions + self._finalize()
        instructions += self._freed(event, done=True)
        return instructions + [Compare(due, self._copies[due].there) for due in self._checks.comparing]

    def _report_piece(self, event: Report) -> list[Instruction]:
        if not self._counting.counts_whole(event.worker, event.piece):
            return self._do_again(event)
        instructions: list[Instruction] = []
        for chunk in event.piece:
            self._copies[chunk].reported += (event.worker,)
            self._schedule.counts(event.worker, chunk)
        for chunk in event.piece:
            instructions += self._counting.count(event.worker, chunk, is_told=chunk == event.chunk)
        return instructions + (self._finalize() if self._is_enough() else [*self._freed(event, done=True)])

    def _do_again(self, event: Report | Abandoned) -> list[Instruction]:
        """This pass does not count: what is still needed of it is to be done again, if that was not said since."""
        worker = event.worker
        piece = [chunk for chunk in event.piece if not self._copies[chunk].attempt]
        needed = [chunk for chunk in piece if self._counting.is_needed(chunk)]
        instructions: list[Instruction] = []
        if isinstance(event, Report):  # else the worker has dropped it, and may be doing some of these again
            instructions += [Invalidate(worker, chunk, 0) for chunk in needed]
            if self.is_combined and event.chunk in piece and event.chunk not in needed:
                instructions.append(Discard(worker, event.chunk))
        return [*instructions, *self._freed(event, done=False), *self._schedule.again(worker, needed, event.now)]

    def _freed(self, event: Report | Abandoned, done: bool) -> Sequence[Order]:
        return self._schedule.freed(Pass(event.worker, event.piece, event.now, event.seconds, done, event.late))

    def _lost(self, worker: int, held: Sequence[int], now: float) -> list[Instruction]:
        collected = self.phase == COLLECTING
        instructions = self._counting.lost(worker, held, collected, now)
        if collected and self.books.redo:
            self.phase = REDOING
        if self._idle is not None:
            for piece in self._idle.lost(worker):
                instructions += self._repeat(self._idle, piece)
            if self.phase == WORKING and self._is_enough():  # only a dispute was left, in which the worker was wrong
                instructions += self._finalize()
        return instructions

    # digests

    def _digested(self, idle: IdleChecks, event: Digested) -> list[Instruction]:
        piece, before = event.piece, self.iteration - event.iteration
        errors = idle.told(event.worker, event.iteration, piece, event.digest, event.is_check)
        if errors is None:
            return []
        is_open = self.phase == WORKING and not before
        instructions: list[Instruction] = []
        if (of := idle.of(event.iteration, piece)).is_disputed and not of.awaited:
            if is_open:
                instructions += self._repeat(idle, piece)
            else:
                instructions.append(Doubt(event.chunk, tuple(sorted(of.workers)), before))
                errors += idle.doubt(event.iteration, piece)
        for worker, others, is_reported in errors:
            counts = is_reported and self._counts(worker, piece, self._books_before if before else self.books)
            is_out = is_open and is_reported and worker in self.membership.live
            fate: Fate = "taken out" if is_out else "late" if counts else "unused"
            instructions.append(Wrong(worker, event.chunk, others, fate, before))
        if self.phase == WORKING and not any(_is_taken_out(one) for one in instructions) and self._is_enough():
            instructions += self._finalize()
        return instructions

    def _counts(self, worker: int, piece: Sequence[int], books: Books) -> bool:
        return any(who == worker for chunk in piece for who, _ in books.chunks[chunk].used)

    def _repeat(self, idle: IdleChecks, piece: tuple[int, ...]) -> list[Instruction]:
        """Have one more worker do a disputed pass. Raises RunFailed when nobody is left to ask."""
        able = [worker for worker in self.membership.live if self._may_do(worker, piece)]
        if (worker := idle.one_more(piece, able)) is not None:
            return [Check(worker, piece, at_once=True)]
        if not idle.is_settled(piece, self.membership.live):
            workers = ", ".join(map(str, sorted(idle.disputed[piece].workers)))
            raise RunFailed(
                f"chunk {piece[0]}, iteration {self.iteration}: workers {workers} have done it, no 2 copies have the "
                "same bits, and nobody is left to ask: the gradient is not deterministic, or too many are wrong"
            )
        return []

    def _may_do(self, worker: int, piece: Sequence[int]) -> bool:
        return self.membership.reassigning or all(worker in self.membership.holders[chunk] for chunk in piece)

    def _is_in_the_sum(self, idle: IdleChecks, piece: tuple[int, ...]) -> bool:
        """Whether a copy counts that may be wrong."""
        return any(self._counts(worker, piece, self.books) for worker in idle.disputed[piece].workers)

    def _use_idle(self, idle: IdleChecks, event: Event, instructions: list[Instruction]) -> None:
        """Order checks after this event, if there is time for some."""
        if self.phase != WORKING:
            if isinstance(event, Report | Digested | Lost):
                idle.ended(event.now)
            return
        if isinstance(event, Digested) and not event.is_check:  # the report comes next
            return
        if not isinstance(event, Report | Abandoned | Digested) or any(_is_taken_out(one) for one in instructions):
            return
        idle.done(event.worker, event.piece, event.seconds)
        if is_evaluated(self.iteration, self._every):
            return

        def free_until(worker: int) -> float:
            return self._schedule.free_until(worker, lambda chunk: self._is_over(worker, chunk))

        def may(worker: int, owner: int, piece: Sequence[int]) -> bool:
            return self._may_do(worker, piece) and self._counts(owner, piece, self.books)

        instructions += [Check(worker, piece) for worker, piece in idle.orders(event.now, free_until, may)]

    def _is_over(self, worker: int, chunk: int) -> bool:
        """Whether nothing of `chunk` is left to do for a worker."""
        copies = self._copies[chunk]
        return worker in copies.reported or bool(copies.contributors and not copies.redo)

    # the end of an iteration

    def _is_enough(self) -> bool:
        """Whether the iteration may end with the copies that are there."""
        if self.books.missing > self._may_miss or self.books.redo or self._checks.comparing:
            return False
        if (idle := self._idle) and any(self._is_in_the_sum(idle, piece) for piece in idle.disputed):
            return False
        disputed = self._checks.disputed
        return any(
            (copies.contributors or self._counting.usable(chunk)) and chunk not in disputed
            for chunk, copies in enumerate(self._copies)
        )

    def _finalize(self) -> list[Instruction]:
        instructions: list[Instruction] = []
        if self.phase == WORKING and self.books.missing:
            for chunk in self.books.incomplete():
                there = self._counting.usable(chunk)
                if there and chunk not in self._checks.disputed:
                    if chunk in self._checks.checked:  # they count although nothing has shown them right
                        self.books.missing -= len(there)
                        self._checks.checked -= {chunk}
                    instructions.append(self._counting.commit(chunk, there))
                self._schedule.committed(chunk, ())  # nobody is to do it any more
            self._checks.disputed.clear()
        self._counting.closed = True
        if not self.is_combined:
            self.phase = IDLE
            return [*instructions, Finish()]
        self.phase = COLLECTING
        return [*instructions, Share(self.books.accumulators.share())]


def _is_taken_out(instruction: Instruction) -> bool:
    return isinstance(instruction, Wrong) and instruction.fate == "taken out"
