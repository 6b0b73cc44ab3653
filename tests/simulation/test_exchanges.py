"""Exchanges on a virtual network: who is late, how often slices get other owners, and what that costs."""

import pytest

from psgc.errors import RunFailed
from tests.simulation.virtual_exchange import ITEMSIZE, TIMEOUT, VirtualExchange

ENTRIES, WORKERS, SLOW = 25_000_000, 8, 3


def links(seconds, slower=1.0, ranks=WORKERS + 1):
    """Rates with which an exchange of ENTRIES takes about so long. slower: times that the link of SLOW is."""
    rates = [2 * ENTRIES * ITEMSIZE / seconds] * ranks
    rates[SLOW] /= slower
    return rates


def hedged(it):
    """By later attempt the first owners of its slices."""
    first = {part.start: part.owner for part in it.maps[0].slices}
    return [[first[part.start] for part in it.maps[attempt].slices] for attempt in range(1, len(it.maps))]


@pytest.mark.parametrize("seconds", [25, 70, 100, 300])
def test_however_slow_the_network_is_an_exchange_takes_its_time_and_nothing_is_sent_twice(seconds):
    it = VirtualExchange(links(seconds), ENTRIES).run()
    assert it.took < it.least
    assert not hedged(it)
    assert it.least > TIMEOUT or seconds == 25


@pytest.mark.parametrize("slower", [2.2, 3, 5, 20])
@pytest.mark.parametrize("seconds", [1, 20])
def test_who_is_soon_through_at_its_pace_keeps_its_slices(seconds, slower):
    """All others wait for what it contributes, and its slices come soon after that."""
    it = VirtualExchange(links(seconds, slower), ENTRIES).run()
    assert not hedged(it)


def test_a_contributor_that_is_late_is_no_reason_for_other_owners_than_itself():
    rates = [4e5] * 17
    rates[SLOW] /= 20
    assert hedged(VirtualExchange(rates, 60_000).run()) == [[SLOW]]


@pytest.mark.parametrize("seconds", [1, 10, 100])
def test_an_owner_that_is_slow_or_stuck_is_replaced(seconds):
    for slower, stuck in ((5, {}), (20, {}), (1, {SLOW: 0.1 * seconds}), (1, {SLOW: 0.3 * seconds})):
        it = VirtualExchange(links(seconds, slower), ENTRIES, idle=[SLOW], stuck=stuck).run()
        assert hedged(it) == [[SLOW]]
        assert it.took < 2.5 * seconds


def test_when_nothing_moves_any_more_the_run_fails():
    """Unless the worker that is stuck is lost before."""
    it = VirtualExchange(links(10), ENTRIES, stuck={SLOW: 5.0})
    with pytest.raises(RunFailed, match="the exchange of iteration 0 makes no progress: 1 of 9 slices are missing"):
        it.run()
