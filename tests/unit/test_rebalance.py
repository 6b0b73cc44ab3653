"""Queues for those who are left: the plan of the start when that is everybody, and all that they hold otherwise."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.config import Coding
from psgc.plan import make_plan
from psgc.schedules import SCHEDULES
from psgc.server.membership import Membership
from psgc.server.rebalance import queues_for


def plan_and_group(schedule, parts=2, workers=5):
    plan = make_plan(Coding(chunks_per_worker=3, replication=3, parts=parts), schedule, workers, seed=4)
    return plan, Membership(plan.holders(), plan.parts, workers=plan.queues)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_everybody_there_it_is_the_plan_of_the_start(schedule, parts):
    plan, membership = plan_and_group(schedule, parts)
    queues, backups = queues_for(membership.without([]), schedule, seed=4, iteration=0)
    assert queues == plan.queues
    assert backups == plan.backups


@settings(deadline=None)
@given(schedule=st.sampled_from([*SCHEDULES]), parts=st.integers(1, 3), lost=st.sets(st.integers(1, 5)))
def test_whoever_is_left_everything_is_done_often_enough(schedule, parts, lost):
    plan, everybody = plan_and_group(schedule, parts)
    membership = everybody.without(sorted(lost)[: 5 - parts])
    queues, backups = queues_for(membership, schedule, seed=0, iteration=3)
    assert list(queues) == sorted(membership.live)
    times = Counter(chunk for queue in queues.values() for chunk in queue)
    for worker in membership.live:
        chunks = [*queues[worker], *backups.get(worker, ())]
        assert len(chunks) == len(set(chunks))
        if schedule == "uncoded":
            assert set(chunks) <= set(membership.held(worker))
        else:
            assert set(chunks) == set(membership.held(worker))
    if schedule in ("uncoded", "dynamic"):  # own shares alone
        assert times == dict.fromkeys(range(plan.num_chunks), parts)
    else:
        assert not any(backups.values())


def test_a_random_order_is_another_one_every_time_and_the_same_for_the_same_seed_and_iteration():
    _, everybody = plan_and_group("random")
    membership = everybody.without([2])
    first = queues_for(membership, "random", seed=1, iteration=1)
    assert first == queues_for(membership, "random", seed=1, iteration=1)
    assert first != queues_for(membership, "random", seed=1, iteration=2)
    assert first != queues_for(membership, "random", seed=2, iteration=1)
