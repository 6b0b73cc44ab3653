"""The world with aggregation `allreduce`: what one kind of disturbance does, and what it does not."""

import random
from dataclasses import replace

import pytest

from psgc.config import Recovery
from tests.simulation import faults
from tests.simulation.replicated import ReplicatedWorld


def quiet_case(seed, **changes):
    """Nobody is slow, stopped or lost."""
    case = faults.random_case(random.Random(seed), allreduce=True)
    quiet = {"faults": [], "naps": [], "pace": 0.01, "recovery": Recovery(), "unheard": 32, "num_iterations": 3}
    return replace(case, **(quiet | changes))


class Suspended(ReplicatedWorld):
    """Rank 0 is stopped for an hour, again and again, while no worker measures how long a chunk takes."""

    def step(self):
        if self.events % 5 == 0 and all(node.work is None for node in self.nodes.values()):
            self.counts["stopped"] += 1
            self.clock.now += 3600.0
        return super().step()

    def is_cut_off(self, rank):
        for link in self.links.values():  # what Transport.unreached knows of time has its own test
            link.control = type(link.control)((self.clock.now, what) for _, what in link.control)
            for flying in link.vectors:
                flying.since = self.clock.now
        return super().is_cut_off(rank)


@pytest.mark.parametrize("seed", range(6))
def test_the_time_in_which_rank_0_was_suspended_counts_against_nobody(seed):
    world = Suspended(quiet_case(seed))
    world.run()
    assert world.counts["iterations"] == 3
    assert world.counts["stopped"] > 3
    assert not world.counts["lost"] + world.counts["left out"]
