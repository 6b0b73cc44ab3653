"""Buffers that are used again, unless somebody may still read them."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc.aggregation import pool
from psgc.aggregation.pool import LEAST_ROOM, POSTED, UNDER_WAY, Pool
from psgc.aggregation.slices import BLOCK
from psgc.backend import Backend
from tests.unit.list_transport import ListTransport


@pytest.fixture
def it(monkeypatch):
    monkeypatch.setattr(pool, "LEAST_ROOM", 0)
    return Pool(Backend(), 10, 3, np.float64)


def test_a_buffer_has_room_for_a_block_of_the_gradient_and_its_stamp(it):
    assert it.room == 3 * 4
    assert it.take().shape == (3 * 4 + 2,)
    assert it.message(it.take(), 5).shape == (7,)
    large = Pool(Backend(), 10 * BLOCK, 2, np.float32)
    assert large.room == 2 * BLOCK // 4


def test_a_small_model_may_have_a_large_state():
    assert Pool(Backend(), 3, 1, np.float32).room * 4 == LEAST_ROOM


def test_a_buffer_is_used_again_when_it_is_given_back(it):
    one = it.take()
    assert it.take() is not one
    it.give_back(one)
    assert it.take() is one


def test_what_has_left_for_a_rank_that_is_forgotten_is_not(it):
    one, two = it.take(), it.take()
    it.sent(one, SimpleNamespace(is_free=False))
    it.sent(two, SimpleNamespace(is_free=True))
    it.give_back(one)
    it.give_back(two)
    assert it.take() is two
    assert it.take() is not one
    it.give_back(one)  # it is another one now, as far as the pool knows
    assert it.take() is one


def test_what_is_received_is_replaced(it):
    transport = ListTransport(0, [])
    it.spare(transport, 1)
    assert not transport.posted  # where no blocks come
    it.open(transport)
    assert len(transport.posted) == POSTED
    transport.lent.append(buffer := transport.posted.pop())
    assert it.receive(transport, buffer) is buffer
    assert transport.lent == []
    assert len(transport.posted) == POSTED
    it.spare(transport, 2)
    it.spare(transport, 2)
    assert len(transport.posted) == POSTED + UNDER_WAY
