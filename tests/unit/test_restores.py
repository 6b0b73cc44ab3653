"""When `psgc launch` starts a run again: the decision."""

from psgc.config.faults import Restore
from psgc.launching.restores import HOUR, Restores

TWO_FOR_TEN = Restore(lost=2, after=10.0, per_hour=2)


def due(restores, now, ranks=5):
    return restores.due(TWO_FOR_TEN, ranks, now)


def test_each_of_so_many_workers_has_to_be_gone_for_so_long():
    restores = Restores()
    restores.lacks({1}, 0.0)
    restores.lacks({1, 3}, 4.0)
    assert due(restores, 13.9) == []
    assert due(restores, 14.0) == [1, 3]


def test_a_worker_that_came_back_is_gone_anew():
    restores = Restores()
    restores.lacks({1, 3}, 0.0)
    restores.lacks({3}, 9.0)
    restores.lacks({1, 3}, 9.5)
    assert due(restores, 11.0) == []
    assert due(restores, 19.5) == [1, 3]


def test_one_new_rank_is_enough_and_does_not_count_as_a_lost_one():
    restores = Restores()
    restores.lacks({1, 5}, 0.0)
    assert due(restores, 10.0) == [5]
    assert due(restores, 10.0, ranks=6) == [1, 5]


def test_a_run_is_started_again_so_often_in_any_hour():
    restores = Restores()
    for begun in (0.0, 100.0):
        assert restores.may_begin(TWO_FOR_TEN, begun)
        restores.begins(begun)
    assert not restores.may_begin(TWO_FOR_TEN, HOUR - 0.1)
    assert restores.may_begin(TWO_FOR_TEN, HOUR)
    restores.begins(HOUR)
    assert not restores.may_begin(TWO_FOR_TEN, HOUR + 99.9)


def test_after_starts_that_have_failed_the_next_one_waits_longer_up_to_the_usual_time_between_two():
    restores, waits = Restores(), []
    for _ in range(10):
        restores.lacks({1, 3}, 0.0)
        waits.append(next(wait for wait in range(4000) if due(restores, wait)))
        restores.tries()
        restores.fails()
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 1800, 1800]
    restores.begins(0.0)
    restores.lacks({1, 3}, 0.0)
    assert due(restores, 10.0) == [1, 3]


def test_nobody_is_missed_when_the_run_begins_again():
    restores = Restores()
    restores.lacks({1, 3}, 0.0)
    restores.begins(10.0)
    restores.lacks({1, 3}, 10.0)
    assert due(restores, 19.0) == []
