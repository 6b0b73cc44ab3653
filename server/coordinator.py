"""The server's side of the protocol as a pure state machine: no clock, no MPI, no arrays.

`Coordinator.handle` takes an event (`psgc.server.events`) and returns the instructions that the loop carries out, in
order. The same object is driven by MPI in production and by a virtual clock in simulation.

The rules, said once:

1. An iteration is *working* from `Begin` until every chunk is committed, then *collecting* until every contributor
   has delivered its accumulator, then *idle*. With `per_chunk` transfer there is nothing to collect.
2. A chunk is committed once, to the first `parts` distinct holders whose copies count, at the moment the last
   of them does.
3. A copy that comes too late is discarded: the worker is told, so that it can free it.
4. Reports from an older iteration, after the last commit, or heard before, change nothing.
5. An event that no correct worker can send (a chunk it does not hold, an iteration that has not begun, a delivery
   that nobody asked for) raises ProtocolError and changes nothing.
6. A worker that is lost delivers nothing any more. Copies of it that were to be collected do not count: chunks that
   are not committed wait for other copies; a committed one is *invalidated*: any one live worker that holds it does it
   again, in the role of the lost one, and S_i stays what it is. What was delivered before, and with `per_chunk` what
   was reported, counts. Chunks with too few live workers that can still do them are reassigned.
7. What a lost worker sends changes nothing, and neither does a copy that was done before its chunk was invalidated.
8. Approximate recovery: once no more than `tolerated` copies are missing, or after the deadline, those there suffice.
   Chunks with some copies are committed to these, those with none are left out; copies that come later do not count.
   That waits for the first copy of all, and for what was invalidated, without which accumulators of others would be of
   no use.
9. Nothing survives into the next iteration, but who lives; the lost come back between two iterations (`rebalance`).
"""

from collections.abc import Sequence
from math import inf
from typing import Literal

from psgc.errors import ProtocolError
from psgc.schedules import Schedule
from psgc.schedules.orders import Loss, Order
from psgc.server.events import Abandoned, Begin, Compared, Deadline, Delivered, Event, Lost, Report, Tick
from psgc.server.instructions import Add, Collect, Commit, Discard, Finish, Instruction, Invalidate, Reassign
from psgc.server.membership import Membership


class Coordinator:
    """Decides, report by report, which copies count, and knows when the gradient is there.

    membership: who lives and holds what, owned by the coordinator; combined: whether contributors keep their work until
    they are asked for it (transfer `combined`); tolerated: how many of the N * l copies may be missing in the end.
    """

    def __init__(self, membership: Membership, schedule: Schedule, combined: bool, tolerated: int = 0) -> None:
        self.membership = membership
        self._schedule = schedule
        self._combined = combined
        self._tolerated = tolerated
        self.iteration = -1
        self.phase: Literal["idle", "working", "collecting"] = "idle"
        self._forget()

    def _forget(self) -> None:
        self._reported: set[tuple[int, int]] = set()  # (worker, chunk)
        self._copies: dict[int, list[tuple[int, int]]] = {}  # chunk -> (worker, role) that count, fewer than parts
        self._committed: dict[int, tuple[int, ...]] = {}  # chunk -> S_i
        self._partial: set[int] = set()  # committed chunks with fewer than parts copies
        self._deadline_passed = False  # what is there has to do, as soon as possible
        self._finalized = False  # only what is invalidated counts any more
        self.missing_copies = (
            len(self.membership.holders) * self.membership.parts
        )  # of the N * l that determine the gradient
        self._attempts: dict[int, int] = {}  # chunk -> how many times it was invalidated
        self._open: dict[int, list[int]] = {}  # invalidated chunk -> roles in which it is to be done
        self._used: set[tuple[int, int, int]] = set()  # (worker, chunk, attempt) of copies that are in the gradient
        # (worker, role) -> (chunk, attempt) of its copies that are committed: not asked for yet, and asked for
        self._owing: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._asked: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def contributors(self, chunk: int) -> tuple[int, ...]:
        """S_i of this iteration: empty while the chunk is not committed."""
        return self._committed.get(chunk, ())

    def used(self, worker: int, chunk: int, attempt: int = 0) -> bool:
        """Whether the copy of `worker`, `attempt` times invalidated, is part of the gradient, or has shown it right."""
        return (worker, chunk, attempt) in self._used

    @property
    def recovered(self) -> int:
        """How many chunks are recovered exactly in this iteration."""
        return len(self._committed) - len(self._partial | self._open.keys())

    def incomplete(self) -> dict[int, tuple[int, ...]]:
        """The chunks that have fewer than l copies, and S_i of each."""
        chunks = [c for c in range(len(self.membership.holders)) if c not in self._committed or c in self._partial]
        return {chunk: self.contributors(chunk) for chunk in chunks}

    @property
    def owing(self) -> frozenset[int]:
        """The contributors that have been asked for an accumulator and have not delivered it."""
        return frozenset(worker for worker, _ in self._asked)

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done after `event`. Raises ProtocolError, and changes nothing, when it is not allowed.

        Raises TooFewWorkers when those who are left cannot do what is needed, RunFailed when copies of a chunk do not
        agree and there is nobody left to ask.
        """
        match event:
            case Report():
                return self._report(event)
            case Abandoned():
                return self._abandoned(event)
            case Delivered():
                return self._delivered(event)
            case Tick(now):
                return list(self._schedule.tick(now)) if self.phase == "working" else []
            case Begin(iteration):
                return self._begin(iteration)
            case Lost(worker, now):
                return self._lost(worker, now)
            case Deadline():
                return self._deadline()
            case Compared(chunk, agreeing, now):
                return self._compared(chunk, agreeing, now)

    def _begin(self, iteration: int) -> list[Instruction]:
        if self.phase != "idle" or iteration <= self.iteration:
            raise self._illegal(Begin(iteration))
        self._forget()
        self.iteration = iteration
        self.phase = "working"
        return list(self._begin_schedule())

    def _report(self, event: Report) -> list[Instruction]:
        worker, chunk, attempt = event.worker, event.chunk, event.attempt
        self._check(event)
        if self._is_late(worker, event.iteration) or (worker, chunk) in self._reported:
            return []
        if attempt < self._attempts.get(chunk, 0):  # the worker has dropped it since
            return list(self._schedule.freed(worker, chunk, event.now, event.seconds, done=False, late=event.late))
        self._reported.add((worker, chunk))
        instructions: list[Instruction] = []
        for counted in self._schedule.counts(worker, chunk):
            instructions += self._count(worker, counted)
        if self._is_enough():
            return instructions + self._finalize()
        return instructions + list(self._schedule.freed(worker, chunk, event.now, event.seconds, late=event.late))

    def _abandoned(self, event: Abandoned) -> list[Instruction]:
        worker, chunk, attempt = event.worker, event.chunk, event.attempt
        self._check(event)
        if self._is_late(worker, event.iteration) or (worker, chunk) in self._reported:
            return []
        done = attempt == self._attempts.get(chunk, 0) and not self._is_disputed(chunk)
        return list(self._schedule.freed(worker, chunk, event.now, event.seconds, done=done, late=event.late))

    def _deadline(self) -> list[Instruction]:
        if self.phase == "idle":
            raise self._illegal(Deadline())
        self._deadline_passed = True
        return self._finalize() if self.phase == "working" and self._is_enough() else []

    def _lost(self, worker: int, now: float) -> list[Instruction]:
        if worker not in self.membership.live:
            raise self._illegal(Lost(worker))
        held = self.membership.lose(worker)
        if self.phase == "idle":
            return []
        dropped, invalidated = self._take_back(worker, held) if self._combined else ([], [])
        affected = dict.fromkeys([*held, *invalidated])
        reassigned = [reassign for chunk in affected for reassign in self._reassign(chunk)]
        instructions: list[Instruction] = [*reassigned]
        for chunk in invalidated:
            instructions += [
                Invalidate(holder, chunk, self._attempts[chunk]) for holder in self.membership.holders[chunk]
            ]
        for reassign in reassigned:  # one that takes over a chunk invalidated before has to know so, too
            if (attempt := self._attempts.get(reassign.chunk, 0)) and reassign.chunk not in invalidated:
                instructions.append(Invalidate(reassign.worker, reassign.chunk, attempt))
        loss = Loss(
            worker=worker,
            dropped=tuple(dropped),
            invalidated={
                chunk: (len(self._open[chunk]), self._able(chunk)) for chunk in affected if chunk in self._open
            },
            reassigned=tuple((reassign.worker, reassign.chunk) for reassign in reassigned),
            holders=self.membership.holders,
            collected=self.phase == "collecting",
        )
        if self._open:
            self.phase = "working"
        return instructions + list(self._schedule.lost(loss, now))

    def rebalance(self, membership: Membership, schedule: Schedule) -> None:
        """From the next iteration on these live, hold and are scheduled so."""
        if self.phase != "idle":
            raise self._illegal("rebalance()")
        self.membership, self._schedule = membership, schedule

    @property
    def wake(self) -> float:
        """When the schedule wants a `Tick`, in seconds since the iteration began; infinite for never."""
        return self._schedule.wake if self.phase == "working" else inf

    def _delivered(self, event: Delivered) -> list[Instruction]:
        copy = worker, role = event.worker, event.role
        if event.iteration < self.iteration or worker not in self.membership.live:
            return []
        if event.iteration > self.iteration or copy not in self._asked:
            raise self._illegal(event)
        del self._asked[copy]
        instructions: list[Instruction] = [Add(worker, role)]
        if self.phase == "collecting":
            if copy in self._owing:
                instructions += self._collect(worker, role)
            elif not self._asked:
                instructions += self._finish()
        return instructions

    def _compared(self, chunk: int, agreeing: Sequence[int], now: float) -> list[Instruction]:
        raise self._illegal(Compared(chunk, tuple(agreeing)))

    # what `psgc.server.verification` changes

    def _begin_schedule(self) -> Sequence[Order]:
        return self._schedule.begin()

    def is_here(self, chunk: int) -> bool:
        """Whether copies of `chunk` are with the server, not with those who did them."""
        return not self._combined

    def _wanted(self, chunk: int) -> int:
        """How many copies `chunk` needs."""
        return self.membership.parts

    def _is_disputed(self, chunk: int) -> bool:
        """Whether copies of `chunk` did not agree, and it is done once more."""
        return False

    # what they lead to

    def _is_enough(self) -> bool:
        few = self._deadline_passed or self.missing_copies <= self._tolerated
        anything = self.missing_copies < len(self.membership.holders) * self.membership.parts
        return few and anything and not self._open

    def _count(self, worker: int, chunk: int) -> list[Instruction]:
        if chunk in self._open:
            roles = self._open[chunk]
            told: tuple[tuple[int, int], ...] = ((worker, roles.pop(0)),)
            if not roles:
                del self._open[chunk]
        elif chunk in self._committed or self._finalized:
            return [Discard(worker, chunk)]
        else:
            copies = self._copies.setdefault(chunk, [])
            copies.append((worker, self.membership.role(worker, chunk)))
            self.missing_copies -= 1
            if len(copies) < self.membership.parts:
                return []
            told = tuple(self._copies.pop(chunk))
            self._committed[chunk] = tuple(role for _, role in told)
        commit = self._commit(chunk, told)
        if chunk in self._open:
            return [commit]
        unreported = [w for w in self.membership.holders[chunk] if (w, chunk) not in self._reported]
        return [commit, *self._schedule.committed(chunk, unreported)]

    def _commit(self, chunk: int, told: tuple[tuple[int, int], ...]) -> Commit:
        attempt = self._attempts.get(chunk, 0)
        self._used.update((contributor, chunk, attempt) for contributor, _ in told)
        if not self.is_here(chunk):
            for copy in told:
                self._owing.setdefault(copy, []).append((chunk, attempt))
        return Commit(chunk, self._committed[chunk], told)

    def _finalize(self) -> list[Instruction]:
        """Commit what has some copies, and go on to the end of the iteration."""
        instructions: list[Instruction] = []
        if not self._finalized and self.missing_copies:
            for chunk in self.incomplete():
                if copies := tuple(self._copies.pop(chunk, ())):
                    self._partial.add(chunk)
                    self._committed[chunk] = tuple(role for _, role in copies)
                    instructions.append(self._commit(chunk, copies))
                self._schedule.committed(chunk, ())  # nobody is to do it any more
        self._finalized = True
        if not (self._owing or self._asked):
            return instructions + self._finish()
        self.phase = "collecting"
        # who has not delivered yet is asked once more when it has: two accumulators of a role may overtake each other
        to_ask = sorted(self._owing.keys() - self._asked)
        return instructions + [collect for copy in to_ask for collect in self._collect(*copy)]

    def _collect(self, worker: int, role: int) -> list[Instruction]:
        self._asked[worker, role] = self._owing.pop((worker, role))
        return [Collect(worker, role)]

    def _finish(self) -> list[Instruction]:
        self.phase = "idle"
        return [Finish()]

    def _take_back(self, worker: int, held: Sequence[int]) -> tuple[list[int], list[int]]:
        """Nothing that `worker` has not delivered counts: the chunks that have a copy less, and those invalidated."""
        dropped = []
        for chunk in held:
            copies = () if self.is_here(chunk) else self._copies.get(chunk, ())
            kept = [copy for copy in copies if copy[0] != worker]
            if len(kept) < len(copies):
                self._copies[chunk] = kept
                self.missing_copies += 1
                dropped.append(chunk)
        invalidated: dict[int, None] = {}
        for where in (self._owing, self._asked):
            for role in sorted(role for w, role in where if w == worker):
                for chunk, attempt in where.pop((worker, role)):
                    self._open.setdefault(chunk, []).append(role)
                    self._used.remove((worker, chunk, attempt))
                    invalidated[chunk] = None
        for chunk in invalidated:
            self._attempts[chunk] = self._attempts.get(chunk, 0) + 1
            self._reported -= {(holder, chunk) for holder in self.membership.holders[chunk]}
        return dropped, list(invalidated)

    def _reassign(self, chunk: int) -> list[Reassign]:
        """Find workers until there are enough that can do `chunk`."""
        reassigned: list[Reassign] = []
        copies = self._copies.get(chunk, ())
        needed = self._wanted(chunk) - len(copies)
        if chunk in self._committed or self._finalized:
            needed = len(self._open.get(chunk, ()))
        while len(self._able(chunk)) < needed:
            worker = self.membership.reassign(chunk, copies)
            reassigned.append(Reassign(worker, chunk, self.membership.role(worker, chunk)))
        return reassigned

    def _able(self, chunk: int) -> list[int]:
        """The live workers whose copies of `chunk` would count from now on."""
        holders = self.membership.holders[chunk]
        if chunk in self._open:
            return [worker for worker in holders if (worker, chunk) not in self._reported]
        done = {worker for worker, _ in self._copies.get(chunk, ())}
        return [worker for worker in holders if worker not in done]  # `full`: one may have reported, and not count yet

    def _is_late(self, worker: int, iteration: int) -> bool:
        return iteration < self.iteration or self.phase != "working" or worker not in self.membership.live

    def _check(self, event: Report | Abandoned) -> None:
        worker, chunk = event.worker, event.chunk
        known = 0 <= chunk < len(self.membership.holders) and 0 <= event.iteration <= self.iteration
        known = known and worker in self.membership.workers
        if known and event.iteration == self.iteration and worker in self.membership.live:
            known = worker in self.membership.holders[chunk] and 0 <= event.attempt <= self._attempts.get(chunk, 0)
        if not known:
            raise self._illegal(event)

    def _illegal(self, event: Event | str) -> ProtocolError:
        return ProtocolError(f"coordinator: {event} is not allowed while {self.phase} in iteration {self.iteration}")
