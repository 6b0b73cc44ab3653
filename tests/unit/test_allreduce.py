"""One rank's part in the coded all-reduce, over a list of messages."""

import numpy as np

from psgc.aggregation.allreduce import AllReduce
from psgc.aggregation.pool import POSTED, UNDER_WAY
from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.config import Optimizer
from psgc.optimizer import make_optimizer
from tests.unit.list_transport import ListTransport


def opened():
    end = ListTransport(1, [])
    replica = Replica(make_optimizer(Optimizer(kind="sgd", lr=0.1)), Backend(), lambda: None)
    it = AllReduce(end, Backend(), np.ones((3, 1)), 4, np.float64, replica, 0, 9)
    it.open()
    return it, end


def test_the_others_can_send_when_receives_are_held_by_ranks_that_left_in_the_middle_of_their_messages():
    it, end = opened()
    leaving = range(2, 2 + POSTED // UNDER_WAY)
    for rank in leaving:
        del end.posted[:UNDER_WAY]  # matched by what this rank began to send, and will never end
        it.left(rank)
    assert len(end.posted) == POSTED


def test_who_has_left_before_the_state_was_there_that_it_was_to_be_given_is_sent_nothing():
    it, end = opened()
    it.start(5, np.zeros(4))
    for worker in (2, 3):
        it.give(worker, 6)
    it.left(2)
    it.poll()
    assert not it.is_busy
    it.start(6, np.zeros(4))
    it.poll()
    assert {dest for dest, _ in end.control} == {3}
    assert {dest for _, _, dest, _ in end.under_way} == {3}
    assert end.forgotten == {2}
