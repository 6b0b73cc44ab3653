"""Which orders are kept for a worker that does not read, when the iteration is over and when it is lost."""

import pytest

from psgc.messages import Kind
from psgc.server.outbox import Outbox
from tests.unit.scripted import Transport

ORDERS = (Kind.COMMIT, Kind.QUEUE, Kind.REASSIGN, Kind.MAP, Kind.CLOSE)


def kept(after, followed):
    transport = Transport(2)
    outbox = Outbox(transport, followed)
    outbox.begin(0)
    for kind in ORDERS:
        outbox.tell(1, kind)
    after(outbox)
    outbox.send()
    return [Kind(int(entry["kind"])).name for entry in transport.records[1]]


@pytest.mark.parametrize(("followed", "names"), [(True, ["COMMIT", "REASSIGN", "MAP", "CLOSE"]), (False, ["REASSIGN"])])
def test_a_map_is_kept_with_the_commits_before_it(followed, names):
    assert kept(lambda outbox: outbox.begin(1), followed) == names


def test_a_lost_worker_hears_neither_of_maps_nor_of_commits():
    assert kept(lambda outbox: outbox.lost(1, for_good=False), followed=True) == ["REASSIGN"]
    assert kept(lambda outbox: outbox.lost(1, for_good=True), followed=True) == []
