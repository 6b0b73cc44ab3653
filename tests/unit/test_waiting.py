"""How a process waits for messages, and what wakes it; without MPI."""

import threading
from dataclasses import replace
from functools import partial
from math import inf
from types import SimpleNamespace

import pytest

from psgc.messages import Kind, record
from psgc.processes import Identity
from psgc.transport import Transport, pauses, waiting
from psgc.transport.pauses import NAP, REST, Pauses
from psgc.transport.sends import SMALL
from psgc.transport.waiting import BUSY, LARGE, LONGEST, NEIGHBOUR, OWN, SHORTEST, SILENCE, SILENT, SPINS, Backoff, Bell
from psgc.vectors import MESSAGE


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


class Waiting(Pauses):
    """A process that waits: whether others ring, what its bell rings, the bytes that it is sending to rank 2, and
    whether a send has ended at each look. Rank 2 and 3 are on its host, which has fewer cores."""

    def __init__(self, rings, works=True, sending=0, ends=()):
        self.slept = []  # seconds
        self.looks = []  # at what is being sent
        self.rung = []  # ranks
        rings, ended = iter(rings), iter(ends)

        def sleep(seconds):
            self.slept.append(seconds)
            return next(rings)

        super().__init__(SimpleNamespace(works=works, sleep=sleep, ring_at=self.rung.append))
        self.enter({rank: rank for rank in range(4)})
        receives = SimpleNamespace(repost=lambda: None, has_message=lambda: False)
        sends = SimpleNamespace(
            largest=lambda: sending,
            poll=lambda: self.looks.append(sending) or next(ended, False),
            pending=lambda: {2: sending},
        )
        self.add(receives, sends)
        self.start(range(4))


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    monkeypatch.setattr(pauses, "os", SimpleNamespace(sched_getaffinity=lambda pid: {0}))


@pytest.fixture
def clock(monkeypatch):
    """Its time is that of the fixture."""
    it = SimpleNamespace(now=1.0)
    monkeypatch.setattr(pauses, "time", SimpleNamespace(monotonic=lambda: it.now))
    return it


@pytest.mark.parametrize(
    ("rung", "others", "comes"),
    [
        ({OWN}, {}, False),
        ({NEIGHBOUR}, {}, True),
        ({OWN, NEIGHBOUR}, {}, True),
        ({OWN}, {"works": False}, True),  # others send without ringing
    ],
)
def test_something_may_have_come_unless_only_an_own_thread_has_rung(rung, others, comes):
    assert Waiting([rung], **others).wait() == comes


@pytest.mark.parametrize("size", [100, LARGE])
def test_what_is_being_sent_goes_on_when_an_own_thread_has_rung(size):
    it = Waiting([{OWN}], sending=size)
    assert not it.wait(busy=True)
    assert it.looks == [size] * 2
    assert Waiting([{OWN}], sending=size).wait(busy=True, exchanging=True)


def test_while_blocks_are_exchanged_the_end_of_a_send_ends_the_wait():
    it = Waiting([set()], sending=100, ends=[True])
    assert it.wait(nap=NAP, exchanging=True)
    assert it.slept == [NAP]


@pytest.mark.parametrize(("rest", "slept"), [(inf, waiting.BELL), (1.0, waiting.BELL), (5e-3, 5e-3), (-1.0, LONGEST)])
def test_who_has_something_to_do_later_sleeps_until_then(rest, slept):
    it = Waiting([set(), {NEIGHBOUR}])
    assert it.wait(rest=rest)
    assert it.slept[0] == slept


@pytest.mark.parametrize("size", [0, SMALL, SMALL + 1, LARGE, MESSAGE, MESSAGE + 1])
@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.usefixtures("clock")  # else it may give up
def test_a_worker_that_is_sending_looks_soon_unless_it_computes_or_mpi_has_taken_it(size, more, busy):
    it = Waiting([set(), set(), set(), {NEIGHBOUR}], sending=size)
    assert it.wait(busy=busy, more=more)
    is_quiet = not size or (busy and size <= MESSAGE)
    assert it.slept[-1] == (waiting.BELL if is_quiet else NAP if more or size > SMALL else REST)


@pytest.mark.parametrize(
    ("size", "ago", "rung"),
    [(100, NAP, []), (100, REST, [2]), (SMALL + 1, 0.0, []), (SMALL + 1, NAP, [2]), (0, 1.0, [])],
)
def test_while_a_send_is_under_way_its_receiver_is_woken_again_unless_that_was_just_done(size, ago, rung, clock):
    it = Waiting([{NEIGHBOUR}], sending=size)
    it.sent(3)
    it.wake_others()
    clock.now += 1.01 * ago
    assert it.wait()
    assert it.rung == [3, *rung]


def test_who_was_sent_several_messages_is_woken_once_and_not_on_another_host():
    it = Waiting([{NEIGHBOUR}])
    for dest in (2, 3, 2, 5):
        it.sent(dest)
    for _ in range(2):
        it.wake_others()
    assert sorted(it.rung) == [2, 3]
    it.sent(2)
    it.enter({0: 0, 1: 1, 2: 2})  # in the new term rank 2 may be another process
    it.wake_others()
    assert sorted(it.rung) == [2, 3]


def test_who_is_sent_what_does_not_hurry_is_not_woken():
    it = Waiting([])
    end = SimpleNamespace(pauses=it, _is_second=False, _control=None, _sends=SimpleNamespace(send=lambda *_: None))
    end._send = partial(Transport._send, end)
    Transport.send(end, 2, [record(Kind.BEGIN, 0)])
    Transport.send(end, 3, [record(Kind.STEPPED, 0)], hurries=False)
    it.wake_others()
    assert it.rung == [2]


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
