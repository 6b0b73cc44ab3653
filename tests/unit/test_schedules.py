"""Whatever stands in `SCHEDULES` works everywhere, also a schedule that nothing else knows of."""

from math import inf

import pytest

from psgc.config import Config
from psgc.plan import make_plan
from psgc.schedules import SCHEDULES, Schedule
from psgc.server.membership import Membership
from psgc.server.rebalance import queues_for
from psgc.simulation import experiment
from psgc.simulation.advice import Grid, choices, read_grid
from psgc.simulation.replay import own_choice
from psgc.simulation.settings import Settings
from psgc.simulation.virtual import VirtualCluster

RUN = {
    "problem": {"python": "some:Model"},
    "optimizer": {"kind": "sgd", "lr": 1.0},
    "iterations": 1,
    "output": "run",
    "coding": {"chunks_per_worker": 4, "replication": 3, "parts": 2},
}
SIMULATION = {
    "assignment": {"kind": "blocks", "chunks": 24, "workers": 6, "load": 12},
    "parts": [1, 2],
    "speeds": {"kind": "exponential"},
    "trials": 3,
    "bound": True,
}


@pytest.fixture(params=[*SCHEDULES, "first_come"])
def name(request, monkeypatch):
    if request.param not in SCHEDULES:
        monkeypatch.setitem(SCHEDULES, request.param, Schedule)
    return request.param


def test_a_run_can_have_it_before_and_after_a_loss(name):
    config = Config(**RUN, schedule=name)
    plan = make_plan(config.coding, config.schedule, 6, config.seed)
    everybody = Membership(plan.holders(), plan.parts, workers=plan.queues)
    schedule = SCHEDULES[name](plan.queues, plan.backups, plan.holders(), plan.parts)
    assert VirtualCluster(plan.holders(), plan.queues, plan.parts, schedule).recover(paces(range(1, 7))).time < inf

    membership = everybody.without([3])
    queues, backups = queues_for(membership, plan)
    after = SCHEDULES[name](queues, backups, membership.holders, membership.parts)
    after.inherit(schedule)
    assert bool(after.estimates) == after.is_adaptive
    cluster = VirtualCluster(membership.holders, queues, membership.parts, after)
    assert cluster.recover(paces(queues)).time < inf


def test_simulations_replay_and_advice_know_it(name):
    (one, two) = experiment.run(Settings(**SIMULATION, schedules=[name]))
    assert one.schedule == two.schedule == name
    assert 1 <= one.mean_ratio < 10
    assert read_grid({"schedule": name}) == Grid(schedule=[name])
    other = own_choice(Config(**RUN, schedule="static" if name == "dynamic" else "dynamic"), 24, workers=6)
    tried = {choice.schedule for choice in choices(Grid(), other, workers=6)}
    assert (name in tried) == SCHEDULES[name].tried_by_default


def paces(ranks):
    return {rank: 1.0 + rank for rank in ranks}
