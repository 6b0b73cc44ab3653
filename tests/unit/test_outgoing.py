"""What the server sends to whom and when, against a transport that only listens."""

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.messages import BATCH, UNHEARD, Kind, record
from psgc.server.outgoing import AHEAD, Outgoing
from tests.unit.scripted import Transport

LARGE, SMALL = np.zeros(AHEAD), np.zeros(3)  # parameters: of eight times AHEAD bytes, and of few
SENT = LARGE.nbytes + 8  # with the number of their iteration


@pytest.fixture
def transport():
    return Transport(5)


@pytest.fixture
def outgoing(transport):
    return Outgoing(transport, Backend())


def skip(iteration=0):
    return record(Kind.SKIP, iteration, 0)


def test_a_worker_that_does_not_take_what_was_sent_gets_no_parameters_until_it_does(transport, outgoing):
    transport.on_the_way.update({1: 2 * SENT, 2: 2 * SENT - 1})
    outgoing.begin(7, LARGE, (1, 2, 3, 4))
    assert transport.sent == [(2, 7), (3, 7), (4, 7)]
    outgoing.send(7)
    assert len(transport.sent) == 3
    transport.on_the_way[1] -= 1
    outgoing.send(7)
    assert transport.sent[3:] == [(1, 7)]


def test_small_parameters_are_sent_beside_orders_that_are_still_on_their_way(transport, outgoing):
    transport.on_the_way.update({1: AHEAD, 2: AHEAD - 1})
    outgoing.begin(7, SMALL, (1, 2, 3, 4))
    assert transport.sent == [(2, 7), (3, 7), (4, 7)]


def test_a_lost_worker_gets_no_parameters(transport, outgoing):
    transport.on_the_way[1] = 1 << 40
    outgoing.begin(7, LARGE, (1, 2))
    outgoing.lost(1, for_good=False)
    transport.on_the_way.clear()
    outgoing.send(7)
    assert transport.sent == [(2, 7)]


def test_parameters_are_sent_as_they_were_when_the_iteration_began(transport, outgoing):
    params = np.arange(3.0)
    transport.on_the_way[1] = 1 << 40
    outgoing.begin(7, params, (1,))
    params += 1
    transport.on_the_way.clear()
    outgoing.send(7)
    assert transport.vectors[0][3].tolist() == [0.0, 1.0, 2.0]


def test_a_worker_that_is_not_heard_gets_so_many_messages_and_what_still_matters_once_it_is(transport, outgoing):
    for iteration in range(UNHEARD):  # two messages each
        for worker in (1, 2):
            outgoing.tell(worker, record(Kind.REASSIGN if iteration == UNHEARD - 5 else Kind.SKIP, iteration, 0))
        outgoing.send(iteration)
        outgoing.heard(2)
        outgoing.begin(iteration, SMALL, (1, 2))
        outgoing.tell(1, skip(iteration))
    assert len([dest for dest, _ in transport.sent if dest == 1]) == UNHEARD
    assert len([dest for dest, _ in transport.sent if dest == 2]) == 2 * UNHEARD
    before = len(transport.sent)
    outgoing.drop_old_orders()
    outgoing.heard(1)
    outgoing.send(UNHEARD - 1)
    assert transport.sent[before:] == [(1, ["REASSIGN"]), (1, UNHEARD - 1)]


def test_orders_that_take_several_messages_count_as_such(transport, outgoing):
    for _ in range(BATCH * UNHEARD):
        outgoing.tell(1, skip())
    outgoing.send(0)
    outgoing.tell(1, skip())
    outgoing.send(0)
    assert len(transport.sent) == 1
    assert outgoing.waits(1)


def test_a_standing_queue_that_still_waits_is_replaced(transport, outgoing):
    for queue in ([0, 1, 2], [3]):
        outgoing.tell_default_queue(1, 5, queue)
    outgoing.begin(5, SMALL, (1,))
    assert transport.queue(1) == [3]
    assert transport.sent[0] == (1, ["DEFAULT_QUEUE"])
    assert transport.vectors[0][2] == 1  # what the parameters count
    outgoing.tell_default_queue(1, 6, [])
    outgoing.begin(6, SMALL, (1,))
    assert transport.queue(1) == []
    assert transport.vectors[1][2] == 2


@pytest.mark.parametrize("for_good", [False, True])
def test_a_worker_that_may_come_back_does_not_miss_a_standing_queue_that_it_was_counted_for(
    transport, outgoing, for_good
):
    for _ in range(UNHEARD):
        outgoing.tell(1, skip())
        outgoing.send(0)
    outgoing.tell(1, skip())
    outgoing.tell_list(1, Kind.DEFAULT_QUEUE, 3, [0, 1])
    outgoing.lost(1, for_good=for_good)
    before = len(transport.sent)
    outgoing.heard(1)
    outgoing.send(3)
    assert transport.sent[before:] == ([] if for_good else [(1, ["DEFAULT_QUEUE", "DEFAULT_QUEUE"])])


def test_at_the_end_nothing_more_is_sent(transport, outgoing):
    transport.on_the_way[1] = 1 << 40
    outgoing.begin(0, LARGE, (1,))
    outgoing.tell(2, skip())
    outgoing.clear()
    transport.on_the_way.clear()
    outgoing.send(0)
    assert transport.sent == []
