"""scripts/chaos.py: which faults are drawn."""

import sys
from itertools import islice, pairwise, takewhile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import chaos

sys.path.pop(0)

MINUTES = 60.0


def drawn(seed=3, rate=10.0, ranks=range(1, 9), kinds=chaos.KINDS, most_killed=5, minutes=MINUTES):
    return [*takewhile(lambda fault: fault.at < 60 * minutes, chaos.draw(seed, rate, ranks, kinds, most_killed))]


def test_a_seed_says_what_happens():
    assert drawn() == drawn()
    assert drawn() != drawn(seed=4)


def test_so_many_come_in_a_minute_to_everybody():
    faults = drawn(rate=10.0, most_killed=1e9)
    assert len(faults) == pytest.approx(10.0 * MINUTES, rel=0.2)
    assert {fault.rank for fault in faults} == {*range(1, 9)}
    assert {fault.kind for fault in faults} == {*chaos.KINDS}
    gaps = [after.at - before.at for before, after in pairwise(faults)]
    assert sum(gap < 6.0 for gap in gaps) / len(gaps) == pytest.approx(1 - 0.37, abs=0.1), "as in a Poisson process"


def test_only_so_many_are_killed():
    assert sum(fault.kind == "kill" for fault in drawn(most_killed=5)) == 5


def test_those_that_are_lost_are_stopped_for_longer_than_a_pause():
    seconds = {kind: {fault.seconds for fault in drawn() if fault.kind == kind} for kind in ("stop", "pause")}
    assert min(seconds["stop"]) > chaos.COLLECT_TIMEOUT > 1.0 >= max(seconds["pause"])


def test_kinds_can_be_chosen():
    faults = islice(chaos.draw(0, 1.0, [0], ["slow"], 0), 20)
    assert {(fault.kind, fault.rank) for fault in faults} == {("slow", 0)}
