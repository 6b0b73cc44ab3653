"""How a process waits for messages, and what wakes it; without MPI."""

import threading
from dataclasses import replace
from math import inf
from types import SimpleNamespace

import pytest

from psgc.messages import MESSAGE, Kind, record
from psgc.processes import Identity
from psgc.transport import waiting
from psgc.transport.sends import SMALL
from psgc.transport.transport import NAP, REST, Transport
from psgc.transport.waiting import BUSY, LARGE, LONGEST, NEIGHBOUR, OWN, SHORTEST, SILENCE, SILENT, SPINS, Backoff, Bell


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


def test_who_is_woken_looks_rarely_and_a_few_times_soon_when_the_bell_has_rung():
    """It came too early, or too late: then nothing comes."""
    it = Backoff(waiting.BELL)
    assert sleeps(it, 2) == sleeps(it, 2, busy=True) == [waiting.BELL] * 2
    for busy, short in ((False, SHORTEST), (True, BUSY)):
        it.rung()
        assert sleeps(it, SPINS + 1, busy=busy) == [*[short] * SPINS, waiting.BELL]
    it.rung()
    it.came()
    it.reset()  # what came is answered
    assert it.next(large=False, busy=True, least=NAP) == 0.0  # one poll does not find everything that is in MPI
    assert sleeps(it, 1) == [waiting.BELL]


class Waiting:
    """A transport that waits: whether others ring, what its bell rings, the bytes that it is sending to rank 2, and
    whether a send has ended at each look."""

    _send = Transport._send

    def __init__(self, rings, is_woken=True, sending=0, rang=0.0, ends=()):
        self.slept = []  # seconds
        self.looks = []  # at what is being sent
        self.rung = []  # ranks
        self._rings = iter(rings)
        self._receives = SimpleNamespace(repost=lambda: None, stirs=lambda: False)
        ended = iter(ends)
        self._control, self._to_wake = None, set()
        self._sends = SimpleNamespace(
            send=lambda *_: None,
            largest=lambda: sending,
            poll=lambda: self.looks.append(sending) or next(ended, False),
            pending=lambda: {2: sending},
        )
        self._bell, self.is_woken, self._rang = self, is_woken, rang
        self._ring_at, self.wake_others = self.rung.extend, lambda: None
        self._second = self.beside = None
        self._is_second = False
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
    it = Waiting([set()], sending=100, ends=[True])
    assert Transport.wait(it, nap=NAP, exchanging=True)
    assert it.slept == [NAP]


@pytest.mark.parametrize(("rest", "slept"), [(inf, waiting.BELL), (1.0, waiting.BELL), (5e-3, 5e-3), (-1.0, LONGEST)])
def test_who_has_something_to_do_later_sleeps_until_then(rest, slept):
    it = Waiting([set(), {NEIGHBOUR}])
    assert Transport.wait(it, rest=rest)
    assert it.slept[0] == slept


@pytest.mark.parametrize("size", [0, SMALL, SMALL + 1, LARGE, MESSAGE, MESSAGE + 1])
@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_that_is_sending_looks_soon_unless_it_computes_or_mpi_has_taken_it(size, more, busy, monkeypatch):
    monkeypatch.setattr("psgc.transport.transport.time", SimpleNamespace(monotonic=lambda: 1.0))  # else it may give up
    it = Waiting([set(), set(), set(), {NEIGHBOUR}], sending=size)
    assert Transport.wait(it, busy=busy, more=more)
    is_quiet = not size or (busy and size <= MESSAGE)
    assert it.slept[-1] == (waiting.BELL if is_quiet else NAP if more or size > SMALL else REST)


@pytest.mark.parametrize(
    ("size", "ago", "rung"),
    [(100, NAP, []), (100, REST, [2]), (SMALL + 1, 0.0, []), (SMALL + 1, NAP, [2]), (0, 1.0, [])],
)
def test_while_a_send_is_under_way_its_receiver_is_woken_again_unless_that_was_just_done(size, ago, rung, monkeypatch):
    monkeypatch.setattr("psgc.transport.transport.time", SimpleNamespace(monotonic=lambda: 1.0))
    it = Waiting([{NEIGHBOUR}], sending=size, rang=1.0 - 1.01 * ago)
    assert Transport.wait(it)
    assert it.rung == rung


def test_who_was_sent_several_messages_is_woken_once_and_not_for_one_that_does_not_hurry():
    it = Waiting([{NEIGHBOUR}])
    for dest in (2, 3, 2):
        Transport.send(it, dest, [record(Kind.BEGIN, 0)])
    Transport.send(it, 1, [record(Kind.STEPPED, 0)], hurries=False)
    for _ in range(2):
        Transport.wake_others(it)
    assert sorted(it.rung) == [2, 3]


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
    for _ in range(3):
        one.ring_at(other_identity)
    assert other.sleep(20) == {NEIGHBOUR}
    assert other.sleep(0) == set()
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
