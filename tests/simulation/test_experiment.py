"""From settings to rows: the same speeds for everybody, the bound below everything, impossible trials counted."""

from dataclasses import astuple
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from psgc import coding
from psgc.coding.assignment import AssignmentKind
from psgc.config import Coding
from psgc.errors import UserError
from psgc.plan import make_plan
from psgc.schedules import SCHEDULES
from psgc.simulation import closed_form, experiment
from psgc.simulation.settings import BuiltAssignment, Settings

ALL = list(SCHEDULES)


def simulation(**changes: object) -> Settings:
    base = {
        "assignment": {"kind": "cyclic", "chunks": 12, "workers": 12, "load": 4},
        "speeds": {"kind": "exponential", "failed": "load - parts"},
        "trials": 20,
        "bound": True,
    }
    return Settings.model_validate(base | changes)


def given_speeds(directory: Path, assignment: object, seconds: object, **changes: object) -> Settings:
    """A simulation of exactly this assignment on exactly these speeds."""
    np.save(directory / "A.npy", np.asarray(assignment))
    np.save(directory / "S.npy", np.asarray(seconds, float))
    changes.setdefault("trials", len(np.asarray(seconds)))
    return simulation(
        assignment={"kind": "file", "path": str(directory / "A.npy")},
        speeds={"kind": "file", "path": str(directory / "S.npy")},
        **changes,
    )


def test_every_schedule_and_every_parts_has_its_row():
    rows = experiment.run(simulation(schedules=ALL, parts=[1, 2], deadlines=[1.0, 3.0]))
    assert [(row.parts, row.schedule) for row in rows] == [(parts, name) for parts in (1, 2) for name in ALL]
    for row in rows:
        assert len(row.mean_errors) == 2
        if row.schedule == "uncoded":
            continue
        assert row.impossible == 0
        assert row.mean_ratio >= 1
        assert row.mean_time > row.mean_bound > 0
        assert row.mean_computed >= 12 * row.parts
    times = {(row.parts, row.schedule): row.mean_time for row in rows}
    for parts in (1, 2):
        assert times[parts, "dynamic"] <= times[parts, "skipping"] < times[parts, "static"] < times[parts, "full"]


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    changes = {"schedules": ALL, "known_speeds": 0.1, "assignment": {"kind": "graph"} | SQUARE}
    first = experiment.run(simulation(**changes))
    assert experiment.run(simulation(**changes)) == first
    assert experiment.run(simulation(**changes, seed=1))[2].mean_time != first[2].mean_time


SQUARE = {"chunks": 12, "workers": 12, "load": 4}


@pytest.mark.parametrize("name", [*coding.ASSIGNMENTS, "reversed"])
def test_assignments_are_those_of_their_names(name, monkeypatch):
    """Also one that nothing but the registry knows of."""
    if name == "reversed":
        kind = AssignmentKind(lambda *numbers: coding.from_matrix(coding.blocks(*numbers).toarray()[:, ::-1]))
        monkeypatch.setitem(coding.ASSIGNMENTS, name, kind)
    assignment = BuiltAssignment(kind=name, **SQUARE)
    (row,) = experiment.run(simulation(assignment=assignment, schedules=["static"], seed=5, speeds=PLAIN))
    seconds = np.random.default_rng([5, 0]).exponential(size=(20, 12))
    built = coding.ASSIGNMENTS[name].make(12, 12, 4, 5)
    times = closed_form.completion_times(coding.ordering(built), 1, seconds)
    assert (row.mean_time, row.std_time) == pytest.approx((times.mean(), times.std()))
    plan = make_plan(Coding(assignment=name, chunks_per_worker=1, replication=4), "static", 12, seed=5)
    assert (plan.assignment != built).nnz == 0


PLAIN = {"kind": "exponential"}


def test_known_numbers(tmp_path):
    """Two workers hold both chunks; the second is slower, then dead."""
    settings = given_speeds(tmp_path, [[1, 1], [1, 1]], [[1.0, 1.9], [1.0, np.inf]], schedules=["uncoded", "static"])
    uncoded, static = experiment.run(settings)
    assert (uncoded.impossible, static.impossible) == (1, 0)
    assert (uncoded.mean_time, uncoded.std_time, uncoded.mean_bound, uncoded.mean_ratio) == (1.9, 0.0, 1.9, 1.0)
    assert (static.mean_time, static.mean_bound, static.mean_ratio) == pytest.approx((1.95, 1.95, 1.0))
    assert static.mean_computed == 2.0


def test_a_clock_rounds_times_and_bounds(tmp_path):
    settings = given_speeds(tmp_path, [[1, 1], [1, 1]], [[1.0, 1.9]], schedules=["static", "dynamic"], clock=0.75)
    for row in experiment.run(settings):
        assert (row.mean_time, row.mean_bound, row.mean_ratio) == (2.25, 2.25, 1.0)


def test_trials_that_cannot_recover_are_counted_and_not_averaged(tmp_path):
    inf = np.inf
    seconds = [[1.0, 2.0, inf], [inf, inf, 1.0], [1.0, 1.0, 1.0]]
    settings = given_speeds(tmp_path, np.ones((3, 3), int), seconds, schedules=ALL, parts=[2], deadlines=[100.0])
    for row in experiment.run(settings):
        assert row.impossible == (2 if row.schedule == "uncoded" else 1)
        assert row.mean_time < 10
        assert row.mean_ratio >= 1
        if row.schedule == "static":
            assert row.mean_errors == pytest.approx([np.sqrt(3) / 3])  # errors are over all trials


def test_steps_are_as_many_as_announced():
    settings, seen = simulation(parts=[1, 2], schedules=ALL, trials=3), []
    experiment.run(settings, seen.append)
    assert len(seen) == experiment.steps(settings) == 2 * 3 * 3
    assert seen[0] == "bound, l = 1"
    assert seen[-1] == "dynamic, l = 2"


@pytest.mark.parametrize("pass_cost", [0.0, 0.75])
def test_where_a_pass_costs_something_a_share_is_done_in_one_and_other_chunks_one_by_one(tmp_path, pass_cost):
    """T* counts one pass for each worker."""
    chunks, seconds = np.ones((4, 2)), [[1.0, 2.0]] * 3
    settings = given_speeds(tmp_path, chunks, seconds, schedules=["uncoded", "static"], bound=True, pass_cost=pass_cost)
    uncoded, static = experiment.simulate(settings)
    assert uncoded.times.tolist() == [(2 + pass_cost) * 2.0] * 3
    assert static.times.tolist() == [3 * (1 + pass_cost)] * 3  # three of the four by the faster one
    assert uncoded.bounds.tolist() == [coding.clairvoyant_bound(chunks, 1, [1.0, 2.0], pass_cost)] * 3


@pytest.mark.parametrize("consecutive", [False, True])
def test_in_consecutive_trials_the_schedule_learns(tmp_path, consecutive):
    settings = given_speeds(
        *(tmp_path, np.ones((16, 2)), [[1.0, 4.0]] * 6),
        schedules=["dynamic"],
        pass_cost=1.0,
        consecutive=consecutive,
    )
    (trials,) = experiment.simulate(settings)
    assert (trials.times[-1] < 0.8 * trials.times[0]) == consecutive


def test_consecutive_trials_go_on_after_one_that_cannot_recover():
    few = {"kind": "cyclic", "chunks": 4, "workers": 4, "load": 2}
    changes = {"assignment": few, "speeds": {"kind": "exponential", "failed": 2}, "schedules": ["skipping", "dynamic"]}
    alone, consecutive = (experiment.run(simulation(**changes, consecutive=both)) for both in (False, True))
    assert [row.impossible for row in consecutive] == [row.impossible for row in alone]
    assert 0 < alone[0].impossible < 20


def test_what_was_learnt_outlasts_a_trial_that_cannot_recover(tmp_path):
    seconds = [[1.0, 4.0]] * 6 + [[np.inf, np.inf]] + [[1.0, 4.0]]
    changes = {"schedules": ["dynamic"], "pass_cost": 1.0, "bound": False, "consecutive": True}
    (trials,) = experiment.simulate(given_speeds(tmp_path, np.ones((16, 2)), seconds, **changes))
    assert trials.times[6] == np.inf
    assert trials.times[7] < 0.8 * trials.times[0]


def test_original_gradient_coding_is_approximated_by_least_squares_where_the_paper_does():
    settings = simulation(parts=[1, 2], schedules=["full"], deadlines=[4.0], speeds=PLAIN)
    one, two = experiment.run(settings)
    seconds = np.random.default_rng([0, 0]).exponential(size=(20, 12))
    assignment = coding.cyclic(12, 12, 4)
    expected = closed_form.least_squares_errors(assignment, seconds, [4.0]).mean()
    assert one.mean_errors == pytest.approx([expected])
    whole_loads = coding.positions(coding.queues(coding.ordering(assignment)), 12, whole_loads=True)
    counted = closed_form.error_measures(whole_loads, 2, seconds, [4.0]).mean()
    assert two.mean_errors == pytest.approx([counted])


def test_a_worker_of_full_has_sent_nothing_at_a_deadline_before_it_has_done_its_whole_load():
    """Also where passes cost something, which has no closed form."""
    (row,) = experiment.run(simulation(schedules=["full"], deadlines=[2.0, 4.0], speeds=PLAIN, pass_cost=0.0))
    seconds = np.random.default_rng([0, 0]).exponential(size=(20, 12))
    whole_loads = coding.positions(coding.queues(coding.ordering(coding.cyclic(12, 12, 4))), 12, whole_loads=True)
    expected = closed_form.error_measures(whole_loads, 1, seconds, [2.0, 4.0]).mean(axis=0)
    assert row.mean_errors == pytest.approx(expected.tolist())


def test_a_clock_rounds_no_errors_at_deadlines():
    """Those of schedules with a closed form and of others are to be compared."""
    changes = {"schedules": ["static", "skipping"], "deadlines": [1.5], "speeds": PLAIN}
    with_clock = experiment.run(simulation(**changes, clock=1.0))
    for row, rounded in zip(experiment.run(simulation(**changes)), with_clock, strict=True):
        assert rounded.mean_errors == row.mean_errors
        assert rounded.mean_time > row.mean_time


# what every schedule owes, on anything


@st.composite
def live_clusters(draw):
    """(matrix, seconds, parts): any assignment in which every chunk keeps `parts` live holders."""
    n, m, trials = draw(st.integers(1, 10)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    parts = draw(st.integers(1, m))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    seconds = rng.choice([0.5, 1.0, 1.0, 3.0], (trials, m)) * rng.choice([1.0, rng.random() + 0.1], (trials, m))
    dead = rng.permutation(m)[: draw(st.integers(0, m - parts))]
    seconds[:, dead] = np.inf
    matrix = rng.random((n, m)) < draw(st.sampled_from([0.2, 0.6]))
    alive = np.setdiff1d(np.arange(m), dead)
    for row in matrix:
        row[rng.permutation(alive)[:parts]] = True
    return matrix.astype(int), seconds, parts


@hypothesis_settings(max_examples=40, deadline=None)
@given(live_clusters(), st.sampled_from(["static", "full"]))
def test_the_production_code_on_a_virtual_clock_agrees_with_the_closed_forms(tmp_path_factory, cluster, schedule):
    matrix, seconds, parts = cluster
    seconds = seconds * np.random.default_rng(0).uniform(1, 1.001, seconds.shape)  # no two events at once
    deadlines = [0.5, 1.5, 4.0] if schedule == "static" else []  # the errors of `full` are least squares
    directory = tmp_path_factory.getbasetemp()
    settings = given_speeds(directory, matrix, seconds, parts=[parts], deadlines=deadlines, schedules=[schedule])
    (closed,) = experiment.simulate(settings)
    with mock.patch.object(SCHEDULES[schedule], "keeps_queues", False):
        (on_clock,) = experiment.simulate(settings)
    for one, other in zip(astuple(on_clock), astuple(closed), strict=True):
        assert one == (other if isinstance(one, str) else pytest.approx(other, rel=1e-9))


# bad input


def refusal(settings: Settings) -> str:
    with pytest.raises(UserError) as caught:
        experiment.run(settings)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parts": [1, 5]}, "parts is 5, but chunk 0 is held by only 4 workers"),
        ({"speeds": {"kind": "exponential", "failed": 12}}, "failed is 12; with 12 workers it must be"),
        ({"assignment": {"kind": "blocks", "chunks": 24, "workers": 12, "load": 5}}, "assignment: load 5 x 12 workers"),
        ({"assignment": {"kind": "graph", "chunks": 12, "workers": 12, "load": 12}}, "graph: replication 12"),
        (
            {"assignment": {"kind": "cyclic", "chunks": 12, "workers": 12, "load": 13}},
            "load 13 is larger than the number of chunks 12",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other(changes, said):
    assert said in refusal(simulation(**changes))


def test_failures_by_the_load_need_one_load(tmp_path):
    settings = given_speeds(tmp_path, [[1, 1], [0, 1]], [[1, 1]])
    uneven = {"assignment": settings.assignment.model_dump(), "speeds": {"kind": "exponential", "failed": "load - 1"}}
    assert "speeds.failed is 'load - 1', but in this assignment workers hold 1 to 2" in refusal(simulation(**uneven))
