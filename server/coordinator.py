"""The server's side of the protocol as a pure state machine: no clock, no MPI, no arrays.

`Coordinator.handle` takes an event (`psgc.server.events`) and returns the instructions that the loop carries out, in
order. MPI drives it in production, and a virtual clock drives it in simulation.

The coordinator knows the phases, and decides when an iteration ends. `psgc.server.counting` decides which copies count,
and what is done again. The rules of both:

1. A chunk is committed once, to the first `parts` distinct holders whose copies count, when the last of these copies
   counts. `psgc.server.verification` decides which copies have to agree before they count.
2. A copy that comes too late is discarded. The worker that keeps it is told to free it.
3. Events of an earlier iteration and events of a lost worker change nothing. Neither does a report that was handled
   before, nor a report of a copy that was done before its chunk was invalidated. But the schedule hears when a pass of
   an earlier iteration ends, since its worker begins this iteration then.
4. An event that no correct worker can send (a chunk it does not hold, an iteration that has not begun) raises
   ProtocolError and changes nothing.
5. Copies that a lost worker keeps do not count. A chunk that is committed to one of them is *invalidated*: a live
   holder does it again, in the role of the lost worker, and S_i stays the same. With `per_chunk` a reported copy counts
   even if its worker is lost. A chunk is reassigned when too few live workers can still do it.
6. Approximate recovery: once no more than `tolerated` copies are missing, or after the deadline, the iteration ends
   with the copies that are there. A chunk with some copies is committed to them, and a chunk without any is left out.
   The iteration does not end before there is a copy. It does not end while an invalidated chunk is missing either,
   since accumulators are useless without it. An iteration that evaluates held-out rows is exact, since its figures
   are of all rows.
7. With `combined` the accumulators are *shared out*: the ranks sum them. What is committed after that, because a worker
   was lost, goes to new accumulators, and all accumulators are shared out again. The sum of the earlier share may
   arrive first. Then the iteration is over, and what is being done again is not needed.
8. The chunks of a *piece*, which a worker has done in one pass, count together or not at all. If another worker's copy
   counts for one of them, or one was invalidated, the chunks that are still needed are done again.
9. Only the membership survives into the next iteration. Lost workers return between two iterations (`rebalance`).
"""

from collections import deque
from collections.abc import Sequence
from math import inf

from psgc.errors import ProtocolError
from psgc.iteration import is_evaluated
from psgc.schedules import Schedule
from psgc.schedules.schedule import Order, Pass
from psgc.server.copies import Books
from psgc.server.counting import Counting
from psgc.server.disputes import Disputes, takes_out
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
    Delayed,
    Digested,
    Event,
    Lost,
    Phase,
    Report,
    Summed,
    Tick,
)
from psgc.server.idle import IdleChecks
from psgc.server.instructions import Compare, Discard, Finish, Instruction, Invalidate, Share
from psgc.server.membership import Membership
from psgc.server.verification import Checks

EVENTS_KEPT = 20  # for the report of a ProtocolError


class Coordinator:
    """Decides which copies count, report by report, and when the gradient is there.

    membership: the live workers and what they hold; losses change it
    schedule: decides who does which chunk next
    combined: whether contributors keep their copies and share out what they have added up (transfer `combined`)
    tolerated: how many of the N * l copies may be missing in the end
    checks: which copies have to agree (`verify`), none by default
    every: iterations from one evaluation of held-out rows to the next, 0 for none
    in_nodes: whether nodes of the tree are shared out in place of accumulators (`reproducible`)
    idle: the digests to compare (`verify: {idle: true}`), None for no comparison
    books: the copies of this iteration
    is_combined: `combined`, but False in an evaluation, whose sums come with the reports

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
        self._disputes = None if idle is None else Disputes(idle)
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._start(-1)

    def _start(self, iteration: int, has_gradient: bool = True) -> None:
        self.iteration, self.is_combined = iteration, self._combined and has_gradient
        has_held_out = is_evaluated(iteration, self._every)
        self._may_miss: float = 0 if has_held_out else self._tolerated
        self._checks.begin(iteration, len(self.membership.holders))
        self._counting = Counting(
            iteration, self.membership, self._schedule, self.is_combined, self._checks, self._in_nodes
        )
        self.books: Books = self._counting.books
        self._copies = self.books.chunks
        if self._disputes is not None and iteration >= 0:
            self._disputes.begin(iteration, self.membership, self._schedule, self.books, has_gradient, has_held_out)

    # questions

    def is_sketched(self, chunk: int) -> bool:
        """Whether reports of `chunk` come with sketches of the copies, which the workers keep."""
        return self._counting.is_sketched(chunk)

    @property
    def wake(self) -> float:
        """When the schedule wants a `Tick`, in seconds since the iteration began; infinite for never."""
        return self._schedule.wake if TRANSITIONS[Tick][self.phase] else inf

    # events

    def rebalance(self, membership: Membership, schedule: Schedule) -> None:
        """Use this membership and this schedule from the next iteration on."""
        if self.phase != IDLE:
            raise self._illegal("rebalance")
        self.membership, self._schedule = membership, schedule

    def handle(self, event: Event) -> list[Instruction]:
        """The instructions that follow from `event`, in order.

        Raises ProtocolError, and changes nothing, when the event is not allowed. Raises TooFewWorkers when too few
        workers are left. Raises RunFailed when copies of a chunk do not agree and no worker is left to do it once more.
        """
        may_follow = TRANSITIONS[type(event)].get(self.phase)
        late = self._is_late(event)
        if may_follow is None and not late:
            raise self._illegal(event)
        self._events.append(event)
        if late or not may_follow:
            return [*self._old_pass_ended(event)]
        before = self.phase
        instructions = self._react(event)
        assert self.phase in may_follow, (event, self.phase)
        if self._disputes is not None and before == WORKING:
            instructions += self._disputes.after(event, instructions, self.phase)
        return instructions

    def _is_late(self, event: Event) -> bool:
        """Whether an event comes too late to matter. Raises ProtocolError when it cannot happen."""
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
            case Delayed(worker, iteration):
                late = iteration < self.iteration or worker not in self.membership.live
                possible = 0 <= iteration <= self.iteration and worker in self.membership.workers
            case Compared(chunk):
                possible = chunk in self._checks.comparing
            case Digested(worker):
                late = worker not in self.membership.live
                possible = self._disputes is not None and self._disputes.is_possible(event)
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
            case Delayed(worker, _, now):
                self._schedule.delayed(worker)
                return [*self._schedule.tick(now)]
            case Lost(worker, now):
                held = self.membership.lose(worker)
                return [] if self.phase == IDLE else self._lost(worker, held, now)
            case Compared(chunk, agreeing, now):
                instructions = self._counting.compared(chunk, agreeing, now)
                if not agreeing:
                    return instructions
                if self._is_enough():
                    return instructions + self._finalize()
                return [*instructions, *self._schedule.tick(now)]  # for workers that need not do it any more
            case Digested():
                assert self._disputes is not None
                instructions = self._disputes.digested(event, self.phase)
                is_over = self.phase == WORKING and not takes_out(instructions) and self._is_enough()
                return instructions + self._finalize() if is_over else instructions

    # reports and losses

    def _report(self, event: Report) -> list[Instruction]:
        if event.others:
            return self._report_piece(event)
        copies = self._copies[event.chunk]
        if event.attempt < copies.attempt:  # the worker has dropped its copy since
            return [*self._freed(event, done=False)]
        copies.reported += (event.worker,)
        instructions: list[Instruction] = []
        for counted in self._schedule.counts(event.worker, event.chunk):
            instructions += self._counting.count(event.worker, counted)
        if self._is_enough():
            return instructions + self._finalize(event)
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
        return instructions + (self._finalize(event) if self._is_enough() else [*self._freed(event, done=True)])

    def _old_pass_ended(self, event: Event) -> Sequence[Order]:
        """Orders for a worker that begins this iteration only now. `event` changes nothing else."""
        if self.phase == IDLE or not isinstance(event, Report | Abandoned) or event.iteration >= self.iteration:
            return ()
        orders = self._schedule.begins_late(event.worker, event.now) if event.worker in self.membership.live else ()
        return () if self.phase == COLLECTING else orders  # nothing is to be done, unless a contributor is lost

    def _do_again(self, event: Report | Abandoned) -> list[Instruction]:
        """This pass does not count: have its needed chunks done again, except those that were invalidated since."""
        worker = event.worker
        piece = [chunk for chunk in event.piece if not self._copies[chunk].attempt]
        needed = [chunk for chunk in piece if self._counting.is_needed(chunk)]
        instructions: list[Instruction] = []
        if isinstance(event, Report):  # a worker that abandoned them may be doing some again already
            instructions += [Invalidate(worker, chunk, 0) for chunk in needed]
            if self.is_combined and event.chunk in piece and event.chunk not in needed:
                instructions.append(Discard(worker, event.chunk))
        return [*instructions, *self._freed(event, done=False), *self._schedule.again(worker, needed, event.now)]

    def _freed(self, event: Report | Abandoned, done: bool) -> Sequence[Order]:
        return self._schedule.freed(self._pass(event, done))

    def _pass(self, event: Report | Abandoned, done: bool) -> Pass:
        return Pass(event.worker, event.piece, event.now, event.seconds, done, event.late)

    def _lost(self, worker: int, held: Sequence[int], now: float) -> list[Instruction]:
        collected = self.phase == COLLECTING
        instructions = self._counting.lost(worker, held, collected, now)
        if collected and self.books.redo:
            self.phase = REDOING
        if self._disputes is not None:
            instructions += self._disputes.lost(worker)
            if self.phase == WORKING and self._is_enough():  # the lost worker was the last cause of a dispute
                instructions += self._finalize()
        return instructions

    # the end of an iteration

    def _is_enough(self) -> bool:
        """Whether the iteration may end with the copies that are there."""
        if self.books.missing > self._may_miss or self.books.redo or self._checks.comparing:
            return False
        if self._disputes is not None and self._disputes.hold_up():
            return False
        disputed = self._checks.disputed
        return any(
            (copies.contributors or self._counting.usable(chunk)) and chunk not in disputed
            for chunk, copies in enumerate(self._copies)
        )

    def _finalize(self, last: Report | None = None) -> list[Instruction]:
        """last: the report that ends the iteration, of which the schedule has not heard."""
        if last is not None:
            self._schedule.ended(self._pass(last, done=True))
        instructions: list[Instruction] = []
        if self.phase == WORKING and self.books.missing:
            for chunk in self.books.incomplete():
                there = self._counting.usable(chunk)
                if there and chunk not in self._checks.disputed:
                    if chunk in self._checks.checked:  # they count without a comparison
                        self.books.missing -= len(there)
                        self._checks.checked -= {chunk}
                    instructions.append(self._counting.commit(chunk, there))
                self._schedule.committed(chunk, ())  # no worker needs to do it any more
            self._checks.disputed.clear()
        self._counting.closed = True
        if not self.is_combined:
            self.phase = IDLE
            return [*instructions, Finish()]
        self.phase = COLLECTING
        return [*instructions, Share(self.books.accumulators.share())]
