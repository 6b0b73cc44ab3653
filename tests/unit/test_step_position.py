"""Where a rank's replica is, and which iterations the rank follows."""

import pytest

from psgc.aggregation.step_position import StepPosition


@pytest.fixture
def it():
    """In the step of iteration 3."""
    position = StepPosition()
    position.loaded(3)
    position.begin_step()
    return position


def test_the_step_under_way_counts_for_what_comes_next_but_not_for_where_the_replica_is(it):
    assert (it.is_stepping(3), it.is_at(3), it.comes_to(4)) == (True, True, True)
    it.stepped()
    assert (it.is_stepping(4), it.is_at(4), it.comes_to(4), it.is_past(3)) == (False, True, True, True)


def test_who_has_missed_a_gradient_makes_no_step_with_it(it):
    it.missed(3)
    assert not it.is_stepping(3)
    assert not it.comes_to(4)
    assert it.is_behind


def test_who_has_missed_a_later_gradient_still_makes_the_step_under_way(it):
    it.missed(4)
    assert it.is_stepping(3)
    assert it.is_behind


def test_who_loads_a_state_is_in_no_step(it):
    it.missed(4)
    it.loaded(5)
    assert not it.is_stepping(5)
    assert not it.comes_to(6)
    assert not it.is_behind


def test_a_wrong_replica_is_nowhere_until_it_loads_the_state_of_its_own_iteration(it):
    assert it.drop() == 3
    it.stepped()
    assert not it.is_at(4)
    assert it.can_use(4)
    it.loaded(4)
    assert it.is_at(4)


def test_who_may_redo_chunks_of_an_iteration_that_it_is_left_out_of_is_not_past_it(it):
    it.stepped()
    it.fall_behind(4, may_redo=True)
    assert not it.is_past(4)
    it.follow(4)
    assert not it.is_behind
