"""The production server and coordinator, with what must hold of every event and every instruction asserted, and an
optimizer and an observer that look at what comes of them."""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from psgc.schedules.dynamic import DynamicSchedule
from psgc.schedules.orders import Next, Queue, Skip
from psgc.server.coordinator import Coordinator
from psgc.server.events import Abandoned, Begin, Event, Report, Tick
from psgc.server.instructions import Collect, Commit, Discard, Finish, Instruction, Invalidate, Reassign
from psgc.server.loop import Server
from psgc.server.observer import Approximation, IterationRecord, Outcome
from psgc.server.optimizer import Sgd
from psgc.transport import Vector
from tests.simulation.schedules import FIXED
from tests.unit.refusal import snapshot

PACES = {
    "_paces",
    "estimates",
    "_last",
    "_surprise",
    "_lag",
    "_latest",
    "_reports",
}  # what a schedule has learnt of them stays


class WatchedCoordinator(Coordinator):
    """Nothing survives into an iteration, and what comes too late changes nothing."""

    thorough = False

    def handle(self, event: Event) -> list[Instruction]:
        match event:
            case Begin():
                return self._watch_begin(event)
            case Report() | Abandoned():
                return self._watch_report(event)
            case Tick(now):
                assert self.wake <= now, "asked before it was time"
                instructions = super().handle(event)
                assert self.wake > now, "wakes up for ever"
                return instructions
        return super().handle(event)

    def _watch_begin(self, event: Begin) -> list[Instruction]:
        fresh: Any = self._schedule.recipe() if self.thorough else None  # type: ignore[attr-defined]
        for name in PACES & vars(self._schedule).keys() if fresh else ():
            setattr(fresh, name, copy.copy(getattr(self._schedule, name)))
        instructions = super().handle(event)
        known = (self._reported, self._copies, self._committed, self._attempts, self._open, self._used, self._owing)
        assert not any((*known, self._asked)), "something survived into this iteration"
        if fresh:
            assert self._begin_schedule_of(fresh) == instructions
            but = ["recipe"]
            assert snapshot(fresh, but) == snapshot(self._schedule, but), "something survived into this iteration"
        return instructions

    def _begin_schedule_of(self, schedule: Any) -> Any:
        ours, self._schedule = self._schedule, schedule
        orders = self._begin_schedule()
        self._schedule = ours
        return orders

    def _watch_report(self, event: Report | Abandoned) -> list[Instruction]:
        late = self._is_late(event.worker, event.iteration) or (event.worker, event.chunk) in self._reported
        before = snapshot(self) if late and self.thorough else None
        instructions = super().handle(event)
        assert not late or instructions == []
        assert before is None or snapshot(self) == before
        return instructions


class WatchedServer(Server):
    """`watch` comes before `run`."""

    def watch(self, world: Any) -> None:
        self.world = world
        self._coordinator.thorough = world.thorough  # type: ignore[attr-defined]
        self._begin()

    def _begin(self) -> None:
        self.heard: set[tuple[int, int, int]] = set()  # (worker, chunk, how often invalidated before)
        self.commits: dict[int, tuple[int, ...]] = {}
        self.dropped: set[tuple[int, int]] = set()  # copies discarded or skipped
        self.asked: set[tuple[int, int]] = set()
        self.invalidated: set[tuple[int, int]] = set()
        self.is_calm = True  # nobody was lost in this iteration

    def is_recovered(self, chunk: int) -> bool:
        return chunk in self.commits and chunk not in self._coordinator._open

    def is_known(self, worker: int, chunk: int) -> bool:
        """Whether a copy that is not needed is kept all the same, to be compared."""
        return False

    def compared(self) -> dict[int, int]:
        """How many copies agreed, of each chunk of which more were there than recover it."""
        return {}

    def is_done_with(self, chunk: int) -> bool:
        it = self._coordinator
        return self.is_recovered(chunk) or (it._finalized and chunk in it.incomplete() and chunk not in it._open)

    def check_may_end(self) -> None:
        it = self._coordinator
        assert all(self.is_done_with(chunk) for chunk in range(self.world.plan.num_chunks))
        lacking = sum(self._coordinator.membership.parts - len(roles) for roles in it.incomplete().values())
        assert it.missing_copies == lacking
        if lacking:
            late = self.world.clock.now - self._began >= self._deadline.seconds
            assert late or it.missing_copies <= self.world.case.recovery.tolerated(self._copies)
            assert self.commits, "nothing at all"

    # events

    def _rebalance(self, iteration: int) -> None:
        self._begin()
        super()._rebalance(iteration)
        membership = self._coordinator.membership
        assert set(membership.live) == self.world.here()
        assert all(len(holders) >= membership.parts for holders in membership.holders)

    def _report(
        self, worker: int, iteration: int, chunk: int, start: float, seconds: float, loss: float, attempt: int = 0
    ) -> None:
        if not self._coordinator._is_late(worker, iteration):
            self.heard.add((worker, chunk, attempt))
        super()._report(worker, iteration, chunk, start, seconds, loss, attempt)
        if self.world.thorough and self.is_calm:
            self._check_nobody_forgotten()

    def _handle_vector(self, message: Vector) -> None:
        if message.iteration == self._coordinator.iteration:
            self.asked.discard((message.source, message.chunk))
        super()._handle_vector(message)

    def _lose(self, worker: int, reason: str, dead: bool = False, failed: bool = False) -> None:
        self.asked = {(w, role) for w, role in self.asked if w != worker}
        self.is_calm = False
        super()._lose(worker, reason, dead, failed)

    # instructions

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            assert not self._finished, "an instruction after Finish"
            self._check_instruction(instruction)
            super()._carry_out([instruction])

    def _check_instruction(self, instruction: Instruction) -> None:
        world, membership = self.world, self._coordinator.membership
        match instruction:
            case Commit(chunk, contributors, told):
                self._check_commit(chunk, contributors, told)
            case Discard(worker, chunk):
                assert (worker, chunk, self._coordinator._attempts.get(chunk, 0)) in self.heard
                self._check_dropped(worker, chunk)
            case Skip(worker, chunk, recovered):
                assert world.case.schedule not in FIXED, "this schedule skips nothing"
                assert worker in membership.holders[chunk]
                assert recovered == self.is_recovered(chunk)
                if recovered:
                    self._check_dropped(worker, chunk)
            case Queue(worker, chunks):
                assert worker in membership.live
                assert len(set(chunks)) == len(chunks), "told twice to do the same"
                assert {*chunks} <= {*membership.held(worker)}
            case Next(worker, chunk):
                assert worker in membership.holders[chunk]
                assert not self.is_recovered(chunk) or world.case.schedule == "full"
            case Reassign(worker, chunk, role):
                assert worker in membership.holders[chunk]
                assert role in membership.planned[chunk]
                world.counts["reassigned"] += 1
            case Invalidate(worker, chunk, attempt):
                assert self._settings.combined
                assert worker in membership.holders[chunk]
                assert attempt == self._coordinator._attempts[chunk]
                world.counts["invalidated"] += (chunk, attempt) not in self.invalidated
                self.invalidated.add((chunk, attempt))
                self.dropped = {(w, c) for w, c in self.dropped if c != chunk}
            case Collect(worker, role):
                assert self._settings.combined
                assert worker in membership.live
                self.check_may_end()
                assert (worker, role) not in self.asked, "asked twice at a time"
                self.asked.add((worker, role))
            case Finish():
                self.check_may_end()
                assert not self.asked
                assert not self._coordinator.owing

    def _check_commit(self, chunk: int, contributors: tuple[int, ...], told: tuple[tuple[int, int], ...]) -> None:
        it, membership = self._coordinator, self._coordinator.membership
        if chunk not in self.commits:
            self.commits[chunk] = contributors
            assert len(contributors) == len(set(contributors))
            assert len(contributors) == membership.parts or chunk in self._coordinator.incomplete()
            assert tuple(role for _, role in told) == contributors
            assert set(contributors) <= set(membership.planned[chunk])
            if self.is_calm:
                assert all(role == membership.role(worker, chunk) for worker, role in told)
        else:
            assert self._settings.combined
            assert contributors == self.commits[chunk]
            ((_, role),) = told
            assert role in contributors
        assert it.contributors(chunk) == contributors
        for worker, _ in told:
            assert (worker, chunk, it._attempts.get(chunk, 0)) in self.heard
            assert (worker, chunk) not in self.dropped
            assert it.is_here(chunk) or worker in membership.holders[chunk]
            if self.world.case.schedule == "full" and self.is_calm:
                assert self._has_done_its_load(worker)

    def _has_done_its_load(self, worker: int) -> bool:
        return {(worker, own, 0) for own in self._coordinator.membership.held(worker)} <= self.heard

    def _check_dropped(self, worker: int, chunk: int) -> None:
        assert self.is_done_with(chunk)
        assert worker in self._coordinator.membership.live
        assert not self.is_calm or worker not in self.commits[chunk]
        if (worker, chunk) in self.dropped:
            assert self.world.case.schedule not in FIXED, "discarded twice"
        self.dropped.add((worker, chunk))

    def _check_nobody_forgotten(self) -> None:
        """Who did a chunk in vain has been told, and with `skipping` also who need not begin it."""
        schedule, membership = self.world.case.schedule, self._coordinator.membership
        for chunk, contributors in self.commits.items():
            for worker in membership.holders[chunk]:
                if membership.role(worker, chunk) in contributors:
                    continue
                done = (worker, chunk, 0) in self.heard
                if done and self.is_known(worker, chunk):
                    continue
                if schedule == "full":
                    done = self._has_done_its_load(worker)
                if done or schedule == "skipping":
                    assert (worker, chunk) in self.dropped

    # what a schedule that learns believes

    def check(self) -> None:
        """It does not contradict itself, and what it counts on is what its workers are going to do."""
        it = self._rules
        if not isinstance(it, DynamicSchedule) or self._coordinator.phase != "working":
            return
        membership = self._coordinator.membership
        assert not it._bare
        assert it._own.keys() == set(membership.live)
        for chunk, holders in enumerate(membership.holders):
            assert it._committed[chunk] == self.is_done_with(chunk)
            if self.is_calm:
                assert it._started[chunk] == sum(chunk in it._taken[worker] for worker in holders)
        for worker in membership.live:
            told, taken, running = it._told[worker], it._taken[worker], it._running[worker]
            assert {*told, *taken} <= {*membership.held(worker)}
            assert not taken & told.keys()
            assert not any(it._committed[chunk] for chunk in told)
            assert running is None or running in taken or self._coordinator._attempts.get(running)
            assert running is not None or not told, "rests, but was told something"
            assert worker not in it._chosen or len(told) == 1
            if self.is_calm:
                assert {chunk for w, chunk, _ in self.heard if w == worker} <= taken
            self._check_nothing_lost(worker, {chunk for chunk in (running, *told) if chunk is not None})

    def _check_nothing_lost(self, worker: int, counted_on: set[int]) -> None:
        node = self.world.nodes[worker]
        end = node.end
        on_its_way = end.params or end.control or end.sent or end.vectors or self._outgoing.waits(worker)
        if node.dead or on_its_way or node.state.iteration < self._log.row.iteration:
            return
        will = {*node.state._queue}
        if node.work is not None and node.work.iteration == self._log.row.iteration:
            will.add(node.work.chunk)
        counted_on = {chunk for chunk in counted_on if not self.is_done_with(chunk)}
        assert counted_on <= will, "lost"
        assert not self.is_calm or len(will - counted_on) <= 1, "does more than the one chunk that an order crossed"


class Checking(Sgd):
    """An optimizer whose parameters are the number of the iteration, and which looks at each gradient."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def step(self, params: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        self._world.check_exact(gradient)
        self._world.counts["iterations"] += 1
        return params + 1.0


@dataclass
class Observer:
    """Keeps what the server writes down of the chunks."""

    world: Any

    def chunk(self, worker: int, chunk: int, iteration: int, start: float, seconds: float, outcome: Outcome) -> None:
        self.world.used[chunk] += outcome == Outcome.USED and iteration == self.world.server._log.row.iteration

    def iteration(self, row: IterationRecord) -> None:
        world = self.world
        if row.recovered or row.missing:  # it was finished
            assert row.recovered == world.plan.num_chunks - len(world.incomplete)
            copies = dict.fromkeys(range(world.plan.num_chunks), world.plan.parts)
            copies |= {chunk: len(roles) for chunk, roles in world.incomplete.items()}
            copies |= world.compared
            assert +world.used == +Counter(copies)
            assert row.loss == pytest.approx(world.plan.num_chunks)
            assert row.missing == len(world.incomplete)
            lacking = world.plan.parts * len(world.incomplete) - sum(map(len, world.incomplete.values()))
            assert row.error_measure == lacking / (world.plan.parts * world.plan.num_chunks)
        world.used.clear()

    def approximate(self, approximation: Approximation) -> None:
        self.world.counts["approximate"] += 1
        assert approximation.incomplete
        assert approximation.used is approximation.plain

    def stepped(self, done: int) -> None:
        assert done == self.world.iteration + 1

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> None:
        assert self.world.case.verification

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None:
        self.world.check_reason(worker, reason)
        self.world.counts["lost"] += 1

    def returned(self, worker: int, iteration: int) -> None:
        assert not self.world.nodes[worker].dead or not self.world.nodes[worker].told_dead
        self.world.counts["returns"] += 1

    def failure_text(self, worker: int, text: str) -> str:
        return text
