"""One worker sends what no worker sends: it is lost, the others go on."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.config import Verify
from psgc.messages import Kind, record
from psgc.transport import Control, Text, Vector
from psgc.vectors import TAIL
from tests.simulation.case import Case, Nap
from tests.simulation.faults import plan_of
from tests.simulation.mesh import STAMP
from tests.simulation.replicated import ReplicatedWorld

WORKERS, CHUNKS, ITERATIONS = 4, 8, 3
BABBLER = 2
WHOLE = st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 7, 8, 99, 2**31 - 1])
SECONDS = st.sampled_from([0.0, 0.1, -1.0, float("nan"), float("inf"), 1e300])
RECORDS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([0, *map(int, Kind), 99]),
        "iteration": WHOLE,
        "chunk": WHOLE,
        "role": WHOLE,
        "attempt": WHOLE,
        "start": SECONDS,
        "seconds": SECONDS,
        "last": st.booleans(),
    }
)
VECTORS = st.tuples(WHOLE, WHOLE, st.integers(1, 2 + TAIL + STAMP), SECONDS)  # iteration, chunk or role, length, tail
MESSAGES = st.one_of(RECORDS, VECTORS, st.binary(max_size=9))


class Babbling(ReplicatedWorld):
    """From some step on BABBLER does nothing any more but send `messages`."""

    def __init__(self, case, step, messages):
        super().__init__(case)
        self.step_of_babble, self.messages = step, list(messages)
        self.babbling = False
        self.lost = {}

    def check_reason(self, worker, reason):
        self.lost[worker] = reason

    def check_exact(self, gradient):  # what looks like a report is taken for one
        self.incomplete, self.compared = self.server.coordinator.books.incomplete(), self.watch.compared()

    def advance(self):
        if self.steps >= self.step_of_babble and not self.babbling:
            self.babbling = True
            first, after = self.iteration, self.steps - self.began
            kinds = ("deaf", "slow", "mute")
            self.naps += [Nap(kind, BABBLER, first, ITERATIONS, after, stubborn=True) for kind in kinds]
        if self.babbling and self.messages:
            self.end.arrived.append(self.message(self.messages.pop(0)))
        else:
            super().advance()

    def message(self, what):
        match what:
            case bytes():
                return Text(BABBLER, what)
            case dict():
                return Control(BABBLER, record(**what, loss=1.0))
            case iteration, chunk, length, tail:
                vector = np.full(min(length, len(self.end.posted[-1])), 1.0)  # of longer ones MPI takes care
                vector[-TAIL - STAMP : -1 - STAMP] = tail
                if 0 <= iteration < ITERATIONS and 0 <= chunk < CHUNKS and len(vector) == 2 + TAIL + STAMP:
                    vector[:2] = self.table[iteration, chunk]  # not about wrong copies
                buffer = self.end.posted.pop()
                buffer[: len(vector)] = vector
                return Vector(BABBLER, iteration, chunk, buffer, len(vector) - STAMP)
        raise AssertionError(what)


def case(schedule, combined, verified):
    plan = plan_of("cyclic", WORKERS, CHUNKS // WORKERS, 3, 1, "static" if schedule == "full" else schedule)
    return Case(
        plan=plan,
        schedule=schedule,
        combined=combined,
        dim=2,
        num_iterations=ITERATIONS,
        naps=(),
        choices=random.Random(1).randbytes(997),
        timeout=100.0,
        pace=0.01,  # nobody else is lost by chance
        verify=Verify(every=2) if verified else None,
    )


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("combined", [False, True])
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    schedule=st.sampled_from(["static", "skipping", "dynamic"]),
    step=st.integers(0, 150),
    messages=st.lists(MESSAGES, min_size=1, max_size=12),
)
def test_whatever_one_worker_sends_ends_nothing_for_the_others(combined, verified, schedule, step, messages):
    world = Babbling(replace(case(schedule, combined, verified)), step, messages)
    world.run()
    assert (world.iteration, world.counts["iterations"]) == (ITERATIONS - 1, ITERATIONS)
    assert world.lost.keys() <= {BABBLER}, world.lost
