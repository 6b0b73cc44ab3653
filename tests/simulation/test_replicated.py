"""The world with aggregation `allreduce`: what one kind of disturbance does, and what it does not."""

import itertools
import random
from dataclasses import replace
from unittest import mock

import pytest

from psgc.config import Recovery
from psgc.server.owners import Owners
from psgc.vectors import pack_block, stamp, stamp_of, unpack_block
from tests.simulation import faults
from tests.simulation.case import Fault
from tests.simulation.replicated import ReplicatedWorld

GARBLER = 2


def quiet_case(seed, **changes):
    """Nobody is slow, stopped or lost."""
    case = faults.random_case(random.Random(seed), allreduce=True)
    quiet = {"faults": [], "naps": [], "pace": 0.01, "recovery": Recovery(), "unheard": 32, "num_iterations": 3}
    return replace(case, **(quiet | changes))


class Suspended(ReplicatedWorld):
    """All ranks are stopped for an hour, again and again."""

    def step(self):
        if self.events % 20 == 10:
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
def test_the_time_in_which_rank_0_was_stopped_itself_counts_against_nobody(seed):
    world = Suspended(quiet_case(seed))
    world.run()
    assert world.counts["iterations"] == 3
    assert world.counts["stopped"] > 3
    assert not world.counts["lost"] + world.counts["left out"]


def test_rank_0_hears_what_the_links_of_all_ranks_have_carried():
    """By which it knows that an exchange goes on where it sees nothing of it."""
    heard = []
    with mock.patch.object(Owners, "moved", lambda _, *what: heard.append(what)):
        world = ReplicatedWorld(quiet_case(5, unheard=4, dim=30))
        world.run()
    assert {rank for rank, carried, _ in heard if carried} == {0, *world.nodes}


class Garbling(ReplicatedWorld):
    """From some vector on the newest blocks of GARBLER are not what they should be, to one rank or to all."""

    def __init__(self, case, how, victims, first):
        super().__init__(case)
        self.lost, sent = {}, itertools.count()
        end = self.nodes[GARBLER].end
        send = end.send_vector

        def send_garbled(dest, vector):
            if dest in victims and next(sent) >= first:
                before = vector.tobytes()
                if how == "twice":
                    send(dest, vector.copy())
                else:
                    vector = how(vector.copy())
                self.counts["garbled"] += how == "twice" or vector.tobytes() != before
            return send(dest, vector)

        end.send_vector = send_garbled

    def check_reason(self, worker, reason):
        self.lost[worker] = reason


def named(**fields):
    """The block says that it is another one."""

    def garbled(vector):
        iteration, what = stamp_of(vector)
        name = unpack_block(what)
        if "serial" in fields and not name.role:
            return vector  # a block of a gradient has none
        values = {field: change(getattr(name, field)) for field, change in fields.items()}
        return stamp(vector, iteration, pack_block(name._replace(**values)))

    return garbled


def shorter(vector):
    return stamp(vector[1:].copy(), *stamp_of(vector))


HOW = {
    "another block": named(block=lambda block: block + 1000),
    "another's accumulator": named(role=lambda role: role % 4 + 1),
    "shorter": shorter,
    "another serial": named(serial=lambda serial: serial + 7),
    "none": lambda vector: stamp(vector, 0, -1),
    "twice": "twice",
    "of the past": lambda vector: stamp(vector, -1, stamp_of(vector)[1]),
}


@pytest.mark.parametrize("victims", [[0], [3]])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("first", [0, 4])
def test_who_sends_a_block_that_no_correct_rank_sends_is_lost_and_not_its_receiver(how, victims, first):
    plan = faults.plan_of("cyclic", 4, 2, 3, 1, "dynamic")
    world = Garbling(quiet_case(5, plan=plan, schedule="dynamic", dim=30), HOW[how], victims, first)
    world.run()
    assert world.counts["iterations"] == 3
    assert world.lost.keys() <= {GARBLER}
    assert world.counts["garbled"] == 0 or "it sent" in world.lost[GARBLER]


def test_a_run_that_is_over_does_not_fail_since_all_workers_die_in_the_last_step():
    case = quiet_case(4)
    last = case.num_iterations - 1
    deaths = [Fault("dies", worker, last, 0, "stepping") for worker in range(1, case.plan.num_workers + 1)]
    world = ReplicatedWorld(replace(case, faults=deaths))
    world.run()
    assert world.counts["iterations"] == case.num_iterations
    assert world.counts["lost"] == case.plan.num_workers
    assert not world.counts["stopped with too few workers"]


def test_replicas_are_compared_after_the_last_step():
    world = ReplicatedWorld(quiet_case(5, num_iterations=7))
    world.run()
    assert world.server.compared["replicas"] == {"iteration": 7, "equal": sorted(world.nodes)}


def test_a_rank_that_was_lost_with_blocks_to_pass_on_to_its_host_keeps_nothing_when_it_is_back():
    """Once it waited for what others had not sent to it."""
    assert faults.run(522296, allreduce=True, pieces=True, hosts=True)["returns"] > 0
