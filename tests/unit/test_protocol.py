"""Server and workers together: every interleaving, death, silence and return that Hypothesis thinks of.

`tests.simulation.replicated` says what can happen and what must hold; here is who chooses. Every whole state is
compared, and now and then somebody does what nobody may.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.coding import coding_matrix, from_matrix
from psgc.config import Coding
from psgc.plan import Plan, make_plan
from psgc.server.events import Abandoned, Begin, Event, Lost, Report, Summed
from tests.simulation.case import Case, Fault, Nap
from tests.simulation.node import Node
from tests.simulation.replicated import ReplicatedWorld
from tests.simulation.schedules import SCHEDULES
from tests.simulation.world import STEPS
from tests.unit.kept import held_chunks
from tests.unit.refusal import refused

KINDS = st.sampled_from(["deaf", "slow", "mute"])
LEARNING = "dynamic"  # skips, and takes back, whatever it likes

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
    nap = st.builds(Nap, KINDS, st.integers(1, plan.num_workers), first=st.integers(0, 3), length=st.integers(1, 4))
    return Case(
        plan=plan,
        schedule=name,
        combined=draw(st.booleans()),
        dim=draw(st.integers(1, 7)),
        num_iterations=draw(st.integers(1, 5)),
        naps=draw(st.lists(nap, max_size=4)),
        choices=Random(draw(st.integers(0, 1 << 32))).randbytes(997),
    )


class Unruly(ReplicatedWorld):
    """Now and then an illegal event: refused, and nothing has changed.

    Nobody hangs for ever: rank 0 rightly waits for the only worker that has a chunk and says that it lives.
    """

    def step(self) -> list[Any]:
        if self.idle > STEPS // 2:
            self.naps.clear()
        messages = super().step()
        if self.choose(6) == 0:
            node = self.nodes[1 + self.choose(len(self.nodes))]
            illegal = list(self.illegal_at_server(node.rank) if self.choose(2) else self.illegal_at_worker(node))
            machine, do = illegal[self.choose(len(illegal))]
            with refused(machine):
                do()
        return messages

    def illegal_at_server(self, worker: int) -> Iterator[tuple[Any, Callable[[], object]]]:
        it = self.watch.it
        if it.phase != "idle":
            yield it, lambda: it.rebalance(it.membership, self.watch.schedule)
        for event in self.illegal_events(worker):
            yield it, lambda event=event: it.handle(event)

    def illegal_events(self, worker: int) -> Iterator[Event]:
        it, now, num_chunks = self.watch.it, self.watch.it.iteration, self.plan.num_chunks
        yield from (Begin(now), Report(1, now + 1, 0), Report(1, -1, 0), Report(0, now, 0))
        for event in (Report, Abandoned):
            yield from (event(worker, now, num_chunks), event(worker, now, -1), event(worker, now + 1, 0))
        yield Lost(len(self.nodes) + 1)
        if worker not in it.membership.live:
            yield Lost(worker)
            return
        if it.phase != "idle":
            yield Begin(now + 1)
        if not self.watch.shared:
            yield Summed()
        for chunk in range(num_chunks):
            attempt = self.watch.attempts[chunk] + 1 if worker in it.membership.holders[chunk] else 0
            yield Report(worker, now, chunk, attempt=attempt)
            yield Abandoned(worker, now, chunk, attempt=attempt)

    def illegal_at_worker(self, node: Node) -> Iterator[tuple[Any, Callable[[], object]]]:
        it, now = node.state, node.state.iteration
        foreign = self.plan.num_chunks
        yield it, lambda: it.begin(now)
        for do in (it.discard, it.skip, it.next):
            yield it, lambda do=do: do(now, foreign)
        for do in (it.reassign, it.invalidate):
            yield it, lambda do=do: do(now, foreign, 1)
        for do in (it.queue, it.default_queue):
            yield it, lambda do=do: do(now + 1, [0, foreign])
        yield it, lambda: it.finished(now, foreign)
        yield it, lambda: it.commit(now + 1, 0)
        if node.work is not None:
            yield it, it.take
        for chunk in range(foreign):
            if chunk not in held_chunks(it):
                yield it, lambda chunk=chunk: it.commit(now, chunk)


@settings(deadline=None, max_examples=12)
@given(case=cases())
def test_every_interleaving_gives_the_exact_gradient(case: Case) -> None:
    world = Unruly(case, thorough=True)
    world.run()
    assert (world.counts["iterations"], world.counts["lost"]) == (case.num_iterations, 0)


class Ending(ReplicatedWorld):
    """Nobody is given up, however long it takes; after the last step, for which rank 0 waits, all are awake."""

    def step(self) -> list[Any]:
        if self.rank_0.steps == self.case.num_iterations:
            self.naps.clear()
        return super().step()


@st.composite
def cases_with_the_dead(draw: st.DrawFn) -> Case:
    """Some workers are gone from some moment on, but each chunk has `parts` holders that are not."""
    case = draw(cases().filter(lambda case: case.schedule != "uncoded"))
    naps = [nap for nap in case.naps if nap.kind == "slow"] if draw(st.booleans()) else []
    gone: set[int] = set()
    for worker in draw(st.permutations(range(1, case.plan.num_workers + 1))):
        if all(len({*holders} - gone - {worker}) >= case.plan.parts for holders in case.plan.holders()):
            gone.add(worker)
            # with `combined`, who has contributed must still send it; before the first iteration all are given a state
            is_slow = case.combined or case.num_iterations == 1 or draw(st.booleans())
            kind = "slow" if is_slow else draw(st.sampled_from(["mute", "deaf"]))
            first = draw(st.integers(0 if is_slow else 1, case.num_iterations - 1))
            naps.append(Nap(kind, worker, first, 99, draw(st.integers(0, 60)), stubborn=True))
    return replace(case, naps=naps)


@settings(deadline=None, max_examples=18)
@given(case=cases_with_the_dead())
def test_nobody_waits_for_the_dead(case: Case) -> None:
    world = Ending(case, thorough=True)
    world.run()
    assert (world.counts["iterations"], world.counts["lost"]) == (case.num_iterations, 0)


def _fits_its_schedule(case: Case) -> bool:
    """With `uncoded` nobody holds what is not in its queue (`psgc.plan.make_plan`): nobody else is asked for it."""
    return case.schedule != "uncoded" or all(len(holders) == case.plan.parts for holders in case.plan.holders())


@st.composite
def cases_with_faults(draw: st.DrawFn) -> Case:
    """Deaths, silences long and short, false alarms and failures, of anybody."""
    case = draw(cases().filter(_fits_its_schedule))
    worker, first, after = st.integers(1, case.plan.num_workers), st.integers(0, 4), st.integers(0, 150)
    kind = st.sampled_from(["dies", "cut off", "raises"])
    faults = draw(st.lists(st.builds(Fault, kind, worker, first, after), max_size=5))
    nap = st.builds(Nap, KINDS, worker, first, st.integers(1, 3), after, stubborn=st.just(True))
    return replace(
        case,
        naps=[*case.naps, *draw(st.lists(nap, max_size=2))],
        faults=sorted(faults, key=lambda fault: (fault.first, fault.after)),
        reassigning=draw(st.sampled_from([True, True, False])),
        timeout=30.0,
    )


@settings(deadline=None, max_examples=18)
@given(case=cases_with_faults())
def test_whoever_is_lost_or_returns_every_gradient_is_exact_until_too_few_are_left(case: Case) -> None:
    world = Unruly(case, thorough=True)
    world.run()
    assert world.counts["iterations"] == case.num_iterations or world.counts["stopped with too few workers"] == 1
