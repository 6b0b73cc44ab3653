"""The production coordinator, with what must hold of every event and every instruction asserted.

What was committed, kept, delivered and lost is written down a second time here, from events and instructions alone.
"""

from collections import Counter
from copy import copy
from typing import Any

from psgc.aggregation.tree import nodes_of
from psgc.config import Recovery
from psgc.iteration import is_checked
from psgc.schedules import Schedule
from psgc.schedules.schedule import Next, Queue, Skip
from psgc.server.coordinator import Coordinator
from psgc.server.events import Abandoned, Begin, Compared, Deadline, Digested, Event, Lost, Report, Summed, Tick
from psgc.server.instructions import (
    Check,
    Commit,
    Compare,
    Discard,
    Doubt,
    Finish,
    Instruction,
    Invalidate,
    Reassign,
    Share,
    Wrong,
)
from psgc.server.membership import Membership
from psgc.server.recovery import tolerated
from psgc.server.verification import Checks
from tests.simulation.schedules import FIXED
from tests.unit.refusal import snapshot


class WatchedCoordinator(Coordinator):
    """world: the simulated world; the rest as for a `Coordinator`."""

    __slots__ = ("watch",)  # no part of the state

    def __init__(self, world: Any, membership: Membership, schedule: Schedule, *settings: Any) -> None:
        super().__init__(membership, schedule, *settings)
        self.watch = world.watch = Watch(world, self, schedule, settings)

    def rebalance(self, membership: Membership, schedule: Schedule) -> None:
        super().rebalance(membership, schedule)
        self.watch.schedule = schedule

    def handle(self, event: Event) -> list[Instruction]:
        watch, thorough = self.watch, self.watch.world.thorough
        late = watch.is_late(event)
        assert not isinstance(event, Tick) or self.wake <= event.now, "asked before it was time"
        before = snapshot(self) if thorough and late else None
        fresh = watch.fresh() if thorough and isinstance(event, Begin) else None
        instructions = super().handle(event)
        if late and watch.is_old_pass(event):  # its worker begins this iteration now
            assert {type(order) for order in instructions} <= {Skip}
        elif late:
            assert instructions == []
            assert before is None or snapshot(self) == before
        assert not isinstance(event, Tick) or self.wake > event.now, "wakes up for ever"
        if fresh is not None:
            assert fresh.handle(event) == instructions
            assert snapshot(fresh, ["recipe", "allow_pieces"]) == snapshot(self, ["recipe", "allow_pieces"]), (
                "something survived into this iteration"
            )
        watch.hear(event, late)
        for instruction in instructions:
            watch.see(instruction)
        if thorough and watch.is_calm and isinstance(event, Report):
            watch.check_nobody_forgotten()
        return instructions


class Watch:
    """What has happened in this iteration."""

    def __init__(self, world: Any, it: WatchedCoordinator, schedule: Schedule, settings: Any) -> None:
        self.world, self.it, self.schedule, self.settings = world, it, schedule, settings
        self.strikes = Counter[int]()  # copies of each worker that were named as wrong
        self.begin()

    def begin(self) -> None:
        self.heard: set[tuple[int, int, int]] = set()  # (worker, chunk, how often it had been invalidated)
        self.commits: dict[int, tuple[int, ...]] = {}
        # (worker, role, serial) -> chunks, not shared out yet
        self.kept: dict[tuple[int, int, int], list[int]] = {}
        self.shared: dict[tuple[int, int, int], list[int]] = {}
        self.serial = 0  # how many times accumulators were shared out
        self.attempts: Counter[int] = Counter()
        self.redo: dict[int, list[int]] = {}  # chunk -> roles
        self.dropped: set[tuple[int, int]] = set()  # copies discarded or skipped
        self.compares: dict[int, tuple[tuple[int, int], ...]] = {}  # the newest of each chunk
        self.doers: dict[int, set[int]] = {}  # the workers whose copies of a chunk were compared
        self.told: set[tuple[int, int]] = set()  # (worker, chunk) of copies that were committed
        self.unanswered: set[int] = set()
        self.wrong: set[tuple[int, int]] = set()  # (worker, chunk)
        self.deadline = self.finished = False
        self.is_calm = True  # nobody was lost, nothing taken back
        self.in_vain: set[tuple[int, int]] = set()  # (worker, chunk) of passes that did not count
        self.digests: dict[tuple[int, ...], set[int]] = {}  # the workers that said one of a pass, before the sums began
        self.passes: dict[tuple[int, int], tuple[int, ...]] = {}  # (worker, chunk) -> the newest pass with it

    def fresh(self) -> Coordinator:
        """A new coordinator that knows what the schedule has learnt, and nothing else."""
        schedule = self.schedule.recipe()  # type: ignore[attr-defined]
        schedule.inherit(self.schedule)
        schedule.rest(self.schedule.resting)
        for told in {"fractions", "_may_join"} & vars(self.schedule).keys():  # whether there may be pieces
            setattr(schedule, told, copy(vars(self.schedule)[told]))
        combined, tolerated, checks, every, in_nodes, _ = self.settings
        return Coordinator(self.it.membership, schedule, combined, tolerated, Checks(checks.every), every, in_nodes)

    # events

    def is_late(self, event: Event) -> bool:
        match event:
            case Report(worker, iteration) | Abandoned(worker, iteration):
                known = self.it.phase in ("working", "redoing") and worker in self.it.membership.live
                heard = any((worker, chunk, self.attempts[chunk]) in self.heard for chunk in event.piece)
                return not known or iteration < self.it.iteration or heard
            case Digested(worker):
                return worker not in self.it.membership.live
        return False

    def is_old_pass(self, event: Event) -> bool:
        return isinstance(event, Report | Abandoned) and event.iteration < self.it.iteration

    def hear(self, event: Event, late: bool) -> None:
        assert isinstance(event, Compared) or not self.unanswered, "a comparison was not answered"
        match event:
            case Begin():
                self.begin()
                membership = self.it.membership
                left_out = self.world.server.cluster.left_out
                assert set(membership.live) == self.world.here() - left_out
                if left_out:
                    self.world.counts["do nothing without a state"] += len(left_out)
                assert all(len(holders) >= membership.parts for holders in membership.holders)
            case Report(worker) if not late:
                self.heard |= {(worker, chunk, event.attempt) for chunk in event.piece}
                self.passes |= {(worker, chunk): event.piece for chunk in event.piece}
                self.pass_over(event)
            case Abandoned(worker, others=others) if others and not late:
                self.pass_over(event)
            case Digested(worker, iteration) if not late:
                self.world.counts["digests"] += 1
                self.world.counts["checks"] += event.is_check
                if iteration == self.it.iteration and self.it.phase == "working":
                    self.digests.setdefault(event.piece, set()).add(worker)
            case Deadline():
                self.deadline = True
                assert self.world.clock.now - self.world.began_at >= self.world.case.recovery.deadline
            case Lost(worker):
                self.is_calm = False
                for where in (self.kept, self.shared):
                    for key in [key for key in where if key[0] == worker]:
                        for chunk in where.pop(key):
                            self.redo.setdefault(chunk, []).append(key[1])
            case Summed():
                assert self.serial, "the sum of nothing"
                self.world.counts["summed meanwhile"] += bool(self.redo)
                self.kept, self.shared, self.redo = {}, {}, {}
            case Compared(chunk, agreeing):
                self.unanswered.discard(chunk)
                if not agreeing:
                    self.world.counts["disputed"] += 1
                    if chunk not in self.redo:
                        self.world.counts["taken back"] += chunk in self.commits
                        self.commits.pop(chunk, None)
                    self.dropped = {(worker, c) for worker, c in self.dropped if c != chunk}
                    self.is_calm = False

    # instructions

    def see(self, instruction: Instruction) -> None:
        assert not self.finished or isinstance(instruction, Wrong | Doubt), "an instruction after Finish"
        it, world, membership = self.it, self.world, self.it.membership
        match instruction:
            case Commit(chunk, contributors, told, serial):
                self.check_commit(chunk, contributors, told, serial)
            case Discard(worker, chunk):
                assert it.is_combined
                assert (worker, chunk, self.attempts[chunk]) in self.heard or (worker, chunk) in self.in_vain
                self.check_dropped(worker, chunk)
            case Skip(worker, chunk, recovered):
                assert world.case.schedule not in FIXED, "this schedule skips nothing"
                assert worker in membership.holders[chunk]
                assert recovered == self.is_recovered(chunk)
                if recovered:
                    self.check_dropped(worker, chunk)
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
                assert world.case.combined or (not attempt and (worker, chunk) in self.in_vain)
                assert worker in membership.holders[chunk]
                assert chunk in self.redo or (worker, chunk) in self.in_vain
                assert self.attempts[chunk] <= attempt <= self.attempts[chunk] + 1
                world.counts["invalidated"] += attempt > self.attempts[chunk]
                self.attempts[chunk] = attempt
                self.dropped = {(w, c) for w, c in self.dropped if c != chunk}
            case Share(contributors):
                assert world.case.combined
                self.check_may_end()
                self.shared |= self.kept
                assert contributors == self.contributors(), "others than those that live workers keep"
                self.kept = {}
                self.serial += 1
                world.counts["shared out again"] += self.serial > 1
            case Compare(chunk, copies):
                assert not it.is_combined or it.is_sketched(chunk)
                assert len(copies) == len(dict(copies)) > membership.parts
                doers = {worker for worker, c, _ in self.heard if c == chunk}
                assert doers.issuperset(dict(copies))
                self.compares[chunk] = copies
                self.doers.setdefault(chunk, set()).update(worker for worker, _ in copies)
                self.unanswered.add(chunk)
            case Wrong(worker, chunk, others, fate, before):
                is_in_doubt = world.is_idle and fate == "unused" and len(others) > 1  # from several iterations
                wrong = world.case.wrong
                assert (it.iteration - before, chunk, worker) in wrong or is_in_doubt, "named, and not in the wrong"
                assert len(others) > membership.parts or world.is_idle
                self.wrong.add((worker, chunk))
                self.strikes[worker] += 1
                world.counts["wrong"] += 1
                world.counts[fate] += world.is_idle
                self.is_calm = self.is_calm and fate == "unused"
            case Check(worker, piece, at_once):
                assert it.phase == "working"
                assert worker in membership.live
                assert world.case.reassigning or all(worker in membership.holders[chunk] for chunk in piece)
                world.counts["repeated at once"] += at_once
            case Doubt(chunk, workers, before, _):
                iterations = it.iteration - before
                assert any((iterations, chunk, worker) in world.case.wrong for worker in workers)
                world.counts["doubts"] += 1
            case Finish():
                self.finished = True
                self.check_may_end()
                self.check_named()
                assert not self.kept
                assert not self.shared
                assert not it.books.accumulators.shared

    def pass_over(self, event: Report | Abandoned) -> None:
        """A pass counts as a whole, or not at all."""
        worker, piece = event.worker, event.piece
        used = {self.it.books.used(worker, chunk, event.attempt) for chunk in piece}
        if len(piece) > 1 and used != {True}:
            assert used == {False} or any(chunk in self.commits for chunk in piece)
            self.is_calm = False
            self.world.counts["passes in vain"] += 1
            self.in_vain |= {(worker, chunk) for chunk in piece}
            self.heard -= {(worker, chunk, event.attempt) for chunk in piece}

    def check_may_end(self) -> None:
        it = self.it
        assert all(self.is_done_with(chunk) for chunk in range(self.world.plan.num_chunks))
        lacking = sum(it.membership.parts - len(roles) for roles in it.books.incomplete().values())
        assert it.books.missing == lacking
        if lacking:
            copies = self.world.plan.num_chunks * it.membership.parts
            assert self.deadline or it.books.missing <= tolerated(self.world.case.recovery.max_error, copies)
            assert self.commits, "nothing at all"

    def check_commit(
        self, chunk: int, contributors: tuple[int, ...], told: tuple[tuple[int, int], ...], serial: int
    ) -> None:
        it, membership = self.it, self.it.membership
        if not told:  # with the first chunk of its piece
            ((worker, _),) = it.books.chunks[chunk].used
            told = ((worker, contributors[0]),)
        if chunk not in self.commits:
            self.commits[chunk] = contributors
            assert len(contributors) == len(set(contributors))
            assert len(contributors) == membership.parts or chunk in it.books.incomplete()
            assert tuple(role for _, role in told) == contributors
            assert set(contributors) <= set(membership.planned[chunk])
            if self.is_calm:
                assert all(role == membership.role(worker, chunk) for worker, role in told)
        else:
            assert self.world.case.combined
            assert contributors == self.commits[chunk]
            ((_, role),) = told
            self.redo[chunk].remove(role)
            self.redo = {c: roles for c, roles in self.redo.items() if roles}
        assert it.books.chunks[chunk].contributors == contributors
        for worker, role in told:
            self.told.add((worker, chunk))
            assert (worker, chunk, self.attempts[chunk]) in self.heard
            assert it.books.used(worker, chunk, self.attempts[chunk])
            assert (worker, chunk) not in self.dropped
            assert not it.is_combined or worker in membership.holders[chunk]
            if it.is_combined:
                assert serial == self.serial
                self.kept.setdefault((worker, role, serial), []).append(chunk)
            if self.world.case.schedule == "full" and self.is_calm:
                assert self.has_done_its_load(worker)

    def contributors(self) -> tuple[tuple[int, int, int], ...]:
        """Of what was shared out, as a map has them."""
        if not self.world.case.reproducible:
            return tuple(sorted(self.shared))
        keys = {(worker, serial) for worker, _, serial in self.shared}
        chunks = {which: [c for key, of in self.shared.items() if key[::2] == which for c in of] for which in keys}
        nodes = ((worker, node, serial) for (worker, serial), of in chunks.items() for node in nodes_of(of))
        return tuple(sorted(nodes))

    def is_recovered(self, chunk: int) -> bool:
        return chunk in self.commits and chunk not in self.redo

    def is_done_with(self, chunk: int) -> bool:
        left_out = self.it.phase != "working" and chunk in self.it.books.incomplete()
        return self.is_recovered(chunk) or (left_out and chunk not in self.redo)

    def has_done_its_load(self, worker: int) -> bool:
        return {(worker, own, 0) for own in self.it.membership.held(worker)} <= self.heard

    def check_dropped(self, worker: int, chunk: int) -> None:
        assert self.is_done_with(chunk) or (worker, chunk) in self.wrong
        assert worker in self.it.membership.live
        assert not self.is_calm or worker not in self.commits.get(chunk, ())
        if (worker, chunk) in self.dropped:
            assert self.world.case.schedule not in FIXED, "discarded twice"
        self.dropped.add((worker, chunk))

    def check_nobody_forgotten(self) -> None:
        """A worker that keeps a copy in vain has been told, and with `skipping` one that need not begin it."""
        schedule, membership = self.world.case.schedule, self.it.membership
        for chunk, contributors in self.commits.items():
            for worker in membership.holders[chunk]:
                done = (worker, chunk, 0) in self.heard
                if membership.role(worker, chunk) in contributors or (done and not self.it.is_combined):
                    continue
                if schedule == "full":
                    done = self.has_done_its_load(worker)
                if done or schedule == "skipping":
                    assert (worker, chunk) in self.dropped

    # copies that were compared

    def check_named(self) -> None:
        """Of all copies that were compared, those that are wrong have been named."""
        for chunk, doers in self.doers.items():
            if chunk in self.commits:
                wrong = {worker for worker in doers if (self.it.iteration, chunk, worker) in self.world.case.wrong}
                assert {worker for worker, c in self.wrong if c == chunk} == wrong, "wrong, and not named"

    def compared(self) -> dict[int, int]:
        """How many copies agreed, of each chunk of which more were there than recover it."""
        committed = {chunk: copies for chunk, copies in self.compares.items() if chunk in self.commits}
        return {c: sum((worker, c) not in self.wrong for worker, _ in copies) for c, copies in committed.items()}

    def uses_a_wrong_copy(self, chunk: int) -> bool:
        if self.world.case.combined:  # also one that was done again: slices may have been summed before
            return any((worker, chunk) in self.told for worker in self._wrong_of(chunk))
        return self.counts_wrong(chunk)

    def counts_wrong(self, chunk: int) -> bool:
        """Whether a wrong copy of `chunk` counts in the end."""
        return any(self._counts(worker, chunk) for worker in self._wrong_of(chunk))

    def _counts(self, worker: int, chunk: int) -> bool:
        return any(self.it.books.used(worker, chunk, n) for n in range(self.attempts[chunk] + 1))

    def _wrong_of(self, chunk: int) -> list[int]:
        """The workers whose newest pass with `chunk` was wrong: its first chunk decides (`World.finish`)."""
        passes = {worker: piece for (worker, one), piece in self.passes.items() if one == chunk}
        return [w for w, piece in passes.items() if (self.it.iteration, piece[0], w) in self.world.case.wrong]

    def is_unseen(self, chunk: int) -> bool:
        """Whether nothing was there that `chunk` could have been compared with."""
        case = self.world.case
        assert case.verify is not None
        if case.verify.idle:
            here = self.it.membership.live  # of the others nobody can say any more who was right
            wrong = self._wrong_of(chunk)
            counting = [worker for worker in wrong if self._counts(worker, chunk)]
            doers = [self.digests.get(self.passes[worker, chunk], set()) for worker in counting or wrong]
            unseen = [len(who.intersection(here)) < 2 for who in doers]
            return all(unseen) if counting else any(unseen)
        assert case.verify.every is not None
        checked = is_checked(chunk, self.it.iteration, case.verify.every)
        return chunk not in self.compares and not (checked and case.recovery == Recovery())
