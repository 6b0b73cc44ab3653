"""Schedules: what counts when, and who is told to skip."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.errors import UserError
from psgc.server.scheduler import FixedSchedule, FullSchedule, Skip, SkippingSchedule, make_schedule

QUEUES = {1: [0, 2], 2: [1, 0], 3: [2, 1, 0], 4: []}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("uncoded", FixedSchedule),
        ("random", FixedSchedule),
        ("static", FixedSchedule),
        ("full", FullSchedule),
        ("skipping", SkippingSchedule),
    ],
)
def test_every_schedule_has_its_name(name, kind):
    assert type(make_schedule(name, QUEUES)) is kind


@pytest.mark.parametrize("name", ["dynamics", "", "Static", "skip"])
def test_an_unknown_schedule_is_refused_with_what_there_is(name):
    expected = f"^schedule: expected uncoded, full, random, static, skipping or dynamic, got '{name}'$"
    with pytest.raises(UserError, match=expected):
        make_schedule(name, QUEUES)


@pytest.mark.parametrize("name", ["uncoded", "random", "static"])
@given(worker=st.integers(1, 4), chunk=st.integers(0, 2), unreported=st.lists(st.integers(1, 4), unique=True))
def test_a_fixed_order_counts_at_once_and_skips_nothing(name, worker, chunk, unreported):
    schedule = make_schedule(name, QUEUES)
    assert schedule.begin() == []
    assert list(schedule.counts(worker, chunk)) == [chunk]
    assert schedule.committed(chunk, unreported) == []


@given(chunk=st.integers(0, 9), unreported=st.lists(st.integers(1, 9), unique=True))
def test_skipping_tells_exactly_the_holders_that_have_not_reported(chunk, unreported):
    schedule = make_schedule("skipping", QUEUES)
    assert schedule.begin() == []
    assert list(schedule.counts(1, chunk)) == [chunk]
    assert schedule.committed(chunk, unreported) == [Skip(worker, chunk, recovered=True) for worker in unreported]


@settings(deadline=None)
@given(data=st.data(), queues=st.dictionaries(st.integers(1, 5), st.sets(st.integers(0, 9), min_size=1), min_size=1))
def test_full_counts_a_whole_load_at_its_last_report(data, queues):
    schedule = make_schedule("full", {worker: sorted(chunks) for worker, chunks in queues.items()})
    reports = [(worker, chunk) for worker, chunks in queues.items() for chunk in chunks]
    for _ in range(2):  # the second iteration starts from nothing again, wherever the first one stopped
        assert schedule.begin() == []
        order = data.draw(st.permutations(reports))
        heard: dict[int, list[int]] = {worker: [] for worker in queues}
        for worker, chunk in order[: data.draw(st.integers(0, len(order)))]:
            heard[worker].append(chunk)
            complete = len(heard[worker]) == len(queues[worker])
            assert list(schedule.counts(worker, chunk)) == (heard[worker] if complete else [])
            assert schedule.committed(chunk, [worker]) == []
