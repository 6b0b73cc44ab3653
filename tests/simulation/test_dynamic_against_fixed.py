"""`dynamic` never loses to `static` or `skipping` by more than 2 % on average, knowing nothing or having learnt."""

from pathlib import Path

import numpy as np
import pytest

from psgc.config import Coding
from psgc.plan import make_plan
from psgc.schedules import SCHEDULES
from psgc.simulation.settings import Exponential, Pareto, ShiftedExponential, Trace, TwoSpeed
from psgc.simulation.virtual import VirtualCluster

TRACES = Path(__file__).parents[3] / "shared" / "traces"
BLOCKS = 16, Coding(assignment="blocks", chunks_per_worker=8, replication=3, coding_matrix="gaussian")
GRAPH = 60, Coding(assignment="graph", chunks_per_worker=1, replication=8, coding_matrix="gaussian")
MODELS = {
    "exponential": Exponential(kind="exponential").draw,
    "shifted exponential": ShiftedExponential(kind="shifted_exponential", shift=1.0, mean=0.5).draw,
    "pareto": Pareto(kind="pareto", shape=2.0).draw,
    "two speeds": TwoSpeed(kind="two_speed", slow=4.0, slow_fraction=0.2).draw,
    "nearly equal": lambda rng, shape: rng.uniform(0.99, 1.01, shape),
}


def mean_time(schedule: str, workers: int, coding: Coding, seconds: np.ndarray, is_one_run: bool = False) -> float:
    """Of the trials, each on a cluster that has never been seen before, or of the iterations of one run."""
    plan, times = make_plan(coding, schedule, workers, seed=0), []
    for second in seconds:
        if not (is_one_run and times):
            rules = SCHEDULES[schedule](plan.queues, plan.backups, plan.holders(), plan.parts)
            cluster = VirtualCluster(plan.holders(), plan.queues, plan.parts, rules)
        times.append(cluster.recover(dict(enumerate(second.tolist(), start=1))).time)
    return float(np.mean(times))


def check(workers: int, coding: Coding, parts: int, seconds: np.ndarray) -> None:
    coding = coding.model_copy(update={"parts": parts})
    dynamic, static, skipping = (
        mean_time(name, workers, coding, seconds) for name in ("dynamic", "static", "skipping")
    )
    assert dynamic <= 1.02 * min(static, skipping)


@pytest.mark.parametrize(("cluster", "parts"), [(BLOCKS, 1), (GRAPH, 2)], ids=["blocks", "graph"])
@pytest.mark.parametrize("model", MODELS)
def test_on_every_model(model, cluster, parts):
    workers, coding = cluster
    check(workers, coding, parts, MODELS[model](np.random.default_rng(1), (20, workers)))


@pytest.mark.parametrize("cluster", [BLOCKS, GRAPH], ids=["blocks", "graph"])
@pytest.mark.parametrize("name", ["cloud-cnn", "cloud-cnn-short", "cloud-resnet18"])
def test_on_measured_times(name, cluster):
    path = TRACES / f"{name}.npy"
    if not path.exists():
        pytest.skip(f"no {path.name} beside the repository")
    workers, coding = cluster
    check(workers, coding, 1, Trace(kind="trace", path=str(path)).draw(np.random.default_rng(), (25, workers)))


@pytest.mark.parametrize("model", MODELS)
def test_what_it_learnt_in_other_iterations_does_not_mislead_it(model):
    """Forty iterations of one run whose paces are drawn anew every time: nothing that was learnt holds."""
    workers, coding = BLOCKS
    seconds = MODELS[model](np.random.default_rng(2), (40, workers))
    dynamic, skipping = (mean_time(name, workers, coding, seconds, is_one_run=True) for name in ("dynamic", "skipping"))
    assert dynamic <= 1.02 * skipping
