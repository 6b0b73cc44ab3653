"""The pace of cores in `psgc doctor`: what is measured, and what it means."""

import json
import os
import time

import pytest

from psgc.tools.findings import pace_findings
from psgc.tools.probe import measured, ratio, summarised

MANY = dict.fromkeys(range(64), 1e-4)


def host(name, paces):
    """paces: a number where the best time and the median are the same."""
    pairs = {core: pace if isinstance(pace, tuple) else (pace, pace) for core, pace in paces.items()}
    return {"host": name, **summarised(pairs)}


def test_cores_that_are_alike():
    (found,) = pace_findings([host("a", MANY | {5: 1.14e-4})])
    assert (found.level, found.name) == ("ok", "pace of cores")
    assert found.text == "all alike: the slowest core takes 1.14 x as long as the fastest for the same work"
    assert pace_findings([host("a", {0: 1e-4})]) == []  # nothing to compare
    assert pace_findings([]) == []  # no rank has told


def test_slow_cores_are_named_with_numbers_and_what_to_do():
    (found,) = pace_findings([host("a", MANY | {2: 1.3e-4, 3: 1.5e-4, 4: 1.2e-4, 63: 1.2e-4})])
    assert (found.level, found.name) == ("note", "slow cores")
    assert found.text == (
        "2-4,63 of 64 cores take up to 1.50 x as long as core 0 for the same work (150 us, 100 us); "
        "psgc launch ... -- --bind-to core:overload-allowed keeps each rank on a core, whose pace schedule dynamic "
        "learns"
    )


def test_a_core_is_behind_in_its_best_time_and_its_median_or_not_at_all():
    for pace in ((1.4e-4, 1e-4), (1e-4, 1.4e-4)):
        (found,) = pace_findings([host("a", MANY | {5: pace})])
        assert found.level == "ok"
    assert pace_findings([host("a", MANY | {5: (1.4e-4, 1.2e-4)})])[0].text.startswith(
        "5 of 64 cores take up to 1.20 x"
    )


def test_hosts_are_compared_by_their_fastest_cores():
    hosts = [host("a", {0: 1e-4, 1: 2e-4}), host("b", {0: 1.3e-4}), host("c", {0: 1.2e-4, 9: 1.5e-4})]
    cores, late = pace_findings(hosts)
    assert cores.text.startswith("on a: 1 of 2 cores take up to 2.00 x as long as core 0 ")
    assert "; other hosts with such cores: 1; psgc launch" in cores.text
    assert late.name == "slow hosts"
    assert late.text.startswith("b and 1 more: up to 1.30 x as long as a for the same work (130 us, 100 us)")
    assert [found.level for found in pace_findings([host("a", {0: 1e-4}), host("b", {0: 1.1e-4})])] == ["ok"]


def test_a_summary_fits_into_what_a_rank_can_tell():
    paces = {core: ((1 + core % 2) / 7e4, (1 + core % 2) / 6e4) for core in range(1024)}
    assert len(json.dumps(summarised(paces))) < 400


def test_a_core_that_takes_longer_is_found(monkeypatch):
    """By the time of this thread alone: what others do on a core, and how long it waits for them, does not count."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("has one core")
    quick, slow = sorted(allowed)[:2]
    spent = 0.0  # CPU seconds by a clock of our own: what real ones say depends on the neighbours

    def work():
        nonlocal spent
        spent += 3.0 if os.sched_getaffinity(0) == {slow} else 1.0

    monkeypatch.setattr(time, "thread_time", lambda: spent)
    monkeypatch.setattr("psgc.tools.probe.SECONDS", 0.0)
    taken = measured(work)
    assert taken[quick] == (1.0, 1.0)
    assert ratio(taken[slow], taken[quick]) == 3.0
    assert os.sched_getaffinity(0) == allowed
