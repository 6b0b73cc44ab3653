"""Server and workers together, over a network that delivers in any order that MPI allows.

The coordinator, schedules, worker states, desks, encoders and decoder are the production ones; `World` stands for
the two loops and for MPI. Hypothesis chooses who holds what, and at every step which message arrives or which compute
thread goes on. Per worker, control records keep their order in both directions and so do parameters, but parameters
and control overtake each other, and vectors to the server come in any order. Workers are *deaf* (nothing
reaches them), *slow* (no chunk gets done) or *mute* (nothing of theirs arrives) for whole iterations, as long as the
others can go on; in one test they never come back. Whatever may be heard twice is, now and then. Time passes between
any two events, the server's clock goes off early, late and when nothing else can happen, and what a chunk took a worker
is any number of seconds. What must hold is asserted where it happens.
"""

import copy
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st
from refusal import refused, snapshot

from psgc.backend import Backend
from psgc.coding import coding_matrix, from_matrix, worst_condition
from psgc.config import Coding
from psgc.messages import TAIL, Kind
from psgc.plan import Plan, make_plan
from psgc.server.coordinator import Collect, Commit, Coordinator, Discard, Finish, Instruction
from psgc.server.decoder import Decoder
from psgc.server.dynamic_schedule import DynamicSchedule
from psgc.server.fixed_schedules import FixedSchedule
from psgc.server.group import Group
from psgc.server.orders import Order, Queue, Skip
from psgc.server.scheduler import make_schedule
from psgc.workers.desk import CodedGradient, Desk, Result, Work
from psgc.workers.encoder import Encoder
from psgc.workers.state import WorkerState

FIXED = ("uncoded", "full", "random", "static")  # nothing is skipped
LEARNING = "dynamic"  # skips, and takes back, whatever it likes
SCHEDULES = (*FIXED, "skipping", "reordering", LEARNING)
PACES = {"_paces", "estimates", "_last", "_surprise", "_latest", "_reports"}  # what a schedule has learnt of them stays
PATIENCE = 200  # times in a row that the schedule may wake up while nothing else can happen
SECONDS = (1.0, 0.1, 1.0, 3.0, 1.0, 0.01, 1.0, 50.0)  # that a chunk takes, and that pass between two events


class Reordering(FixedSchedule):
    """Only here: new queues at the start and after every recovery, as a schedule that learns would send them."""

    def __init__(self, queues: dict[int, list[int]]) -> None:
        super().__init__()
        self._queues = queues
        self._left: dict[int, list[int]] = {}

    def begin(self) -> list[Order]:
        super().begin()
        self._left = {worker: queue[::-1] for worker, queue in self._queues.items()}
        return [Queue(worker, tuple(left)) for worker, left in self._left.items() if left]

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        if chunk in self._left[worker]:
            self._left[worker].remove(chunk)
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        orders: list[Order] = []
        for worker in unreported:
            left = self._left[worker]
            left.remove(chunk)
            left[:] = left[1:] + left[:1]
            orders += [Skip(worker, chunk, recovered=True)] if (worker + chunk) % 2 else []
            orders += [Queue(worker, tuple(left))] if left else []
        return orders


def schedule(name: str, plan: Plan) -> FixedSchedule:
    return (
        Reordering(plan.queues)
        if name == "reordering"
        else make_schedule(name, plan.queues, plan.backups, plan.holders(), plan.parts)
    )


# what a run is made of


@dataclass(frozen=True)
class Nap:
    """A worker is deaf, slow or mute from `first` on for `length` iterations, unless nothing else can happen.

    dead: from that many steps into iteration `first` on and forever, whatever else can happen.
    """

    kind: str
    worker: int
    first: int
    length: int
    dead: int | None = None


@dataclass(frozen=True)
class Case:
    plan: Plan
    schedule: str
    combined: bool
    dim: int
    num_iterations: int
    naps: list[Nap]
    choices: bytes


CATALOGUE = [
    (name, num_workers, chunks_per_worker, replication)
    for name in ("blocks", "cyclic", "fractional", "graph")
    for num_workers in (3, 4, 6)
    for chunks_per_worker in (1, 2)
    for replication in (1, 2, 3)
    if name != "fractional" or num_workers % replication == 0
    if name != "graph" or (replication < num_workers and replication * num_workers % 2 == 0)
]


@st.composite
def catalogue_plans(draw: st.DrawFn, schedule: str) -> Plan:
    """The plans that training makes."""
    name, num_workers, chunks_per_worker, replication = draw(st.sampled_from(CATALOGUE))
    parts = draw(st.integers(1, replication))
    coding = Coding(
        assignment=name,
        chunks_per_worker=chunks_per_worker,
        replication=replication,
        parts=parts,
        coding_matrix="gaussian",
    )
    schedule = "static" if schedule == "reordering" else schedule
    return make_plan(coding, schedule, num_workers, seed=draw(st.integers(0, 3)))


@st.composite
def irregular_plans(draw: st.DrawFn, with_backups: bool) -> Plan:
    """Any chunk at any `parts` or more workers, in queues of any order; some workers may hold nothing.

    With backups, whatever a worker's own share is: nothing, everything, a chunk that others think is theirs.
    """
    num_workers = draw(st.integers(1, 5))
    parts = draw(st.integers(1, min(3, num_workers)))
    holders = draw(st.lists(st.sets(st.integers(0, num_workers - 1), min_size=parts), min_size=1, max_size=6))
    assignment = from_matrix(np.array([[j in of for j in range(num_workers)] for of in holders], int))
    queues = {j + 1: draw(st.permutations([i for i, of in enumerate(holders) if j in of])) for j in range(num_workers)}
    matrix = coding_matrix("gaussian", assignment, parts, seed=draw(st.integers(0, 9)))
    backups: dict[int, list[int]] = {}
    if with_backups:
        shares = {rank: draw(st.integers(0, len(queue))) for rank, queue in queues.items()}
        backups = {rank: queue[shares[rank] :] for rank, queue in queues.items()}
        queues = {rank: queue[: shares[rank]] for rank, queue in queues.items()}
    return Plan(assignment, queues, matrix, np.zeros(num_workers, int), backups)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(SCHEDULES) | st.just(LEARNING))
    plan = draw(catalogue_plans(name) | irregular_plans(with_backups=name == LEARNING))
    kind, worker = st.sampled_from(["deaf", "slow", "mute"]), st.integers(1, plan.num_workers)
    nap = st.builds(Nap, kind, worker, first=st.integers(0, 3), length=st.integers(1, 4))
    return Case(
        plan=plan,
        schedule=name,
        combined=draw(st.booleans()),
        dim=draw(st.integers(1, 7)),
        num_iterations=draw(st.integers(1, 5)),
        naps=draw(st.lists(nap, max_size=4)),
        choices=draw(st.binary(min_size=200, max_size=200)),
    )


# the model


class NothingToDo(Exception):
    """The compute thread would wait."""


class ImpatientState(WorkerState):
    def take(self) -> int | None:
        chunk = super().take()
        if chunk is None:
            raise NothingToDo
        return chunk


class Node:
    """One worker with everything that is under way to it and from it, and notes of what happened to it."""

    def __init__(self, case: Case, rank: int) -> None:
        self.rank = rank
        self.standing = case.plan.queues[rank]
        self.backups = case.plan.backups.get(rank, [])
        self.combined = case.combined
        self.state = ImpatientState(rank, self.standing, case.plan.num_chunks, case.combined)
        self.encoder = Encoder(Backend(), case.plan.coding_matrix, case.dim, "float64")
        self.desk = Desk(self.state, self.encoder, case.combined)
        self.params: deque[int] = deque()
        self.control: deque[tuple[Kind, int, Any]] = deque()
        self.reports: deque[tuple[Kind, int, int]] = deque()  # done and abandoned chunks
        self.vectors: list[tuple[int, int | None, np.ndarray]] = []  # chunk None: an accumulator
        self.work: Work | None = None
        self.waiting = False
        self.taken: list[int] = []  # in this iteration
        self.told: set[tuple[int, int]] = set()  # (iteration, chunk) that it need not do
        self.skipped: set[tuple[int, int]] = set()  # that it need not begin, unless it is told otherwise
        self.done = 0
        self.collected = -1
        self.early: list[tuple[Kind, int, Any]] = []
        self.gradients: list[weakref.ref[np.ndarray]] = []

    def alive(self) -> int:
        """How many gradients are still in memory."""
        self.gradients = [ref for ref in self.gradients if ref() is not None]
        return len(self.gradients)


class World:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.plan = case.plan
        self.holders = case.plan.holders()
        self.rules = schedule(case.schedule, self.plan)
        self.coordinator = Coordinator(self.group(), self.rules, case.combined)
        self.decoder = Decoder(Backend(), case.plan.coding_matrix, case.dim, "float64")
        self.nodes = [Node(case, rank) for rank in range(1, case.plan.num_workers + 1)]
        self.steps = 0
        shape = case.num_iterations, case.plan.num_chunks, case.dim
        self.table = np.random.default_rng(7).integers(-9, 10, shape).astype(float)
        self.iteration = -1
        self.finished = True
        self.now = 0.0  # since the iteration began
        self.idle = 0  # steps since anything but time could go on
        self.began = 0  # the step in which it did

    def group(self) -> Group:
        return Group(self.holders, self.plan.parts, workers=self.plan.queues)

    def choose(self, below: int) -> int:
        self.steps += 1
        return (self.case.choices[self.steps % len(self.case.choices)] + self.steps // len(self.case.choices)) % below

    # a run

    def run(self) -> None:
        for iteration in range(self.case.num_iterations):
            self.iterate(iteration)
            for _ in range(self.choose(6)):  # what was in the server's hands when the last commit came
                self.step()
            self.assert_exact()
        while self.step():
            pass
        self.assert_exact()

    def iterate(self, iteration: int) -> None:
        self.begin(iteration)
        while not self.finished:
            assert self.step(), "deadlock"
        self.assert_exact()

    def begin(self, iteration: int) -> None:
        for node in self.nodes:
            node.params.append(iteration)
        self.iteration, self.finished = iteration, False
        self.heard: set[tuple[int, int]] = set()
        self.commits: dict[int, tuple[int, ...]] = {}
        self.dropped: set[tuple[int, int]] = set()  # copies discarded or skipped
        self.collecting: set[int] = set()
        self.delivered: set[int] = set()
        self.decoder.begin()
        rules = schedule(self.case.schedule, self.plan)
        for name in PACES & vars(rules).keys():
            setattr(rules, name, copy.copy(getattr(self.rules, name)))
        self.now, self.began = 0.0, self.steps
        instructions = self.coordinator.begin(iteration)
        fresh = Coordinator(self.group(), rules, self.case.combined)
        assert fresh.begin(iteration) == instructions
        assert snapshot(fresh) == snapshot(self.coordinator), "something survived into this iteration"
        self.carry_out(instructions)

    def step(self) -> bool:
        """Let one thing happen; whether anything could."""
        assert self.steps < 20_000, "it never ends"
        able: list[tuple[Callable[[Node], None], Node]] = []
        asleep: list[tuple[Callable[[Node], None], Node]] = []
        dead: list[tuple[Callable[[Node], None], Node]] = []
        napping, gone = self.napping()
        for node in self.nodes:
            to_node, in_node, from_node = (
                dead if (kind, node.rank) in gone else asleep if (kind, node.rank) in napping else able
                for kind in ("deaf", "slow", "mute")
            )
            if node.params:
                to_node.append((self.params_arrive, node))
            if node.control:
                to_node.append((self.control_arrives, node))
            if node.work is not None:
                in_node.append((self.finish, node))
            elif not node.waiting:
                able.append((self.take, node))
            if node.reports:
                from_node.append((self.report_arrives, node))
            if node.vectors:
                from_node.append((self.vector_arrives, node))
        self.idle = 0 if able else self.idle + 1
        if self.coordinator.wake < inf and 0 < self.idle <= PATIENCE:
            self.now = max(self.now, self.coordinator.wake)
            self.tick()
            return True
        if not (able := able or asleep):
            return False
        if self.choose(3) == 0:
            self.now += SECONDS[self.choose(len(SECONDS))]
        if self.choose(8) == 0 or self.coordinator.wake <= self.now:
            self.tick()
        what, node = able[self.choose(len(able))]
        what(node)
        self.check_nothing_lost()
        live = node.alive()
        assert live == len(node.state.held), "gradients in memory and chunks held are not the same"
        if self.choose(6) == 0:
            self.misbehave(node)
        return True

    def napping(self) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
        """What does not happen now, as (kind, worker): for a while, and never again."""
        now, steps = self.iteration, self.steps - self.began
        naps = self.case.naps
        return (
            {(n.kind, n.worker) for n in naps if n.dead is None and n.first <= now < n.first + n.length},
            {(n.kind, n.worker) for n in naps if n.dead is not None and (n.first, n.dead) <= (now, steps)},
        )

    def assert_exact(self) -> None:
        expected = self.table[self.iteration].sum(axis=0)
        exactness = 1e-11 * worst_condition(self.plan.coding_matrix, self.plan.assignment)
        np.testing.assert_allclose(self.decoder.gradient, expected, rtol=0, atol=exactness * 10 * self.plan.num_chunks)
        assert self.coordinator.phase == "idle"
        assert self.commits.keys() == set(range(self.plan.num_chunks))

    # what the server's loop does

    def report_arrives(self, node: Node) -> None:
        kind, iteration, chunk = node.reports.popleft()
        if kind == Kind.ABANDONED:
            self.abandoned(node.rank, iteration, chunk)
            return
        self.report(node.rank, iteration, chunk)
        if self.choose(8) == 0:
            node.reports.append((kind, iteration, chunk))

    def vector_arrives(self, node: Node) -> None:
        iteration, chunk, vector = node.vectors.pop(self.choose(len(node.vectors)))
        received = vector.copy()
        if chunk is None:
            self.decoder.add_accumulator(node.rank, received)
            self.delivered.add(node.rank)
            instructions = self.coordinator.delivered(node.rank, iteration, node.rank)
            assert instructions is not None
            self.carry_out(instructions)
            return
        if iteration == self.coordinator.iteration and not self.coordinator.contributors(chunk):
            self.decoder.hold(node.rank, chunk, received[:-TAIL])
        received.fill(np.nan)  # the buffer is used again
        self.report(node.rank, iteration, chunk)
        if self.choose(8) == 0:
            node.vectors.append((iteration, chunk, vector))

    def report(self, worker: int, iteration: int, chunk: int) -> None:
        changes_nothing = iteration < self.iteration or self.coordinator.phase != "working"
        changes_nothing = changes_nothing or (worker, chunk) in self.heard
        before = snapshot(self.coordinator) if changes_nothing else None
        if not changes_nothing:
            self.heard.add((worker, chunk))
        seconds = SECONDS[self.choose(len(SECONDS))]
        instructions = self.coordinator.report(worker, iteration, chunk, self.now, seconds)
        if changes_nothing:
            assert instructions == []
            assert snapshot(self.coordinator) == before
        self.carry_out(instructions)
        self.check_nobody_forgotten()
        self.check_rules()

    def abandoned(self, worker: int, iteration: int, chunk: int) -> None:
        changes_nothing = iteration < self.iteration or self.coordinator.phase != "working"
        before = snapshot(self.coordinator) if changes_nothing or (worker, chunk) in self.heard else None
        seconds = SECONDS[self.choose(len(SECONDS))]
        instructions = self.coordinator.abandoned(worker, iteration, chunk, self.now, seconds)
        if before is not None:
            assert instructions == []
            assert snapshot(self.coordinator) == before
        self.carry_out(instructions)
        self.check_rules()

    def tick(self) -> None:
        working = self.coordinator.phase == "working"
        due = self.coordinator.wake <= self.now
        before = self.coordinator.wake
        instructions = self.coordinator.tick(self.now)
        assert due or not instructions, "ordered something before it was time"
        assert self.coordinator.wake > self.now if due else self.coordinator.wake == before
        assert working or (not due and before == inf)
        self.carry_out(instructions)
        self.check_rules()

    def carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            assert not self.finished, "an instruction after Finish"
            match instruction:
                case Commit(chunk, contributors, told):
                    self.check_commit(chunk, contributors)
                    assert told == tuple((worker, worker) for worker in contributors)
                    for worker, role in told if self.case.combined else ():
                        self.tell(worker, Kind.COMMIT, (chunk, list(contributors), role), chunk)
                    if not self.case.combined:
                        self.decoder.commit(chunk, contributors)
                case Discard(worker, chunk):
                    assert (worker, chunk) in self.heard
                    self.check_dropped(worker, chunk)
                    if self.case.combined:  # with per_chunk neither side keeps anything
                        self.tell(worker, Kind.DISCARD, chunk, chunk)
                case Skip(worker, chunk, recovered):
                    assert self.case.schedule not in FIXED, "this schedule skips nothing"
                    assert (worker, chunk) not in self.heard
                    assert recovered == (chunk in self.commits)
                    if recovered:
                        self.check_dropped(worker, chunk)
                    self.tell(worker, Kind.DISCARD if recovered else Kind.SKIP, chunk, chunk)
                case Queue(worker, chunks):
                    assert len(set(chunks)) == len(chunks), "told twice to do the same"
                    self.tell(worker, Kind.QUEUE, list(chunks), *chunks)
                case Collect(worker, role):
                    assert role == worker
                    assert self.commits.keys() == set(range(self.plan.num_chunks))
                    assert self.case.combined
                    assert worker not in self.collecting
                    self.collecting.add(worker)
                    self.tell(worker, Kind.COLLECT, None)
                case Finish():
                    assert self.collecting == self.delivered == self.contributors()
                    self.finished = True

    def check_commit(self, chunk: int, contributors: tuple[int, ...]) -> None:
        assert chunk not in self.commits, "committed twice"
        self.commits[chunk] = contributors
        assert len(contributors) == len(set(contributors)) == self.plan.parts
        assert set(contributors) <= set(self.holders[chunk])
        for worker in contributors:
            assert (worker, chunk) in self.heard
            assert (worker, chunk) not in self.dropped
            if self.case.schedule == "full":
                assert {(worker, own) for own in self.plan.queues[worker]} <= self.heard
        assert self.coordinator.contributors(chunk) == contributors

    def check_dropped(self, worker: int, chunk: int) -> None:
        assert worker not in self.commits[chunk]
        if (worker, chunk) in self.dropped:
            assert self.case.schedule not in FIXED, "discarded twice"
        self.dropped.add((worker, chunk))

    def check_nobody_forgotten(self) -> None:
        """Who did a chunk in vain has been told, and with `skipping` also who need not begin it."""
        for chunk, contributors in self.commits.items():
            for worker in set(self.holders[chunk]) - set(contributors):
                done = (worker, chunk) in self.heard
                if self.case.schedule == "full":
                    done = {(worker, own) for own in self.plan.queues[worker]} <= self.heard
                if done or self.case.schedule == "skipping":
                    assert (worker, chunk) in self.dropped

    def check_rules(self) -> None:
        """What a schedule that learns believes of each worker does not contradict itself."""
        it = self.rules
        if not isinstance(it, DynamicSchedule) or self.coordinator.phase != "working":
            return
        assert not it._bare
        for chunk, holders in enumerate(self.holders):
            assert it._committed[chunk] == (chunk in self.commits)
            assert it._started[chunk] == sum(chunk in it._taken[worker] for worker in holders)
        for node in self.nodes:
            told, taken, running = it._told[node.rank], it._taken[node.rank], it._running[node.rank]
            assert {*told, *taken} <= {*node.standing, *node.backups}
            assert not taken & told.keys()
            assert not any(it._committed[chunk] for chunk in told)
            assert running is None or running in taken
            assert running is not None or not told, "rests, but was told something"
            assert {chunk for worker, chunk in self.heard if worker == node.rank} <= taken
            assert node.rank not in it._chosen or len(told) == 1

    def check_nothing_lost(self) -> None:
        """What a schedule that learns counts on is what its workers are going to do, once all have heard everything."""
        it = self.rules
        if not isinstance(it, DynamicSchedule) or self.coordinator.phase != "working":
            return
        for node in self.nodes:
            if node.params or node.control or node.reports or node.vectors:
                continue
            will = {*node.state._queue}
            if node.work is not None and node.work.iteration == self.iteration:
                will.add(node.work.chunk)
            believed = {it._running[node.rank], *it._told[node.rank]} - {None, *self.commits}
            assert believed <= will, "lost"
            assert len(will - believed) <= 1, "does more than the one chunk that an order crossed"

    def contributors(self) -> set[int]:
        return set().union(*self.commits.values()) if self.case.combined else set()

    def tell(self, worker: int, kind: Kind, what: Any, *chunks: int) -> None:
        assert all(worker in self.holders[chunk] for chunk in chunks), "told of a chunk that it does not hold"
        self.nodes[worker - 1].control.append((kind, self.iteration, what))

    # what a worker's loop does

    def params_arrive(self, node: Node) -> None:
        iteration = node.params.popleft()
        node.waiting, node.taken = False, []
        still_sending = self.choose(2) == 0  # MPI may not have noticed yet that it has arrived
        node.encoder.begin(lambda old: still_sending or any(vector is old for _, _, vector in node.vectors))
        node.desk.begin(iteration, np.full(self.case.dim, float(iteration)))
        assert node.alive() == 0, "gradients of an older iteration are still in memory"
        fresh = WorkerState(node.rank, node.standing, self.plan.num_chunks, self.case.combined)
        node.early = [entry for entry in node.early if entry[1] >= iteration]
        for kind, when, what in node.early:
            {Kind.DISCARD: fresh.discard, Kind.SKIP: fresh.skip, Kind.QUEUE: fresh.queue}[kind](when, what)
        fresh.begin(iteration)
        state, expected = snapshot(node.state), snapshot(fresh)
        state.pop("_running"), expected.pop("_running")  # the compute thread may be deep inside an older chunk
        assert state == expected, "something survived into this iteration"

    def control_arrives(self, node: Node) -> None:
        kind, iteration, what = node.control.popleft()
        node.waiting = False
        if iteration > node.state.iteration:
            node.early.append((kind, iteration, what))
            event("control overtook parameters")
        match kind:
            case Kind.COMMIT:
                node.desk.commit(iteration, *what)
            case Kind.DISCARD:
                node.told.add((iteration, what))
                node.desk.discard(iteration, what)
                assert iteration != node.state.iteration or what not in node.state.held
                if self.choose(8) == 0:
                    node.control.append((kind, iteration, what))
            case Kind.SKIP:
                node.skipped.add((iteration, what))
                node.desk.skip(iteration, what)
            case Kind.QUEUE:
                node.skipped -= {(iteration, chunk) for chunk in what}
                node.desk.queue(iteration, what)
            case Kind.COLLECT:
                assert node.desk.collect(iteration, node.rank), "the server waits for this worker"
                assert node.alive() == 0, "gradients are left after the accumulator was delivered"
                node.collected = iteration
                node.vectors.append((iteration, None, node.encoder.deliver(node.rank)))

    def take(self, node: Node) -> None:
        try:
            node.work = node.desk.take()
        except NothingToDo:
            node.waiting = True
            return
        assert node.work is not None
        iteration, chunk = node.work.iteration, node.work.chunk
        assert iteration == node.state.iteration
        assert (node.work.params == iteration).all(), "parameters of another iteration"
        assert (iteration, chunk) not in node.told | node.skipped, "told not to do this chunk"
        assert iteration != node.collected
        assert chunk not in node.taken
        node.taken.append(chunk)
        if self.case.schedule not in ("reordering", LEARNING):
            passed = node.standing[: node.standing.index(chunk) + 1]
            assert node.taken == [c for c in passed if c in node.taken], "not in the standing order"
            assert {(iteration, c) for c in passed} - {(iteration, c) for c in node.taken} <= node.told
            if self.case.schedule in FIXED:
                assert node.taken == passed, "skipped a chunk"

    def finish(self, node: Node) -> None:
        work, node.work = node.work, None
        assert work is not None
        gradient = self.table[int(work.params[0]), work.chunk].copy()
        node.gradients.append(weakref.ref(gradient))
        node.done += 1
        node.desk.finished(work, Result(gradient, loss=0.0, start=0.0, seconds=1.0))
        del gradient
        (message,) = node.desk.outgoing()
        unwanted = work.iteration < node.state.iteration or work.iteration == node.collected
        unwanted = unwanted or (work.iteration, work.chunk) in node.told
        if isinstance(message, CodedGradient):
            assert not unwanted
            assert not self.case.combined
            node.vectors.append((message.iteration, message.chunk, message.vector))
            return
        (entry,) = message
        assert (entry["iteration"], entry["chunk"]) == (work.iteration, work.chunk)
        assert entry["kind"] == (Kind.ABANDONED if unwanted else Kind.REPORT)
        assert unwanted or self.case.combined
        node.reports.append((Kind(entry["kind"]), work.iteration, work.chunk))

    # what nobody may do

    def misbehave(self, node: Node) -> None:
        """One illegal event: refused, and nothing has changed."""
        illegal = list(self.illegal_at_server(node.rank) if self.choose(2) else self.illegal_at_worker(node))
        machine, do = illegal[self.choose(len(illegal))]
        with refused(machine):
            do()

    def illegal_at_server(self, worker: int) -> Iterator[tuple[Any, Callable[[], object]]]:
        it, now, chunks = self.coordinator, self.iteration, range(self.plan.num_chunks)
        yield it, lambda: it.begin(now)
        yield it, lambda: it.report(self.holders[0][0], now + 1, 0)
        yield it, lambda: it.report(self.holders[0][0], -1, 0)
        yield it, lambda: it.report(self.holders[0][0], now, 0, again=1)
        yield it, lambda: it.report(worker, now, len(chunks))
        yield it, lambda: it.report(worker, now, -1)
        yield it, lambda: it.abandoned(worker, now, len(chunks))
        yield it, lambda: it.abandoned(worker, now + 1, 0)
        yield it, lambda: it.delivered(worker, now + 1, worker)
        if it.phase != "idle":
            yield it, lambda: it.begin(now + 1)
        if it.phase != "collecting" or worker not in it.owing:
            yield it, lambda: it.delivered(worker, now, worker)
        for chunk in chunks:
            if worker not in self.holders[chunk]:
                yield it, lambda chunk=chunk: it.report(worker, now, chunk)
                yield it, lambda chunk=chunk: it.abandoned(worker, now, chunk)

    def illegal_at_worker(self, node: Node) -> Iterator[tuple[Any, Callable[[], object]]]:
        it, now = node.state, node.state.iteration
        foreign = self.plan.num_chunks
        yield it, lambda: it.begin(now)
        yield it, lambda: it.discard(now, foreign)
        yield it, lambda: it.queue(now + 1, [*node.standing, foreign])
        yield it, lambda: it.finished(now, foreign)
        yield it, lambda: it.commit(now + 1, 0, [node.rank], node.rank)
        yield it, lambda: it.collect(now + 1, node.rank)
        if not self.case.combined:
            yield it, lambda: it.collect(now, node.rank)
        if node.work is not None:
            yield it, it.take
        for chunk in (*node.standing, *node.backups):
            if chunk not in it.held:
                yield it, lambda chunk=chunk: it.commit(now, chunk, [node.rank], node.rank)


@settings(deadline=None, max_examples=400)
@given(case=cases())
def test_every_interleaving_gives_the_exact_gradient(case: Case) -> None:
    World(case).run()


@st.composite
def cases_with_the_dead(draw: st.DrawFn) -> Case:
    """Some workers are gone from some moment on, but each chunk has `parts` holders that are not."""
    case = draw(cases().filter(lambda case: case.schedule != "uncoded"))
    naps = [nap for nap in case.naps if nap.kind == "slow"] if draw(st.booleans()) else []
    gone: set[int] = set()
    for worker in draw(st.permutations(range(1, case.plan.num_workers + 1))):
        if all(len({*holders} - gone - {worker}) >= case.plan.parts for holders in case.plan.holders()):
            gone.add(worker)
            # with `combined` transfer, who has contributed must still be able to deliver
            kind = "slow" if case.combined else draw(st.sampled_from(["slow", "mute", "deaf"]))
            first = draw(st.integers(0, case.num_iterations - 1))
            naps.append(Nap(kind, worker, first, 1, dead=draw(st.integers(0, 60))))
    return replace(case, naps=naps)


@settings(deadline=None, max_examples=200)
@given(case=cases_with_the_dead())
def test_nobody_waits_for_the_dead(case: Case) -> None:
    World(case).run()


@settings(deadline=None, max_examples=40)
@given(
    plan=st.sampled_from([(4, 3, 1), (4, 3, 2), (4, 2, 1)]).map(
        lambda x: make_plan(Coding(chunks_per_worker=2, replication=x[1], parts=x[2]), "skipping", x[0], seed=0)
    ),
    name=st.sampled_from(["random", "static", "skipping", LEARNING]),
    combined=st.booleans(),
    straggler=st.integers(0, 3),
    choices=st.binary(min_size=200, max_size=200),
)
def test_a_worker_that_never_gets_through_a_chunk_is_not_waited_for(
    plan: Plan, name: str, combined: bool, straggler: int, choices: bytes
) -> None:
    """With replication > parts the others determine the gradient, whatever the straggler is stuck in."""
    case = Case(plan, name, combined, 5, 3, [Nap("slow", straggler + 1, 0, 3)], choices)
    world = World(case)
    for iteration in range(3):
        world.iterate(iteration)
        assert world.nodes[straggler].done == 0
        assert all(straggler + 1 not in contributors for contributors in world.commits.values())
