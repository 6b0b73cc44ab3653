"""Who holds what after losses, and in which role."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.errors import TooFewWorkers
from psgc.server.membership import Membership


@pytest.mark.parametrize(
    ("parts", "lost", "text"),
    [
        (3, [2], "2 workers are left, parts 3 needs 3"),
        (2, [2, 1], "1 worker is left, parts 2 needs 2"),
        (1, [2, 1, 3], "no worker is left"),
    ],
)
def test_too_few_live_workers_end_the_run(parts, lost, text):
    membership = Membership([[1, 2, 3]], parts)
    for worker in lost[:-1]:
        membership.lose(worker)
    with pytest.raises(TooFewWorkers, match=f"^{text}$"):
        membership.lose(lost[-1])


def test_the_worker_that_holds_fewest_chunks_takes_over_and_of_several_the_first():
    membership = Membership([[1], [2], [2], [3], [4], [5]], parts=1)
    membership.lose(1)
    assert [membership.reassign(0), membership.reassign(0), membership.reassign(0), membership.reassign(0)] == [
        3,
        4,
        5,
        2,
    ]
    membership = Membership([[1], [1], [2], [3]], parts=1)
    membership.lose(1)
    assert [membership.reassign(0), membership.reassign(1)] == [2, 3]  # 2 holds more by then


def test_a_new_holder_takes_a_role_that_nobody_has():
    membership = Membership([[1, 2, 3], [4], [5]], parts=1)
    membership.lose(2)
    membership.lose(1)
    assert [(worker := membership.reassign(0), membership.role(worker, 0)) for _ in range(2)] == [(4, 1), (5, 2)]
    assert membership.reassigned(4) == [0]
    assert membership.role(4, 1) == 4
    assert membership.holders[0] == [3, 4, 5]


def test_role_and_worker_of_a_copy_that_was_done_are_not_chosen_again():
    membership = Membership([[1, 2], [3], [4, 5], [4, 5]], parts=2)
    membership.lose(1)
    membership.lose(2)
    assert membership.reassign(0, taken=[(3, 1)]) == 4
    assert membership.role(4, 0) == 2


def test_a_committed_chunk_may_be_reassigned_when_all_its_roles_are_taken():
    """Both roles are held, and copies in both have been committed: it is done again in a role that is told then."""
    membership = Membership([[1, 2], [3], [4]], parts=2)
    assert membership.reassign(0) == 3
    assert membership.role(3, 0) == 1


def test_a_new_holder_that_is_lost_leaves_its_role():
    membership = Membership([[1], [2], [3], [3]], parts=1)
    membership.lose(1)
    assert membership.reassign(0) == 2
    assert membership.lose(2) == [0, 1]
    assert membership.reassign(0) == 3
    assert membership.role(3, 0) == 1


def test_no_worker_takes_over_without_reassignment_or_twice():
    membership = Membership([[1, 2], [2]], parts=1, reassigning=False)
    text = "chunk 1 has 1 live holders, parts 1; faults.adopt: true would let others take it"
    with pytest.raises(TooFewWorkers, match=f"^{text}$"):
        membership.reassign(1)
    membership = Membership([[1, 2], [2]], parts=1)
    with pytest.raises(TooFewWorkers, match=r"^chunk 0 has 2 live holders, parts 1$"):
        membership.reassign(0)


@st.composite
def losses(draw):
    """planned, parts, who is lost, whether others may reassign, all workers, and whether lost holders are replaced."""
    num_workers = draw(st.integers(1, 6))
    parts = draw(st.integers(1, min(3, num_workers)))
    holders = st.lists(st.integers(1, num_workers), min_size=parts, unique=True)
    planned = draw(st.lists(holders, min_size=1, max_size=6))
    workers = range(1, num_workers + 1)
    return planned, parts, draw(st.sets(st.sampled_from(workers))), draw(st.booleans()), workers, draw(st.booleans())


@given(losses())
def test_without_the_lost_every_chunk_has_enough_holders_in_roles_of_its_own(case):
    planned, parts, lost, reassigning, workers, renewing = case
    everybody = Membership(planned, parts, reassigning, workers, renewing=renewing)
    live = set(workers) - lost
    enough = len(live) >= parts and (reassigning or all(len(live & set(of)) >= parts for of in planned))
    if not enough:
        with pytest.raises(TooFewWorkers):
            everybody.without(lost)
    else:
        membership = everybody.without(lost)
        assert set(membership.live) == live
        for chunk, of in enumerate(planned):
            holders = membership.holders[chunk]
            kept = [worker for worker in of if worker in live]
            assert holders[: len(kept)] == kept
            least = min(len(of), len(live)) if renewing and reassigning else 0
            assert len(holders) == len(set(holders)) == max(parts, len(kept), least)
            roles = [membership.role(worker, chunk) for worker in holders]
            assert roles[: len(kept)] == kept
            assert len(set(roles)) == len(roles)
            assert set(roles) <= set(of)
            assert all(chunk in membership.reassigned(worker) for worker in holders[len(kept) :])
            assert all((chunk in membership.held(worker)) == (worker in holders) for worker in live)
    assert everybody.holders == planned
    assert set(everybody.live) == set(workers)


def test_lost_holders_are_replaced_by_those_who_hold_least_and_come_back_to_what_was_planned():
    planned = [[1, 2, 3], [2, 3, 4], [3, 4, 1], [4, 1, 2]]
    everybody = Membership(planned, parts=1, renewing=True)
    membership = everybody.without([2])
    assert membership.holders == [[1, 3, 4], [3, 4, 1], [3, 4, 1], [4, 1, 3]]
    assert membership.role(4, 0) == 2
    assert [len(of) for of in everybody.without([2, 3]).holders] == [2, 2, 2, 2]
    assert everybody.without([]).holders == planned
    assert [len(of) for of in Membership(planned, parts=1).without([2]).holders] == [2, 2, 3, 2]


# a chunk that is checked needs one more


def test_verify_needs_one_more_holder_and_one_more_worker():
    membership = Membership([[1, 2], [2, 3], [1, 3]], parts=1, checking=True)
    assert [len(holders) for holders in membership.without([2]).holders] == [2, 2, 2]
    membership.lose(2)
    with pytest.raises(TooFewWorkers, match=r"^1 worker is left, parts 1 with verify needs 2$"):
        membership.lose(1)
    few = Membership([[1, 2], [2]], parts=1, reassigning=False, checking=True)
    with pytest.raises(TooFewWorkers, match=r"^chunk 1 has 1 live holders, parts 1 with verify; faults.adopt: true"):
        few.without([])


def test_when_every_role_is_taken_a_new_holder_gets_the_rarest():
    membership = Membership([[1, 2], [3], [4], [5]], parts=1)
    taken = [(1, 1), (2, 2)]
    for role in (1, 2, 1):
        worker = membership.reassign(0, taken)
        assert membership.role(worker, 0) == role
        taken.append((worker, role))
