"""The worker's loop without MPI: what it says by itself, against a transport that only listens."""

from types import SimpleNamespace

import pytest

from psgc.backend import Backend
from psgc.messages import UNHEARD, Kind, record
from psgc.transport import Control
from psgc.workers.injection import Injector
from psgc.workers.loop import WorkerLoop


class Transport:
    """Gives out what has arrived, and keeps the kinds of what is sent."""

    distinct_iterations = 100

    def __init__(self):
        self.arrived, self.sent = [], []

    def poll(self, iteration):
        self.arrived, arrived = [], self.arrived
        return arrived

    def send(self, dest, records):
        self.sent += [Kind(int(entry["kind"][0])) for entry in records]


@pytest.fixture
def loop():
    """Of a worker that rests, and says by itself that it is alive every 1000 s."""
    desk = SimpleNamespace(outgoing=list, running=lambda: (-1, 0.0), skip=lambda *_: None)
    return WorkerLoop(Transport(), desk, None, None, Backend(), 3, "float64", 1000.0, Injector())


def turn(loop, messages):
    loop._transport.arrived = [Control(0, record(Kind.SKIP, 0, 0)) for _ in range(messages)]
    loop._poll()
    loop._send_outbox()


def test_who_is_told_much_and_says_nothing_says_that_it_reads(loop):
    turn(loop, UNHEARD // 2 - 1)
    assert loop._transport.sent == []
    turn(loop, 1)
    assert loop._transport.sent == [Kind.ALIVE]
    turn(loop, UNHEARD // 2 - 1)
    assert loop._transport.sent == [Kind.ALIVE]
