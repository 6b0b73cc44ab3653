"""The transport's own bookkeeping, without MPI; what it does with MPI is in tests/ranks."""

import threading
from dataclasses import replace
from math import inf
from types import SimpleNamespace

import numpy as np
import pytest

from psgc import processes
from psgc.messages import MESSAGE, Kind, record, stamp
from psgc.processes import Identity
from psgc.rendezvous import MPI
from psgc.transport import Control, Died, Vector, sends, waiting
from psgc.transport.receives import Posted, Receives
from psgc.transport.sends import SLOWEST, Sending, Sends
from psgc.transport.transport import NAP, Transport
from psgc.transport.waiting import (
    BUSY,
    HOT_SPINS,
    LARGE,
    LONGEST,
    NEIGHBOUR,
    OWN,
    SHORTEST,
    SILENCE,
    SILENT,
    SPINS,
    Backoff,
    Bell,
)
from tests.stand_in import cupy


@pytest.fixture
def clock(monkeypatch):
    """Seconds; assign to `now`."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(processes, "time", clock)
    return clock


@pytest.fixture
def it(clock):
    return Sends(SimpleNamespace(dead={}))


def send(it, dest, size):
    it._sent.append(Sending(None, np.empty(0), size, dest, it._running.now, it._forgotten))
    return it._sent[-1]


def pass_by(it, clock, seconds, step=0.5):
    """Time between two polls after another, and nothing leaves."""
    for _ in range(round(seconds / step)):
        clock.now += step
        it._running.look()


def test_who_takes_nothing_for_too_long_is_unreached_unless_it_is_forgotten(it, clock):
    send(it, 1, 8)
    pass_by(it, clock, 2.0)
    send(it, 2, 8)
    assert it.unreached(3.0) == []
    pass_by(it, clock, 1.5)
    assert it.unreached(3.0) == [1]
    pass_by(it, clock, 2.0)
    assert it.unreached(3.0) == [1, 2]
    it.forget(1)
    assert it.unreached(3.0) == [2]
    it.remember(1)
    assert it.unreached(3.0) == [1, 2]


def test_the_time_in_which_this_process_was_stopped_itself_does_not_count(it, clock):
    send(it, 1, 8)
    pass_by(it, clock, 1.5)
    pass_by(it, clock, 3600.0, step=3600.0)
    assert it.unreached(3.0) == []
    pass_by(it, clock, 1.0)
    assert it.unreached(3.0) == [1]


def test_large_messages_have_the_time_that_a_slow_network_takes(it, clock):
    send(it, 1, int(20 * SLOWEST))
    pass_by(it, clock, 22.0)
    assert it.unreached(3.0) == []
    pass_by(it, clock, 2.0)
    assert it.unreached(3.0) == [1]


def test_a_send_to_a_forgotten_rank_is_done_but_its_buffer_is_not_free(it, clock):
    one, two = send(it, 1, 8), send(it, 2, 8)
    it.forget(1)
    assert [(sending.is_done, sending.is_free) for sending in (one, two)] == [(True, False), (False, False)]
    it.remember(1)
    assert not one.is_done


def test_nobody_looks_more_often_for_the_sake_of_a_forgotten_rank(it):
    """The largest send that is under way says how `Transport.wait` looks."""
    send(it, 1, 8)
    send(it, 2, 1 << 20)
    assert it.largest() == 1 << 20
    it.forget(2)
    assert it.largest() == 8
    it.remember(2)
    assert it.largest() == 1 << 20


def test_a_send_to_a_dead_rank_is_dropped_and_its_buffer_is_free():
    it = Sends(SimpleNamespace(dead={1: None}))
    sending = it.send(None, np.empty(3), 1, 0)
    assert (sending.is_done, sending.is_free, it.awaits(), it.bytes) == (True, True, False, 0)


def test_mpi_gets_memory_of_a_device_when_the_device_is_done():
    """MPI would read what is not there yet, or write over what a kernel still has to read."""
    given = []

    def take(message, *_):
        given.append(message[0].__cuda_array_interface__["shape"])

    buffer = cupy.zeros(3)
    with pytest.raises(RuntimeError, match="under way"):
        take([buffer])
    comm, nobody = SimpleNamespace(Isend=take, Irecv=take), SimpleNamespace(dead={})
    stamp(buffer, 1, 2)
    Sends(nobody).send(comm, buffer, 1, 0)
    _ = buffer + 1
    Receives(None, comm, nobody).post(buffer, 1)
    assert given == [(3,), (3,)]


# receives


@pytest.fixture
def receives(monkeypatch):
    """Posted buffers are in `posted`; what arrives is put into `arrived`, as (buffer, status)."""
    it = Receives(None, None, SimpleNamespace(dead={}))
    it.posted, it.arrived = [], []
    monkeypatch.setattr(it, "post", lambda buffer, source: it.posted.append(buffer))
    monkeypatch.setattr(it, "_filled", lambda: [it.arrived.pop(0)] if it.arrived else [])
    it._posted = [SimpleNamespace()]
    return it


def arrives(it, source, *vectors):
    """These (iteration, what, value) arrive in one message."""
    rows = np.zeros((len(vectors), 3))
    for row, (iteration, what, value) in zip(rows, vectors, strict=True):
        row[0] = value
        stamp(row, iteration, what)
    buffer = np.append(rows.ravel(), np.zeros(5))  # a message may be shorter than the buffer
    status = SimpleNamespace(Get_source=lambda: source, Get_tag=lambda: len(vectors))
    status.Get_elements = lambda _: rows.nbytes
    it.arrived.append((buffer, status))
    return buffer


def test_a_bundle_is_given_out_vector_by_vector_and_its_buffer_is_posted_again_later(receives):
    buffer = arrives(receives, 2, (7, 0, 0.5), (7, 5, 1.5), (6, 1, 2.5))
    vectors = receives.poll()
    assert [(v.source, v.iteration, v.chunk, v.buffer[: v.length].tolist()) for v in vectors] == [
        (2, 7, 0, [0.5]), (2, 7, 5, [1.5]), (2, 6, 1, [2.5]),
    ]  # fmt: skip
    assert receives.posted == []
    receives.repost()
    receives.repost()
    assert [posted is buffer for posted in receives.posted] == [True]
    assert receives.bytes == 3 * 24


def test_a_buffer_that_is_kept_is_not_posted_again(receives):
    first = arrives(receives, 2, (7, 0, 0.5))
    (vector,) = receives.poll()
    second = arrives(receives, 2, (7, 1, 0.5))
    receives.poll()
    receives.keep(vector.buffer)
    with pytest.raises(ValueError):
        receives.keep(first)
    receives.repost()
    assert [posted is second for posted in receives.posted] == [True]
    with pytest.raises(ValueError):
        receives.keep(second)


def test_a_vector_of_a_bundle_cannot_be_kept(receives):
    arrives(receives, 2, (7, 0, 0.5), (7, 5, 1.5))
    with pytest.raises(ValueError):
        receives.keep(receives.poll()[0].buffer)


def test_a_message_that_is_too_short_for_its_stamp_is_given_out_as_such(receives):
    status = SimpleNamespace(Get_source=lambda: 1, Get_elements=lambda _: 8, Get_tag=lambda: 1)
    receives.arrived.append((np.zeros(4), status))
    (vector,) = receives.poll()
    assert (vector.iteration, vector.length) == (-1, 0)


def test_a_late_vector_of_a_dead_rank_takes_no_receive_buffer_with_it(receives):
    receives._told.add(2)
    buffer = arrives(receives, 2, (7, 0, 0.5))
    assert receives.poll() == []
    receives.repost()
    assert receives.posted[0] is buffer


def test_the_last_words_of_a_dead_rank_come_before_its_death(receives, monkeypatch):
    """More than one look takes; what has come of it is in front of `Died`, in order."""
    words = [Control(2, record(Kind.ALIVE)), Control(2, record(Kind.GOODBYE)), Vector(2, 0, 0, np.empty(0), 0)]
    left = list(words)
    monkeypatch.setattr(receives, "_poll_control", lambda messages: messages.extend([left.pop(0)] if left else []))
    receives._deaths.dead[2] = None
    assert receives.poll() == [*words, Died(2)]
    assert receives.poll() == []


def test_with_a_death_what_is_whole_is_given_out_and_what_is_not_is_replaced(monkeypatch):
    """Testsome's statuses: of two complete receives, one of them with an error, then of the pending ones."""

    def status(error, source=MPI.ANY_SOURCE):
        return SimpleNamespace(Get_error=lambda: error, Get_source=lambda: source)

    buffers = [np.full(3, place, float) for place in range(4)]
    null, pending = MPI.REQUEST_NULL, object()
    statuses = [
        status(MPI.SUCCESS, 1), status(MPI.ERR_PROC_FAILED, 2),
        status(MPI.ERR_PROC_FAILED_PENDING), status(MPI.ERR_PROC_FAILED_PENDING, 2),
    ]  # fmt: skip
    it = Receives(None, None, SimpleNamespace(dead={2: None}, forgive=lambda *_: None))
    it._posted = [Posted(r, b) for r, b in zip((null, null, pending, pending), buffers, strict=True)]
    posted, tested = [], []
    monkeypatch.setattr(it, "post", lambda buffer, source: posted.append((buffer, source)))
    monkeypatch.setattr(it, "_test", lambda request, status: tested.append(request))
    filled = it._sort_out(None, statuses)
    assert [(buffer is buffers[0], status is statuses[0]) for buffer, status in filled] == [(True, True)]
    assert [(buffer.shape, source) for buffer, source in posted] == [((3,), MPI.ANY_SOURCE)] * 2
    assert not any(new is old for new, _ in posted for old in buffers)
    assert [orphan.buffer is buffers[3] for orphan in it._orphaned] == [True]
    assert [one.request for one in it._posted] == [null, null, pending, null]
    assert tested == [pending]


def test_what_was_sent_while_mpi_was_not_called_is_let_go_at_once(it, clock, monkeypatch):
    """Open MPI's Testsome looks at the requests before it moves messages, so the first call finds nothing."""
    sent, calls = send(it, 1, 8), []

    def testsome(requests):
        calls.append(requests)
        if len(calls) == 1:
            return []
        sent.request = MPI.REQUEST_NULL
        return [0]

    request = SimpleNamespace(Testsome=testsome)
    names = {"Request": request, "REQUEST_NULL": MPI.REQUEST_NULL, "Exception": MPI.Exception}
    monkeypatch.setattr(sends, "MPI", SimpleNamespace(**names))
    assert it.poll()
    assert sent.is_free


# waiting


def sleeps(it, count, large=False, busy=False):
    return [it.next(large, busy) for _ in range(count)]


def test_sleeps_begin_short_grow_and_begin_anew_after_a_message():
    it = Backoff(SHORTEST)
    for _ in range(2):
        assert sleeps(it, SPINS) == [0.0] * SPINS
        assert it.next(large=False, busy=False) == SHORTEST
        growing = sleeps(it, 10)
        assert growing == sorted(growing)
        assert sleeps(it, 20)[-1] == LONGEST
        it.reset()
    assert sleeps(it, 1, busy=True) == [BUSY]  # the core has better uses than looks
    assert sleeps(it, int(2 * SILENCE / LONGEST))[-1] == SILENT


def test_a_large_transfer_is_not_slept_on_for_long():
    assert sleeps(Backoff(SHORTEST), HOT_SPINS, large=True) == [0.0] * HOT_SPINS


def test_who_is_woken_sleeps_longer_unless_the_bell_came_early():
    it = Backoff(waiting.BELL)
    assert sleeps(it, SPINS + 2)[SPINS:] == sleeps(it, 2, busy=True) == [waiting.BELL] * 2
    it.reset(soon=True)
    assert sleeps(it, SPINS + 1, busy=True) == [*[0.0] * SPINS, BUSY]
    it.reset(soon=True)
    assert sleeps(it, SPINS + 1) == [*[0.0] * SPINS, SHORTEST]


class Waiting:
    """A transport that waits: whether others ring, what its bell rings, and the bytes that it is sending to rank 2."""

    def __init__(self, rings, is_woken=True, sending=0, rang=0.0):
        self.slept = []  # seconds
        self.looks = []  # at what is being sent
        self.rung = []  # ranks
        self._rings = iter(rings)
        self._receives = SimpleNamespace(repost=lambda: None, stirs=lambda: False)
        self._sends = SimpleNamespace(
            largest=lambda: sending, poll=lambda: self.looks.append(sending), pending=lambda: {2: sending}
        )
        self._bell, self._expects, self._is_woken, self._rang = self, False, is_woken, rang
        self._ring_at = self.rung.extend
        self._backoff, self._rest, self._least_nap = Backoff(waiting.BELL), waiting.BELL, NAP

    def sleep(self, seconds):
        self.slept.append(seconds)
        return next(self._rings)


@pytest.mark.parametrize(
    ("rung", "others", "comes"),
    [
        ({OWN}, {}, False),
        ({NEIGHBOUR}, {}, True),
        ({OWN, NEIGHBOUR}, {}, True),
        ({OWN}, {"is_woken": False}, True),  # others send without ringing
    ],
)
def test_something_may_have_come_unless_only_an_own_thread_has_rung(rung, others, comes):
    assert Transport.wait(Waiting([rung], **others)) == comes


@pytest.mark.parametrize("size", [100, LARGE])
def test_what_is_being_sent_goes_on_when_an_own_thread_has_rung(size):
    it = Waiting([{OWN}], sending=size)
    assert not Transport.wait(it, busy=True)
    assert it.looks == [size] * 2
    assert Transport.wait(Waiting([{OWN}], sending=size), busy=True, exchanging=True)


def test_while_blocks_are_exchanged_the_end_of_a_send_ends_the_wait():
    it = Waiting([set()], sending=100)
    ended = iter([True])
    it._sends.poll = lambda: next(ended, False)
    assert Transport.wait(it, nap=NAP, exchanging=True)
    assert it.slept == [NAP]


@pytest.mark.parametrize("size", [0, 100, LARGE, MESSAGE, MESSAGE + 1])
@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_that_is_sending_looks_soon_unless_it_computes_and_the_message_is_short(size, busy, monkeypatch):
    monkeypatch.setattr("psgc.transport.transport.time", SimpleNamespace(monotonic=lambda: 1.0))  # else it may give up
    it = Waiting([set(), set(), set(), {NEIGHBOUR}], sending=size)
    assert Transport.wait(it, busy=busy)
    assert it.slept[-1] == (waiting.BELL if not size or (busy and size <= MESSAGE) else NAP)


@pytest.mark.parametrize(("size", "rang", "rung"), [(100, 0.0, [2]), (100, inf, []), (0, 0.0, [])])
def test_while_a_send_is_under_way_its_receiver_is_woken_again_unless_that_was_just_done(size, rang, rung):
    it = Waiting([{NEIGHBOUR}], sending=size, rang=rang)
    assert Transport.wait(it)
    assert it.rung == rung


@pytest.fixture
def bells():
    """Two, of this process as if it were two."""
    own = Identity.own()
    identities = [own, replace(own, started=f"{own.started} again")]
    bells = [Bell(identity) for identity in identities]
    yield list(zip(bells, identities, strict=True))
    for bell in bells:
        bell.close()


def test_a_bell_wakes_its_process_once_and_says_why(bells):
    (one, _), (other, other_identity) = bells
    assert one.sleep(0) == set()
    one.ring_at(other_identity)
    ringing = threading.Thread(target=other.ring)
    ringing.start()
    ringing.join()
    assert other.sleep(20) | other.sleep(0.2) == {NEIGHBOUR, OWN}
    assert (one.sleep(0), other.sleep(0)) == (set(), set())


def test_a_bell_that_nobody_hears_holds_nobody_up(bells):
    (one, own), (_, other_identity) = bells
    for _ in range(1000):
        one.ring_at(other_identity)
    one.ring_at(replace(own, pid=1))


def test_without_names_for_sockets_a_bell_still_wakes_its_own_process(monkeypatch):
    monkeypatch.setattr("psgc.transport.waiting._address", lambda process: b"/no/such/directory/socket")
    bell = Bell(Identity.own())
    assert not bell.works
    bell.ring()
    assert bell.sleep(20) == {OWN}
    bell.close()
