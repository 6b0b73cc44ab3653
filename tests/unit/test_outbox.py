"""Orders on their way: how many a worker gets that does not read, which are kept for it, and which are not."""

import pytest

from psgc.messages import BATCH, UNHEARD, Kind
from psgc.server.outbox import Outbox
from tests.unit.scripted import Transport

ORDERS = (Kind.COMMIT, Kind.QUEUE, Kind.REASSIGN, Kind.MAP, Kind.CLOSE, Kind.SUMS)


@pytest.fixture
def transport():
    return Transport(5)


@pytest.fixture
def outbox(transport):
    return Outbox(transport)


def told(transport, worker=1):
    return [Kind(int(entry["kind"])) for entry in transport.records[worker]]


def give_up_reading(outbox, worker=1):
    for _ in range(UNHEARD):
        outbox.tell(worker, Kind.SKIP)
        outbox.send()


@pytest.mark.parametrize(
    ("happens", "kept"),
    [
        (lambda it: it.begin(1), [Kind.COMMIT, Kind.REASSIGN, Kind.MAP, Kind.CLOSE, Kind.SUMS]),
        (lambda it: it.lost(1, for_good=False), [Kind.REASSIGN]),
        (lambda it: it.lost(1, for_good=True), []),
    ],
    ids=["the iteration is over", "lost", "lost for good"],
)
def test_a_map_is_kept_with_the_commits_before_it_but_not_for_a_lost_worker(transport, outbox, happens, kept):
    outbox.begin(0)
    for kind in ORDERS:
        outbox.tell(1, kind)
    happens(outbox)
    outbox.send()
    assert told(transport) == kept


def test_a_worker_that_is_not_heard_gets_so_many_messages_and_what_still_matters_once_it_is(transport, outbox):
    late = UNHEARD + 5
    for iteration in range(2 * UNHEARD):
        outbox.begin(iteration)
        for worker in (1, 2):
            outbox.tell(worker, Kind.REASSIGN if iteration == late else Kind.SKIP)
        outbox.send()
        outbox.heard(2)
    assert told(transport) == [Kind.SKIP] * UNHEARD
    assert len(told(transport, 2)) == 2 * UNHEARD
    outbox.begin(2 * UNHEARD)
    outbox.heard(1)
    outbox.send()
    assert told(transport)[UNHEARD:] == [Kind.REASSIGN]


def test_patient_orders_wait_for_others_and_go_before_them(transport, outbox):
    outbox.patient = (Kind.COMMIT,)
    outbox.tell(1, Kind.COMMIT)
    outbox.send()
    assert told(transport) == []
    outbox.tell(1, Kind.MAP)
    outbox.send()
    assert transport.sent == [(1, ["COMMIT", "MAP"])]


def test_orders_that_take_several_messages_count_as_such(transport, outbox):
    for _ in range(BATCH * UNHEARD):
        outbox.tell(1, Kind.SKIP)
    outbox.send()
    outbox.tell(1, Kind.SKIP)
    outbox.send()
    assert len(transport.sent) == 1


def test_a_default_queue_that_still_waits_is_replaced(transport, outbox):
    for queue in ([0, 1, 2], [3]):
        outbox.tell_default_queue(1, queue)
    outbox.send()
    assert transport.queue(1) == [3]
    assert len(told(transport)) == 1
    outbox.tell_default_queue(1, [])
    outbox.send()
    assert transport.queue(1) == []
    assert len(told(transport)) == 2


@pytest.mark.parametrize("for_good", [False, True])
def test_a_worker_that_may_come_back_does_not_miss_a_default_queue(transport, outbox, for_good):
    give_up_reading(outbox)
    outbox.tell(1, Kind.SKIP)
    outbox.tell_list(1, Kind.DEFAULT_QUEUE, [0, 1])
    outbox.lost(1, for_good=for_good)
    outbox.heard(1)
    outbox.send()
    assert told(transport)[UNHEARD:] == ([] if for_good else [Kind.DEFAULT_QUEUE] * 2)
