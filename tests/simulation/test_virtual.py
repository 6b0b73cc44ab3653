"""The production protocol on a virtual clock: against the closed forms, against T*, and against everything at once."""

from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc import coding
from psgc.config import Coding
from psgc.plan import Plan, default_queues, make_plan
from psgc.schedules import SCHEDULES
from psgc.simulation import closed_form
from psgc.simulation.virtual import Passes, Simulated, VirtualCluster
from tests.unit.small_assignments import shuffled

ALL = list(SCHEDULES)


def cluster(name: str, plan: Plan) -> VirtualCluster:
    rules = SCHEDULES[name](plan.queues, plan.backups, plan.holders(), plan.parts)
    return VirtualCluster(plan.holders(), plan.queues, plan.parts, rules)


def by_rank(seconds: list[float]) -> dict[int, float]:
    return dict(enumerate(seconds, start=1))


@dataclass(frozen=True)
class Case:
    """An assignment in any order, what its workers take for a chunk in each iteration, and what is believed of them."""

    name: str
    plan: Plan
    seconds: list[list[float]]
    believed: list[float] | None = None

    def run(self) -> list[Simulated]:
        """Until the first iteration that cannot recover."""
        virtual, trials = cluster(self.name, self.plan), []
        if self.believed is not None:
            virtual.know(by_rank(self.believed))
        for seconds in self.seconds:
            trials.append(virtual.recover(by_rank(seconds)))
            if trials[-1].time == inf:
                break
        return trials


@st.composite
def cases(draw: st.DrawFn, names: list[str]) -> Case:
    name = draw(st.sampled_from(names))
    m = draw(st.integers(1, 6))
    parts = draw(st.integers(1, min(3, m)))
    holders = draw(st.lists(st.sets(st.integers(0, m - 1), min_size=parts), min_size=1, max_size=9))
    assignment = coding.from_matrix(np.array([[j in of for j in range(m)] for of in holders], int))
    ordering = shuffled(assignment, draw(st.integers(0, 9)))
    primary = coding.primary_copies(assignment, ordering, parts)
    if name == "uncoded":
        assignment, ordering = primary, shuffled(primary, 0)
    queues, backups = by_rank(coding.queues(ordering)), {}
    if name == "dynamic" and draw(st.booleans()):
        queues, backups = default_queues(name, ordering, primary, 0, range(1, m + 1))
    elif name == "dynamic":  # any other share
        kept = {rank: draw(st.integers(0, len(queue))) for rank, queue in queues.items()}
        backups = {rank: queue[kept[rank] :] for rank, queue in queues.items()}
        queues = {rank: queue[: kept[rank]] for rank, queue in queues.items()}
    plan = Plan(assignment, queues, np.ones((m, parts)), np.zeros(m, int), backups)
    times = st.integers(1, 40).map(lambda quarters: quarters / 4) | st.floats(1e-3, 1e3)
    gone = draw(st.sets(st.integers(0, m - 1), max_size=draw(st.sampled_from([0, 1, m]))))
    seconds = [[inf if j in gone else draw(times) for j in range(m)] for _ in range(draw(st.integers(1, 4)))]
    known = draw(st.booleans())
    believed = [draw(times) if j not in gone or draw(st.booleans()) else inf for j in range(m)] if known else None
    return Case(name, plan, seconds, believed)


@settings(deadline=None, max_examples=35)
@given(case=cases(["full", "random", "static"]))
def test_schedules_that_never_look_are_as_in_closed_form(case):
    queues = [*case.plan.queues.values()]
    positions = coding.positions(queues, case.plan.num_chunks, SCHEDULES[case.name].counts_whole_loads)
    trials = case.run()
    seconds = np.array(case.seconds[: len(trials)])
    expected = closed_form.completion_times(positions, case.plan.parts, seconds)
    np.testing.assert_allclose([trial.time for trial in trials], expected, rtol=1e-12)
    if (np.where(seconds < inf, seconds, 1) * 4 % 1 == 0).all():  # then sums are exact, and ties are ties
        assert [trial.time for trial in trials] == expected.tolist()
        most = closed_form.copies_computed(positions, seconds, expected)
        assert all(trial.computed <= copies for trial, copies in zip(trials, most, strict=True))


@settings(deadline=None, max_examples=35)
@given(case=cases(ALL) | cases(["dynamic"]))
def test_every_schedule_recovers_when_it_can_and_none_beats_the_bound(case):
    trials = case.run()
    for trial, seconds in zip(trials, case.seconds, strict=False):
        bound = coding.clairvoyant_bound(case.plan.assignment, case.plan.parts, seconds)
        alive = [sum(seconds[rank - 1] < inf for rank in of) for of in case.plan.holders()]
        assert (bound < inf) == (min(alive) >= case.plan.parts)
        assert (trial.time < inf) == (bound < inf)
        assert trial.time >= bound * (1 - 1e-9)
        held = sum(map(len, case.plan.holders()))
        assert trial.computed <= held
        if trial.time < inf:
            needed = case.plan.num_chunks * case.plan.parts
            assert held >= trial.computed >= trial.reported >= needed
            assert 0 < trial.used <= trial.spent * (1 + 1e-9)
            assert trial.spent <= trial.time * case.plan.num_workers * (1 + 1e-9)
            assert case.plan.parts <= trial.contributors <= case.plan.num_workers


def test_costs_pauses_and_work_that_is_not_broken_off():
    """Two workers in opposite orders; the second is in a chunk of 6 seconds when the first has done both."""
    plan = Plan(coding.from_matrix(np.ones((2, 2))), {1: [0, 1], 2: [1, 0]}, np.ones((2, 1)), np.ones(2))
    rules = SCHEDULES["static"](plan.queues)
    virtual = VirtualCluster(
        plan.holders(), plan.queues, 1, rules, costs=[0.5, 1.5], breaks_off=False, passes=Passes(pause=0.25)
    )
    first, second = virtual.recover({1: 2.0, 2: 4.0}), virtual.recover({1: 2.0, 2: 0.5})
    assert first == Simulated(
        1.25 + 3.25, 2, (1.25, 4.5), spent=1 + 3 + 6, used=4, reported=2, contributors=1, passes=2
    )
    # the second worker is through with its old chunk after 1.75 s, and then does chunk 1 in 0.75 + 0.25 s
    assert second.passes == 2
    assert replace(second, passes=0) == Simulated(
        2.75, 2, (1.25, 2.75), spent=1 + 3 + 0.75 + 0.25, used=1.75, reported=2, contributors=2
    )


@settings(deadline=None, max_examples=25)
@given(case=cases(["dynamic", "skipping"]), scale=st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_same_again_is_the_same_and_a_slower_clock_changes_nothing(case, scale):
    trials = case.run()
    assert case.run() == trials
    believed = None if case.believed is None else [scale * second for second in case.believed]
    seconds = [[scale * second for second in of] for of in case.seconds]
    scaled = replace(case, seconds=seconds, believed=believed).run()
    assert scaled == [
        replace(
            trial,
            time=scale * trial.time,
            useful=tuple(scale * when for when in trial.useful),
            spent=scale * trial.spent,
            used=scale * trial.used,
        )
        for trial in trials
    ]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("second", [1.0, 0.1, 1 / 3])
@pytest.mark.parametrize(("parts", "replication"), [(1, 3), (2, 3), (3, 3)])
@pytest.mark.parametrize("assignment", ["blocks", "cyclic", "fractional"])
@pytest.mark.parametrize(("name", "workers"), [("static", 6), ("skipping", 6), ("dynamic", 6), ("dynamic", 15)])
def test_nothing_is_redundant_when_nobody_straggles(name, workers, assignment, parts, replication, second, known):
    shape = {"chunks_per_worker": 8, "replication": replication, "assignment": assignment, "parts": parts}
    plan = make_plan(Coding(**shape, coding_matrix="gaussian"), name, workers, seed=0)
    virtual = cluster(name, plan)
    if known:
        virtual.know(dict.fromkeys(plan.queues, second))
    for _ in range(3):
        trial = virtual.recover(dict.fromkeys(plan.queues, second))
        assert trial.time == pytest.approx(8 * parts * second)
        assert trial.computed == 8 * workers * parts


def test_a_worker_that_changes_speed_is_followed():
    """Four times slower from one iteration on: the first of them is late, the later ones know."""
    plan = make_plan(Coding(chunks_per_worker=8, replication=3), "dynamic", 4, seed=0)
    rules = SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1)
    virtual = VirtualCluster(plan.holders(), plan.queues, 1, rules)
    before, after = by_rank([1.0, 1.0, 1.0, 1.0]), by_rank([1.0, 1.0, 1.0, 4.0])
    bound = coding.clairvoyant_bound(plan.assignment, 1, list(after.values()))
    for _ in range(2):
        virtual.recover(before)
    times = [virtual.recover(after).time for _ in range(4)]
    assert max(times) <= 1.2 * bound < 32  # what the straggler would take for its own share
    assert rules.estimates[1] == 1.0
    assert rules.estimates[4] > 3.5
    assert times[-1] <= times[0]


@pytest.mark.parametrize("passes", [Passes(), Passes(joins=True, cost=0.3)])
def test_a_slow_start_is_no_reason_to_leave_a_worker_without_work_for_ever(passes):
    """One chunk each. Three begin slowly, so the fourth does three chunks before they have done one."""
    plan = make_plan(Coding(chunks_per_worker=1, replication=3), "dynamic", 4, seed=0)
    rules = SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1)
    virtual = VirtualCluster(plan.holders(), plan.queues, 1, rules, breaks_off=False, passes=passes)
    second = 1.0 + passes.cost
    virtual.recover(by_rank([50.0, 60.0, 55.0, 1.0]))
    times = [virtual.recover(by_rank([1.0] * 4)).time for _ in range(60)]
    assert max(times[:5]) <= 3 * second
    assert times[-30:] == pytest.approx([second] * 30)


@pytest.mark.parametrize("factor", [3.2, 6.0])
def test_a_worker_that_stays_slow_delays_nobody_when_it_is_tried_again(factor):
    plan = make_plan(Coding(chunks_per_worker=4, replication=3), "dynamic", 4, seed=0)
    rules = SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1)
    virtual = VirtualCluster(plan.holders(), plan.queues, 1, rules, breaks_off=False)
    times = [virtual.recover(by_rank([factor, 1.0, 1.0, 1.0])).time for _ in range(100)]
    assert max(times[5:]) == min(times[5:])
