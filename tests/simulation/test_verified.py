"""Copies that are compared in the simulated world: random schedules of losses, delays and wrong copies."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.config import Coding, Verify
from psgc.plan import make_plan
from psgc.server import decoder
from psgc.server.cluster import Cluster
from psgc.server.disputes import Disputes
from psgc.server.events import Compared
from psgc.server.idle import PassDigests
from tests.simulation import faults
from tests.simulation.case import Case, Fault, Nap
from tests.simulation.replicated import ReplicatedWorld
from tests.simulation.schedules import SCHEDULES
from tests.unit.refusal import refused


def counts_of(said):
    return {what: int(count) for count, what in (line.split(None, 1) for line in said.splitlines()[1:-1])}


def test_no_wrong_copy_passes_and_nobody_right_is_named(capsys):
    assert faults.main(["--verify", "--schedules", "24", "--seed", "200000"]) == 0
    counts = counts_of(capsys.readouterr().out)
    usual = {"wrong", "disputed", "taken back", "reassigned", "deaths", "approximate", "invalidated"}
    assert min(counts[what] for what in usual) > 0


def test_a_chunk_with_a_single_planned_holder_is_done_by_its_second_one_when_that_holder_dies_at_once():
    """With `verify` another worker holds it from the beginning. The settings refuse such an assignment, too."""
    assert faults.run(945000, verify=True, pieces=True)["deaths"] == 1


def test_the_same_when_workers_sum_among_themselves(capsys):
    """Sketches are compared, and copies that were shown right may be lost after that."""
    assert faults.main(["--verify", "--allreduce", "--schedules", "12", "--seed", "200000"]) == 0
    counts = counts_of(capsys.readouterr().out)
    assert {"wrong", "disputed", "reassigned", "deaths", "approximate", "invalidated", "states"} <= counts.keys()


def test_digests_show_errors_before_the_step_or_say_that_it_was_made(capsys):
    assert faults.main(["--verify", "--idle", "--schedules", "15", "--seed", "700"]) == 0
    counts = counts_of(capsys.readouterr().out)
    assert {"taken out", "unused", "doubts", "repeated at once", "checks", "deaths", "invalidated"} <= counts.keys()


@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (Disputes, "hold_up", lambda *_: False),
        (PassDigests, "errors", lambda *_: []),
    ],
)
def test_a_defect_of_comparing_digests_is_found(monkeypatch, where, name, wrong):
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        any(faults.run(seed, verify=True, idle=True) is None for seed in range(700, 800))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Of each chunk as many copies are wrong as leave parts + 1 right ones, and anything may happen to anybody."""
    schedule = draw(st.sampled_from([name for name in SCHEDULES if name != "uncoded"]))
    workers, parts = draw(st.sampled_from([(3, 1), (4, 1), (5, 1), (4, 2), (6, 2), (5, 3)]))
    replication = draw(st.integers(parts + 1, workers))
    coding = Coding(
        assignment="blocks",
        chunks_per_worker=draw(st.integers(1, 2)),
        replication=replication,
        parts=parts,
        coding_matrix="gaussian",
    )
    plan = make_plan(coding, "static" if schedule == "reordering" else schedule, workers, seed=0)
    iterations = draw(st.integers(1, 3))
    wrong = [
        (iteration, chunk, worker)
        for iteration in range(iterations)
        for chunk, holders in enumerate(plan.holders())
        for worker in draw(st.permutations(holders))[: draw(st.integers(0, replication - parts - 1))]
    ]
    worker, first, after = st.integers(1, workers), st.integers(0, 2), st.integers(0, 150)
    kind = st.sampled_from(["dies", "cut off", "raises"])
    nap = st.sampled_from(["deaf", "slow", "mute"])
    faults = draw(st.lists(st.builds(Fault, kind, worker, first, after), max_size=3))
    return Case(
        plan=plan,
        schedule=schedule,
        combined=parts == 1 and draw(st.booleans()),
        dim=draw(st.integers(1, 7)),
        num_iterations=iterations,
        naps=draw(st.lists(st.builds(Nap, nap, worker, first, st.integers(1, 3), after, st.booleans()), max_size=3)),
        choices=Random(draw(st.integers(0, 1 << 32))).randbytes(997),
        faults=sorted(faults, key=lambda fault: (fault.first, fault.after)),
        reassigning=draw(st.sampled_from([True, True, False])),
        timeout=30.0,
        verify=Verify(every=draw(st.sampled_from([1, 1, 2, 3])), strikes=draw(st.sampled_from([1, 3, 99]))),
        wrong=wrong,
    )


class Unruly(ReplicatedWorld):
    """Now and then an answer to a comparison that nobody asked for: refused, and nothing has changed."""

    def step(self) -> list[Any]:
        messages = super().step()
        if self.choose(6) == 0:
            it = self.server.coordinator
            chunk = self.choose(self.plan.num_chunks)
            with refused(it):
                it.handle(Compared(chunk, [1, 2][: 2 * self.choose(2)]))
        return messages


@settings(deadline=None, max_examples=15)
@given(case=cases())
def test_every_gradient_is_the_sum_of_right_copies_whoever_is_lost_or_wrong(case: Case) -> None:
    world = Unruly(case)
    world.run()
    assert world.counts["iterations"] == case.num_iterations or world.counts["stopped with too few workers"] == 1


@pytest.mark.parametrize("blind", ["everything agrees", "the first are right"])
def test_what_would_be_wrong_is_found(monkeypatch, blind):
    def first(rows, copies, _):
        return tuple(range(len(copies) if blind == "everything agrees" else rows.shape[1] + 1))

    monkeypatch.setattr(decoder, "agreeing", first)
    with pytest.raises(AssertionError):
        any(faults.run(seed, verify=True) is None for seed in range(50))


DUE = Cluster.due
SHARED_DEFECTS = [
    (decoder, "agreeing_sketches", lambda sketches, _: tuple(range(len(sketches))), "wrong, and not named"),
    (Cluster, "due", lambda *it: [due for due in DUE(*it) if not due[2]], "a corrupt worker takes part"),
]


@pytest.mark.parametrize(("where", "name", "wrong", "found"), SHARED_DEFECTS)
def test_a_defect_of_comparing_sketches_is_found(monkeypatch, where, name, wrong, found):
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError, match=found):
        any(faults.run(seed, verify=True, allreduce=True) is None for seed in range(100))


def test_who_is_given_a_disputed_chunk_does_it_although_another_worker_is_lost_meanwhile():
    """Once nobody did: the schedule had forgotten that the worker held the chunk."""
    assert faults.run(50157, verify=True)["iterations"] == 5
