"""The end of a worker's loop without MPI: the server dies, says that the run is over, or has not everything yet."""

from collections import Counter

import numpy as np
import pytest

from psgc.aggregation.shared import HostMemory, memory_bytes
from psgc.messages import Kind, record
from psgc.transport import Control, Died, Shared
from psgc.workers import loop as worker_loop
from tests.unit.looping import Worker
from tests.unit.looping import clock as clock


def test_the_servers_death_ends_a_worker_out_of_order_and_no_other_ones():
    worker = Worker(1)

    @worker.follow
    def script():
        yield [Died(2)]

    worker = Worker(1)
    worker.transport.script = iter([[Died(0)]])
    assert not worker.loop.run()
    assert worker.loop.is_orphaned
    assert worker.transport.sent == []


def test_after_the_end_nobody_goes_on_without_the_server():
    worker = Worker(1)
    worker.transport.script = iter([[Control(0, record(Kind.STOP))], [Died(0)], [], []])
    assert not worker.loop.run()
    assert not worker.loop.is_orphaned


def test_who_is_told_to_stop_and_to_leave_waits_for_nothing_more():
    """No message comes after these, and no bell rings."""
    worker, waits = Worker(1), []
    worker.transport.script = iter([[Control(0, record(Kind.STOP))], [Control(0, record(Kind.LEAVE))]])
    worker.transport.wait = lambda **_: waits.append(0)
    worker.loop.run()
    assert waits == []


@pytest.mark.parametrize("survives_deaths", [False, True])
def test_without_fault_tolerance_no_worker_leaves_before_rank_0_has_said_so(clock, survives_deaths):
    """It would take the server with it."""
    worker = Worker(1)
    worker.transport.survives_deaths = survives_deaths

    def script():
        yield [Control(0, record(Kind.STOP))]
        yield []
        clock.now += worker_loop.LAST_WORD
        yield []
        yield [Control(0, record(Kind.LEAVE))]

    worker.transport.script = script()
    assert worker.loop.run() is not survives_deaths


@pytest.mark.parametrize(("dest", "when"), [(0, 4), (2, 1)])
def test_goodbye_is_said_when_the_server_has_everything_whatever_other_ranks_have_not_taken(dest, when):
    """One of them may hang. Who says no goodbye is killed with it."""
    worker = Worker(1)
    polls = [[Control(0, record(Kind.STOP))], [], [], [], [Control(0, record(Kind.LEAVE, last=False))]]
    left = []

    def script():
        for number, messages in enumerate(polls):
            left.append(number)
            yield messages

    worker.transport.script = script()
    worker.transport.pending = lambda: Counter({dest: len(left) < 4})
    said_at = []
    send = worker.transport.send
    worker.transport.send = lambda dest, records: (said_at.append(len(left)), send(dest, records))
    assert not worker.loop.run()  # the server says so
    assert worker.transport.sent == [(0, ["GOODBYE"])]
    assert said_at == [when]


@pytest.mark.parametrize("is_stepping", [True, False])
def test_a_replica_that_has_made_a_step_is_heard_although_nobody_else_rang(is_stepping):
    worker, waits, polls = Worker(1), [True] * 9 + [False] * 3, []

    def script():
        for comes in ([], [Control(0, record(Kind.STOP))], [Control(0, record(Kind.LEAVE))]):
            polls.append(len(waits))
            worker.loop.allreduce.replica.is_stepping = is_stepping and len(polls) == 1
            yield comes

    worker.transport.wait = lambda **_: waits.pop()
    worker.transport.script = script()
    assert worker.loop.run()
    assert polls[:2] == ([12, 11] if is_stepping else [12, 8])


def test_what_a_worker_accumulates_is_in_the_memory_of_its_host():
    memory = bytearray(memory_bytes(2, 3, 8))
    worker = Worker(1, shared=Shared((9, 1, 1), memory))
    worker.encoder.add(np.full(3, 2.0), (1,), 1)
    assert HostMemory([1, 2], memory, 3, np.float64).accumulator(1, 0).tolist() == [2.0] * 3
