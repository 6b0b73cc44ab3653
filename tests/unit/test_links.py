"""What the server sends to whom and when, and what it has room for, against a transport that only listens."""

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import Coding
from psgc.messages import BATCH, UNDER_WAY, UNHEARD, Kind, joined, stamp_length, stepped_record
from psgc.plan import make_plan
from psgc.server.arrivals import Gone, Moved
from psgc.server.delivery import AHEAD
from psgc.server.links import Links
from psgc.transport import Control, Text
from tests.unit.scripted import Transport, config_of

LARGE, SMALL = np.zeros(AHEAD), np.zeros(3)  # parameters: of eight times AHEAD bytes, and of few
DIGEST = b"0123456789abcdef"
STEPPED_8 = "it sent STEPPED of iteration 8, the run is in iteration 7"
SENT = LARGE.nbytes + 8 * stamp_length("float64")


@pytest.fixture
def transport():
    return Transport(5)


@pytest.fixture
def links(transport):
    return Links(transport, Backend(), config_of(), make_plan(Coding(chunks_per_worker=2), "static", 4, seed=0))


def begin(links, iteration, params, workers):
    links.begin(iteration)
    links.deliver(params, workers)


def hear(links, transport, worker):
    transport.arrived = [Text(worker, b"")]
    assert list(links.poll()) == []


def test_a_worker_that_does_not_take_what_was_sent_gets_no_parameters_until_it_does(transport, links):
    transport.on_the_way.update({1: 2 * SENT, 2: 2 * SENT - 1})
    begin(links, 7, LARGE, (1, 2, 3, 4))
    assert transport.sent == [(2, 7), (3, 7), (4, 7)]
    links.send()
    assert len(transport.sent) == 3
    transport.on_the_way[1] -= 1
    links.send()
    assert transport.sent[3:] == [(1, 7)]


def test_small_parameters_are_sent_beside_orders_that_are_still_on_their_way(transport, links):
    transport.on_the_way.update({1: AHEAD, 2: AHEAD - 1})
    begin(links, 7, SMALL, (1, 2, 3, 4))
    assert transport.sent == [(2, 7), (3, 7), (4, 7)]


def test_a_worker_of_a_run_that_goes_on_may_be_there_before_rank_0_begins(transport, links):
    links.start(7)
    for iteration, comes in ((7, Moved(3, 7, False, DIGEST)), (8, Gone(3, STEPPED_8, dead=False))):
        transport.arrived = [Control(3, joined([stepped_record(iteration, DIGEST)]))]
        assert list(links.poll()) == [comes]


def test_a_lost_worker_gets_no_parameters(transport, links):
    transport.on_the_way[1] = 1 << 40
    begin(links, 7, LARGE, (1, 2))
    links.lost(1, for_good=False)
    transport.on_the_way.clear()
    links.send()
    assert transport.sent == [(2, 7)]


def test_parameters_are_sent_as_they_were_when_the_iteration_began(transport, links):
    params = np.arange(3.0)
    transport.on_the_way[1] = 1 << 40
    begin(links, 7, params, (1,))
    params += 1
    transport.on_the_way.clear()
    links.send()
    assert transport.vectors[0][3].tolist() == [0.0, 1.0, 2.0]


def test_a_worker_that_is_not_heard_gets_so_many_messages_and_what_still_matters_once_it_is(transport, links):
    for iteration in range(UNHEARD):  # two messages each
        links.begin(iteration)
        for worker in (1, 2):
            links.outbox.tell(worker, Kind.REASSIGN if iteration == UNHEARD - 5 else Kind.SKIP)
        links.send()
        hear(links, transport, 2)
        links.deliver(SMALL, (1, 2))
        links.outbox.tell(1, Kind.SKIP)
    assert len([dest for dest, _ in transport.sent if dest == 1]) == UNHEARD
    assert len([dest for dest, _ in transport.sent if dest == 2]) == 2 * UNHEARD
    before = len(transport.sent)
    links.begin(UNHEARD)
    hear(links, transport, 1)
    links.deliver(SMALL, (1,))
    assert transport.sent[before:] == [(1, ["REASSIGN"]), (1, UNHEARD)]


def test_orders_that_take_several_messages_count_as_such(transport, links):
    for _ in range(BATCH * UNHEARD):
        links.outbox.tell(1, Kind.SKIP)
    links.send()
    links.outbox.tell(1, Kind.SKIP)
    links.send()
    assert len(transport.sent) == 1
    assert links.outbox.waits(1)


def test_a_default_queue_that_still_waits_is_replaced(transport, links):
    links.begin(5)
    for queue in ([0, 1, 2], [3]):
        links.outbox.tell_default_queue(1, queue)
    links.deliver(SMALL, (1,))
    assert transport.queue(1) == [3]
    assert transport.sent[0] == (1, ["DEFAULT_QUEUE"])
    assert transport.vectors[0][2] == 1  # what the parameters count
    links.begin(6)
    links.outbox.tell_default_queue(1, [])
    links.deliver(SMALL, (1,))
    assert transport.queue(1) == []
    assert transport.vectors[1][2] == 2


def test_a_message_that_is_being_sent_does_not_change_when_another_worker_counts_other_queues(transport, links):
    links.begin(5)
    links.outbox.tell_default_queue(2, [0, 1])
    links.deliver(LARGE, (1, 2, 3))
    (_, _, none, one), (_, _, once, two), (_, _, _, three) = transport.vectors
    assert (none, once) == (0, 1)
    assert not np.shares_memory(one, two)
    assert np.shares_memory(one, three)  # no copy for each worker


@pytest.mark.parametrize("for_good", [False, True])
def test_a_worker_that_may_come_back_does_not_miss_a_default_queue_that_it_was_counted_for(transport, links, for_good):
    for _ in range(UNHEARD):
        links.outbox.tell(1, Kind.SKIP)
        links.send()
    links.outbox.tell(1, Kind.SKIP)
    links.outbox.tell_list(1, Kind.DEFAULT_QUEUE, [0, 1])
    links.lost(1, for_good=for_good)
    before = len(transport.sent)
    hear(links, transport, 1)
    links.send()
    assert transport.sent[before:] == ([] if for_good else [(1, ["DEFAULT_QUEUE", "DEFAULT_QUEUE"])])


def test_at_the_end_nothing_more_is_sent(transport, links):
    transport.on_the_way[1] = 1 << 40
    begin(links, 0, LARGE, (1,))
    links.outbox.tell(2, Kind.SKIP)
    links.close()
    transport.on_the_way.clear()
    links.send()
    assert transport.sent == []


@pytest.mark.parametrize(("for_good", "posted"), [(False, UNDER_WAY), (True, 0)])
def test_what_a_silent_worker_was_sending_takes_no_buffer_from_the_others(transport, links, for_good, posted):
    """A process that has ended sends nothing; one that is lost a second time has its buffers."""
    for _ in range(2):
        links.lost(1, for_good)
        assert transport.posted == posted
