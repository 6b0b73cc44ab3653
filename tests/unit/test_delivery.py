"""Parameters, sums and states reach the workers: what waits for one that takes nothing, and what it gets then."""

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.messages import PIECE, UNHEARD, unpack_block
from psgc.server import delivery
from psgc.server.delivery import Delivery
from psgc.server.outbox import Outbox
from psgc.server.replicas import CATCHING_UP, WAITING
from tests.unit.scripted import Transport

ROOM = PIECE // 8


def made(by_script):
    transport = Transport(3)
    outbox = Outbox(transport)
    return transport, outbox, Delivery(transport, Backend(), outbox, by_script)


def begin(it, iterations, workers=(1,)):
    for iteration in iterations:
        it.begin(iteration, np.full(2, float(iteration)), workers)
        it.send()


def sent(transport, worker=1):
    return [iteration for rank, iteration, *_ in transport.vectors if rank == worker]


@pytest.mark.parametrize("by_script", [False, True])
def test_a_worker_that_takes_nothing_gets_the_newest_vector_at_last(by_script):
    transport, _, it = made(by_script)
    transport.on_the_way[1] = delivery.AHEAD
    begin(it, range(7), workers=(1, 2))
    assert sent(transport) == []
    assert sent(transport, 2) == [*range(7)]
    transport.on_the_way[1] = 0
    it.send()
    assert sent(transport) == [6]
    it.send()
    assert sent(transport) == [6]


def test_no_sum_is_lost_as_long_as_few_wait():
    transport, _, it = made(by_script=True)
    transport.on_the_way[1] = delivery.AHEAD
    begin(it, range(WAITING))
    assert it.is_awaited
    transport.on_the_way[1] = 0
    it.send()
    assert sent(transport) == [*range(WAITING)]
    assert not it.is_awaited


def test_a_state_goes_in_pieces_before_the_sums_that_follow_it():
    transport, _, it = made(by_script=True)
    state = np.arange(2.5 * ROOM)
    begin(it, [4], workers=(2,))
    it.give([1], 4, state)
    begin(it, range(5, 8), workers=(1, 2))
    assert sent(transport) == [4] * 3 + [5, 6, 7]
    pieces = [(unpack_block(what), vector) for rank, _, what, vector in transport.vectors if rank == 1][:3]
    assert [(name.is_state, name.role, name.block) for name, _ in pieces] == [(True, number, 3) for number in range(3)]
    np.testing.assert_array_equal(np.concatenate([vector for _, vector in pieces]), state)
    assert max(vector.size for _, vector in pieces) == ROOM


def test_as_long_as_a_state_is_on_its_way_more_sums_wait_behind_it():
    transport, outbox, it = made(by_script=True)
    outbox.count(1, UNHEARD)  # it reads nothing
    begin(it, [4], workers=())
    it.give([1], 4, np.zeros(3))
    begin(it, range(5, 5 + CATCHING_UP))
    outbox.heard(1)
    it.send()
    assert sent(transport) == [*range(4, 5 + CATCHING_UP)]
    outbox.count(1, UNHEARD)
    it.give([1], 20, np.zeros(3))
    begin(it, range(21, 22 + CATCHING_UP))
    outbox.heard(1)
    assert not it.is_awaited  # it has missed too much: it needs another state, and nobody waits for it
    it.send()
    assert sent(transport)[-2:] == [4 + CATCHING_UP, 21 + CATCHING_UP]


def test_a_worker_that_is_not_to_begin_an_iteration_gets_nothing_that_waits():
    transport, _, it = made(by_script=True)
    transport.on_the_way[1] = delivery.AHEAD
    begin(it, [0], workers=(1, 2))
    begin(it, [1], workers=(2,))
    transport.on_the_way[1] = 0
    it.send()
    assert sent(transport) == []
