"""The lag of `dynamic`: a server that handles reports late takes nobody for slow because of that."""

import pytest

from psgc.schedules.learning import Learning
from psgc.schedules.progress import ChunkView, WorkerView
from psgc.schedules.schedule import Queue, Skip
from tests.unit.scheduling import done, dynamic
from tests.unit.scripted_run import WORKERS


@pytest.mark.parametrize(
    ("lag", "now", "orders"),
    [
        (0.0, 3.9, [Queue(1, (1,))]),  # 2 is late by 2.9 s, 1 needs 1 s
        (1.0, 3.9, []),  # only by 1.9 s: at 5.8, and 1 would have to be half through 2 s before that
        (1.0, 5.0, [Queue(1, (1,))]),  # by 3 s
    ],
)
def test_a_worker_is_backed_up_once_it_is_later_than_the_lag(lag, now, orders):
    schedule = dynamic({1: [0, 2], 2: [1]}, {1: [1], 2: []}, {1: 1.0, 2: 1.0}, lag)
    assert schedule.begin() == []
    assert done(schedule, 1, 0, 1.0, late=lag) == []
    assert done(schedule, 1, 2, now, late=lag) == orders


@pytest.mark.parametrize(("lag", "orders"), [(0.4, [Queue(1, (2, 1))]), (0.7, [])])
def test_nor_does_a_worker_never_heard_of_need_longer_because_of_the_lag(lag, orders):
    """Taken to need 5 times what is beyond the lag: until 4, or until 2.5."""
    schedule = dynamic({1: [0, 2], 2: [1]}, {1: [1], 2: []}, lag=lag)
    schedule.begin()
    assert done(schedule, 1, 0, 1.0, late=lag) == orders


def test_who_rests_wakes_when_another_is_late_by_the_lag_and_the_gain():
    schedule = dynamic({1: [0], 2: [1]}, {1: [1], 2: []}, {1: 1.0, 2: 1.0}, 1.0)
    assert schedule.begin() == schedule.tick(0.9) == []
    assert done(schedule, 1, 0, 1.0, late=1.0) == []
    assert schedule.wake == pytest.approx(1.0 + 1.0 + 3.0)
    assert schedule.tick(schedule.wake) == [Queue(1, (1,))]


@pytest.mark.parametrize(("lag", "moved"), [(0.0, [7, 6]), (2.0, [7]), (3.6, [])])
def test_work_is_taken_over_for_a_gain_of_twice_the_lag(lag, moved):
    """Through at 4 and 12, with chunk 7 moved at 5 and 9, with 6 as well at 6 and 6."""
    schedule = dynamic({1: [0, 1, 2, 3], 2: [4, 5, 6, 7]}, {1: [7, 6, 5, 4], 2: []}, {1: 1.0, 2: 3.0}, lag)
    skips = [Skip(2, chunk, recovered=False) for chunk in moved]
    assert schedule.begin() == ([*skips, Queue(1, (0, 1, 2, 3, *moved))] if moved else [])


def test_a_report_that_may_be_under_way_is_waited_for_as_long_as_the_lag():
    schedule = dynamic({1: [0, 1, 2, 3], 2: [4, 5, 6, 7]}, {1: [7, 6, 5, 4], 2: []}, lag=1.0)
    assert schedule.begin() == []
    assert done(schedule, 1, 0, 1.0, late=1.0) == []
    assert done(schedule, 1, 1, 2.0, late=1.0) == []
    assert done(schedule, 1, 2, 3.0, late=1.0) != []


@pytest.mark.parametrize(
    ("lag", "orders"), [(0.0, [Skip(2, 1, recovered=False), Queue(1, (0, 1)), Queue(2, ())]), (1.3, [])]
)
def test_nobody_rests_from_the_start_for_less_than_the_lag_gains(lag, orders):
    backups = {worker: [chunk for chunk in (0, 1, 2) if chunk != worker - 1] for worker in (1, 2, 3)}
    schedule = dynamic({1: [0], 2: [1], 3: [2]}, backups, {1: 1.0, 2: 4.0, 3: 2.0}, lag)
    assert schedule.begin() == orders


@pytest.mark.parametrize(("lag", "known"), [(0.0, False), (0.9, True)])
def test_paces_that_change_by_less_than_the_lag_are_still_believed(lag, known):
    schedule = dynamic({1: [0], 2: [1]}, {1: [], 2: []}, lag=lag)
    for seconds in (1.0, 1.8):
        schedule.begin()
        for worker, chunk in ((1, 0), (2, 1)):
            done(schedule, worker, chunk, 2.0, seconds, late=lag)
    schedule.begin()
    assert bool(schedule.estimates) == known


def test_the_lag_follows_most_reports_and_not_one_worker_whose_reports_take_long():
    learning, worker = Learning(), WorkerView(1, [], [])
    worker.begin(1.0)
    for report_number in range(800):
        learning.learn(worker, [ChunkView(0, 1.0)], 1.0, 10.0 if report_number % 8 == 0 else 0.02)
    assert 0.01 < learning.lag < 0.03
    for _ in range(50):
        learning.learn(worker, [ChunkView(0, 1.0)], 1.0, 0.0)
    assert learning.lag < 1e-6


def test_a_new_schedule_knows_the_lag_of_the_one_before():
    old, new = dynamic({1: [0]}, {1: []}, lag=0.5), dynamic({1: [0]}, {1: []})
    new.inherit(old)
    assert new.learning.lag == 0.5


def test_the_server_says_how_late_it_handles_reports(make_run):
    """All chunks took 1 s, and the reports of an iteration are handled 3 s after that."""
    run = make_run("dynamic")

    def script():
        for iteration in range(20):
            run.clock.now += 4.0
            yield run.queues(iteration, range(1, WORKERS + 1))

    run.follow(script(), 20)
    assert run.server.cluster.schedule.learning.lag == pytest.approx(3.0, rel=0.01)
