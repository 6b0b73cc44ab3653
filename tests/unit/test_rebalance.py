"""Queues for the workers that are left: the plan's, with what lost workers were to do shared out among the others."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.config import Coding
from psgc.plan import make_plan
from psgc.schedules import SCHEDULES
from psgc.server.membership import Membership
from psgc.server.rebalance import queues_for


def plan_and_membership(schedule, parts=2, workers=5, assignment="blocks", chunks=3):
    coding = Coding(assignment=assignment, chunks_per_worker=chunks, replication=3, parts=parts)
    plan = make_plan(coding, schedule, workers, seed=4)
    return plan, Membership(plan.holders(), plan.parts, workers=plan.queues)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_everybody_there_it_is_the_plan_of_the_start(schedule, parts):
    plan, membership = plan_and_membership(schedule, parts)
    assert queues_for(membership.without([]), plan) == (plan.queues, plan.backups)


@settings(deadline=None)
@given(schedule=st.sampled_from(list(SCHEDULES)), parts=st.integers(1, 3), lost=st.sets(st.integers(1, 5)))
def test_whoever_is_left_everything_is_done_often_enough(schedule, parts, lost):
    plan, everybody = plan_and_membership(schedule, parts)
    membership = everybody.without(sorted(lost)[: 5 - parts])
    queues, backups = queues_for(membership, plan)
    assert list(queues) == sorted(membership.live)
    times = Counter(chunk for queue in queues.values() for chunk in queue)
    for worker in membership.live:
        chunks = [*queues[worker], *backups.get(worker, ())]
        assert sorted(chunks) == sorted(membership.held(worker))
    if schedule in ("uncoded", "dynamic"):  # own shares alone
        assert times == dict.fromkeys(range(plan.num_chunks), parts)
    else:
        assert not backups


@pytest.mark.parametrize("assignment", ["blocks", "cyclic"])
def test_what_a_lost_worker_had_is_shared_out_evenly(assignment):
    """With `cyclic`, the four holders of what it had pass chunks on to workers farther away."""
    plan, everybody = plan_and_membership("dynamic", 1, 17, assignment, chunks=16)
    queues, _ = queues_for(everybody.without([3]), plan)
    assert {len(queue) for queue in queues.values()} == {17}


def test_only_workers_that_get_something_have_another_queue():
    plan, everybody = plan_and_membership("dynamic", 1, 100, chunks=16)
    queues, _ = queues_for(everybody.without([3]), plan)
    assert sum(queue != plan.queues[worker] for worker, queue in queues.items()) == 16
