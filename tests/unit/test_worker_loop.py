"""The worker's loop without MPI: what it says by itself, against a transport that only listens."""

from types import SimpleNamespace

import pytest

from psgc.backend import Backend
from psgc.messages import UNHEARD, Kind, record
from psgc.transport import Control
from psgc.workers.injection import Injector
from psgc.workers.loop import WorkerLoop
from tests.unit.scripted import Transport


@pytest.fixture
def loop():
    """Of a worker that rests, and says by itself that it is alive every 1000 s."""
    desk = SimpleNamespace(outgoing=list, running=lambda: (-1, 0.0), skip=lambda *_: None)
    return WorkerLoop(Transport(2), desk, None, None, Backend(), 3, "float64", 1000.0, Injector())


def turn(loop, messages):
    loop._transport.arrived = [Control(0, record(Kind.SKIP, 0, 0)) for _ in range(messages)]
    loop._poll()
    loop._send_outbox()


def test_who_is_told_much_and_says_nothing_says_that_it_reads(loop):
    turn(loop, UNHEARD // 2 - 1)
    assert loop._transport.sent == []
    turn(loop, 1)
    assert loop._transport.sent == [(0, ["ALIVE"])]
    turn(loop, UNHEARD // 2 - 1)
    assert loop._transport.sent == [(0, ["ALIVE"])]
