"""Chunks that differ while workers do not: what every schedule takes over the mean of all work."""

from pathlib import Path

import numpy as np
import pytest

from psgc.config import Coding
from psgc.errors import UserError
from psgc.plan import make_plan
from psgc.schedules import SCHEDULES
from psgc.simulation import experiment
from psgc.simulation.settings import Settings
from psgc.simulation.virtual import VirtualCluster

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "llm-sequence-imbalance.npy"
measured = pytest.mark.skipif(not TRACE.exists(), reason=f"no {TRACE.name} beside the repository")


def ratios(path, split=1, load=24, costs="unknown", workers=32, chunks=8, trials=20, **changes):
    """T over the mean of all work, by schedule."""
    settings = {
        "assignment": {"kind": "blocks", "chunks": workers * chunks * split, "workers": workers, "load": load * split},
        "speeds": {"kind": "chunk_trace", "path": str(path), "split": split, "chunk_costs": costs},
        "trials": trials,
        "bound": True,
    }
    return {row.schedule: row.mean_ratio for row in experiment.run(Settings.model_validate(settings | changes))}


@measured
@pytest.mark.parametrize(
    ("split", "load", "costs", "most"),
    [
        (1, 24, "unknown", 1.18),
        (4, 24, "unknown", 1.055),
        (1, 256, "unknown", 1.17),
        (1, 24, {"known": 0.1}, 1.085),
        (4, 24, {"known": 0.1}, 1.03),
        (1, 256, {"known": 0.1}, 1.056),
    ],
)
def test_dynamic_on_measured_times_of_chunks(split, load, costs, most):
    assert ratios(TRACE, split, load, costs, schedules=["dynamic"])["dynamic"] <= most


@pytest.fixture
def made_up(tmp_path):
    """6 workers with 4 chunks each, one in seven of which is long."""
    rng = np.random.default_rng(0)
    seconds = 1 + 0.2 * rng.random((20, 6, 4)) + 1.5 * (rng.random((20, 6, 4)) < 1 / 7)
    np.save(tmp_path / "c.npy", seconds)
    return tmp_path / "c.npy"


def test_each_schedule_gains_as_far_as_it_may_react_and_knows(made_up):
    small = {"workers": 6, "chunks": 4, "load": 12, "trials": 20, "schedules": ["uncoded", "skipping", "dynamic"]}
    unknown, known = (ratios(made_up, costs=costs, **small) for costs in ("unknown", "known"))
    steps = np.load(made_up)
    assert unknown["uncoded"] == pytest.approx(np.mean(steps.sum(axis=2).max(axis=1) / steps.sum(axis=(1, 2)) * 6))
    assert 1 <= known["dynamic"] < 0.95 * unknown["dynamic"]
    assert unknown["dynamic"] <= 1.02 * unknown["skipping"] < unknown["uncoded"]
    assert known["skipping"] == unknown["skipping"]


@pytest.mark.parametrize("schedule", ["uncoded", "static", "full"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_closed_form_is_what_the_events_give(made_up, schedule, parts):
    settings = Settings.model_validate(
        {
            "assignment": {"kind": "blocks", "chunks": 24, "workers": 6, "load": 12},
            "speeds": {"kind": "chunk_trace", "path": str(made_up)},
            "trials": 20,
            "parts": [parts],
            "schedules": [schedule],
        }
    )
    (trials,) = experiment.simulate(settings)
    coding = Coding(assignment="blocks", chunks_per_worker=4, replication=3, parts=parts)
    plan = make_plan(coding, schedule, 6, seed=0)
    for time, computed, costs in zip(trials.times, trials.computed, np.load(made_up).reshape(20, -1), strict=True):
        rules = SCHEDULES[schedule](plan.queues, plan.backups, plan.holders(), parts)
        cluster = VirtualCluster(plan.holders(), plan.queues, parts, rules)
        trial = cluster.recover(dict.fromkeys(plan.queues, 1.0), costs.tolist())
        assert time == pytest.approx(trial.time)
        assert abs(computed - trial.computed) <= 1  # of copies that end together, the last may come after the end


def test_failed_workers_and_deadlines(made_up):
    settings = {
        "assignment": {"kind": "blocks", "chunks": 24, "workers": 6, "load": 12},
        "speeds": {"kind": "chunk_trace", "path": str(made_up), "failed": 1},
        "trials": 20,
        "deadlines": [0.5, 100.0],
        "bound": True,
    }
    for row in experiment.run(Settings.model_validate(settings)):
        assert row.mean_errors[0] == pytest.approx(np.sqrt(24))
        assert (row.impossible, row.mean_errors[1] > 0) == (
            (20, True)
            if row.schedule == "uncoded"
            else (20, True)
            if row.schedule == "full" and row.impossible
            else (0, False)
        )
        assert row.mean_ratio is None or row.mean_ratio >= 1


def test_a_trace_that_does_not_fit_is_one_line(made_up):
    with pytest.raises(UserError, match="expected a multiple of 4 chunks, at most 24, got 30"):
        ratios(made_up, workers=6, chunks=5, load=15)
