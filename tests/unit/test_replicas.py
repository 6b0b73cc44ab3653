"""Where the replicas are, and who gives a state to whom."""

import pytest

from psgc.server.replicas import CATCHING_UP, LONGEST, WAITING, WIDTH, Replicas

LIVE = range(1, 8)


@pytest.fixture
def it():
    """Seven workers whose replicas are at iteration 10."""
    it = Replicas(LIVE, 10)
    for worker in LIVE:
        it.stepped(worker, 10)
    return it


def test_who_begins_in_the_state_of_rank_0_needs_none_and_gives_it_to_the_others():
    it = Replicas(LIVE, 7, alike=[2, 5])
    assert it.gifts(7, [2, 3, 5]) == [(2, 3)]
    assert it.receivers(7, [2, 3, 5]) == (0, 2, 3, 5)


def test_at_the_start_the_state_spreads_from_rank_0_in_a_tree():
    it = Replicas(LIVE, 0)
    assert it.gifts(0, LIVE) == [(0, 1), (0, 2)]
    assert it.gifts(0, LIVE) == []
    it.stepped(1, 0)
    assert it.gifts(0, LIVE) == [(1, 3), (1, 4)]
    it.stepped(2, 0)
    it.stepped(3, 0)
    assert it.gifts(0, LIVE) == [(2, 5), (3, 6), (1, 7)]
    assert WIDTH == 2


def test_two_gradients_wait_for_a_worker_then_it_is_left_out(it):
    for worker in LIVE[1:]:
        it.stepped(worker, 12)
    assert it.receivers(10 + WAITING - 1, LIVE) == (0, *LIVE)
    assert it.receivers(10 + WAITING, LIVE) == (0, *LIVE[1:])
    it.behind(1, 10 + WAITING, 12)
    assert it.gifts(12, LIVE) == []
    assert it.gifts(13, LIVE) == [(2, 1)]
    assert it.receivers(13, LIVE) == (0, *LIVE)
    it.stepped(1, 13)
    assert it.gifts(13, LIVE) == []


def test_a_worker_that_does_not_catch_up_waits_twice_as_long_each_time(it):
    now, waits = 10, []
    it.behind(1, 10, 10)
    for _ in range(8):
        began = now
        while not it.gifts(now := now + 1, [1]):
            pass
        waits.append(now - began)
        assert it.receivers(now + CATCHING_UP - 1, [1]) == (0, 1)
        now += CATCHING_UP
        assert it.receivers(now, [1]) == (0,)
    assert waits == [1, 2, 4, 8, 16, 32, LONGEST, LONGEST]
    it.gifts(now + LONGEST, [1])
    it.stepped(1, now + LONGEST)
    it.behind(1, now + LONGEST, now + LONGEST)
    assert it.gifts(now + LONGEST + 1, [1]) == [(0, 1)]
    now += LONGEST + 1 + CATCHING_UP
    assert it.receivers(now, [1]) == (0,)
    assert [it.gifts(now + wait, [1]) for wait in (1, 2)] == [[], [(0, 1)]]  # as after the first one


def test_when_it_is_urgent_nobody_waits_not_even_who_was_left_out(it):
    it.behind(1, 10, 10)
    it.gifts(11, LIVE)
    it.behind(1, 11, 11)
    assert it.gifts(12, [1]) == []
    assert it.gifts(12, [1], urgent=True) == [(0, 1)]
    it.behind(2, 12, 12)
    assert it.gifts(12, [2], urgent=True) == [(0, 2)]
    it.stepped(2, 12)
    assert it.gifts(12, [2], urgent=True) == []
    assert it.gifts(13, [2]) == [(0, 2)]


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_state_counts_although_its_donor_is_lost_or_falls_behind(it, is_lost):
    it.behind(1, 10, 10)
    assert it.gifts(11, [1, 2]) == [(2, 1)]
    if is_lost:
        it.lost(2, 11)
    else:
        it.behind(2, 11, 11)
    assert it.lack_a_state([1]) == {1}
    it.stepped(1, 11)
    assert it.receivers(11, [1]) == (0, 1)


def test_what_a_worker_missed_while_it_was_away_it_cannot_follow(it):
    it.lost(1, 10)
    it.stepped(1, 11)  # the step of an iteration that was closed when it was lost
    it.returned(1, 12)
    assert it.receivers(12, [1]) == (0,)
    it.lost(2, 10)
    it.stepped(2, 11)
    it.returned(2, 11)
    assert it.receivers(11, [2]) == (0, 2)


def test_what_an_old_step_says_does_not_end_the_need_of_a_newer_state(it):
    it.behind(1, 12, 12)
    it.stepped(1, 11)
    it.stepped(1, 12)
    assert it.gifts(13, LIVE) == [(0, 1)]


def test_a_worker_with_a_wrong_replica_needs_a_state_whatever_its_replica_says(it):
    it.wrong(1)
    it.lost(1, 16)
    it.stepped(1, 17)  # on its way since before
    it.returned(1, 17)
    assert it.is_wrong(1)
    assert it.gifts(17, LIVE) == []
    assert it.receivers(17, [1]) == (0,)
    assert not it.is_at(1, 17)
    assert it.is_wrong(1)
    it.behind(1, 17, 17)  # it has dropped it
    for worker in LIVE[1:]:
        it.stepped(worker, 18)
    assert it.gifts(18, LIVE) == [(2, 1)]


def test_a_worker_that_drops_the_state_it_has_come_to_is_given_it_again(it):
    """It could not follow before, so that state has come sooner than the order to drop what it had."""
    it.wrong(1)
    it.lost(1, 16)
    it.returned(1, 17)
    it.behind(1, 15, 17)
    assert it.gifts(17, LIVE) == [(0, 1)]
    it.stepped(1, 17)
    it.behind(1, 16, 17)  # it has dropped it
    assert it.gifts(17, LIVE) == [(0, 1)]


def test_where_workers_have_no_links_rank_0_gives_to_all_at_once():
    it = Replicas(LIVE, 0, alike=LIVE, workers_give=False)
    for worker in (1, 2, 3):
        it.behind(worker, 0, 0)
    assert it.lack_a_state(LIVE) == {1, 2, 3}
    assert it.gifts(1, LIVE) == [(0, 1), (0, 2), (0, 3)]
    assert it.lack_a_state(LIVE) == set()
    it.stepped(1, 1)
    assert it.following(LIVE) == [1, 4, 5, 6, 7]
    assert it.gifts(2, LIVE) == []


def test_only_who_is_near_gives_and_if_nobody_is_rank_0_does(it):
    it.behind(1, 11, 11)
    assert it.gifts(12, LIVE) == [(0, 1)]
    it.behind(2, 11, 11)
    it.stepped(3, 11)
    assert it.gifts(12, LIVE) == [(3, 2)]


def test_who_is_behind_is_not_waited_for_but_who_is_given_a_state_is(it):
    assert it.are_at(10, LIVE)
    assert not it.are_at(11, LIVE)
    it.behind(1, 10, 10)
    for worker in LIVE[1:]:
        it.stepped(worker, 11)
    assert it.are_at(11, LIVE)
    ((donor, _),) = it.gifts(11, LIVE)
    assert not it.are_at(11, LIVE)
    assert it.are_at(11, LIVE, ended_ranks={donor})


def test_rank_0_gives_its_state_to_those_that_wait_for_others_in_vain(it):
    it.behind(1, 10, 10)
    for worker in LIVE[2:]:
        it.stepped(worker, 11)
    it.gifts(11, LIVE)
    assert it.overdue(11, LIVE) == [1, 2]  # worker 1 for a state, worker 2 for the gradient
    assert it.overdue(11, LIVE) == []
    for worker in (1, 2):
        it.stepped(worker, 11)
    assert it.are_at(11, LIVE)
    assert it.gifts(12, LIVE) == []


def test_one_state_comes_to_a_host_whose_ranks_give_it_on():
    it = Replicas(range(1, 7), 0, hosts=(0, 0, 0, 1, 1, 1, 2))
    assert it.gifts(0, range(1, 7)) == [(0, 1), (0, 2)]
    it.stepped(1, 0)
    it.stepped(2, 0)
    assert it.gifts(0, range(1, 7)) == [(1, 3), (2, 6)]
    it.stepped(3, 0)
    assert it.gifts(0, range(1, 7)) == [(3, 4), (3, 5)]


def test_nobody_waits_for_the_state_of_another_rank_of_its_host_when_the_iteration_needs_it():
    it = Replicas(range(1, 4), 0, hosts=(0, 0, 1, 1))
    it.stepped(1, 0)
    assert it.gifts(0, [1, 2, 3]) == [(1, 2)]
    assert it.gifts(0, [1, 2, 3], urgent=True) == [(1, 3)]


def test_a_rank_of_the_host_that_is_behind_again_is_not_waited_for():
    it = Replicas(range(1, 4), 0, hosts=(0, 0, 1, 1))
    it.stepped(1, 3)
    assert it.gifts(3, [1, 2, 3]) == [(1, 2)]
    it.behind(2, 3, 3)
    assert it.gifts(4, [1, 2, 3]) == [(1, 3)]
