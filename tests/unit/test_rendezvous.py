"""How ranks come together, without MPI; what happens to real ranks is in tests/ranks."""

from math import inf
from types import SimpleNamespace

import numpy as np
import pytest

from psgc import processes, rendezvous
from psgc.errors import RunFailed
from psgc.rendezvous import Rendezvous

TEXTS = b'["any", "any"]'  # what the other rank sends while they meet
LIMIT = 30.0  # seconds for which a rank may be stopped


class Process:
    """Of the other rank; stopped: between which moments it is."""

    host, stopped, kills = "there", (), 0

    def __init__(self, clock):
        self._clock = clock

    def text(self):
        return "any"

    def is_near(self, other):
        return True

    def is_gone(self):
        return False

    def is_stopped(self):
        return any(begin <= self._clock.now < end for begin, end in self.stopped)

    def kill(self):
        self.kills += 1
        return False


class World:
    """This rank of two. The other one takes what it is sent at the moment `takes`."""

    def __init__(self, clock, rank):
        self._clock, self._rank, self.takes, self._texts = clock, rank, 0.0, 1

    def Get_rank(self):
        return self._rank

    def Get_size(self):
        return 2

    def Isend(self, *_):
        return SimpleNamespace(Test=lambda: self._clock.now >= self.takes)

    def Improbe(self, source, tag, status):
        self._texts -= 1
        status.Set_source(1 - self._rank)
        status.Set_tag(rendezvous.DATA_TAG)
        return SimpleNamespace(Irecv=self._fill) if self._texts >= 0 else None

    def _fill(self, buffer):
        buffer[0][:] = np.frombuffer(TEXTS, np.uint8)
        return SimpleNamespace(Test=lambda: True)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + 0.25)
    for module in (processes, rendezvous):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def meet(clock, monkeypatch):
    """Gives the rendezvous of a rank, the world, and the process of the other rank."""

    def meet(rank):
        process, world = Process(clock), World(clock, rank)
        identity = SimpleNamespace(own=lambda: process, from_text=lambda _: process)
        monkeypatch.setattr(rendezvous, "Identity", identity)
        monkeypatch.setattr(rendezvous, "failed_ranks", lambda _: [])
        monkeypatch.setattr(rendezvous, "received", lambda _: len(TEXTS))
        return Rendezvous(world, timeout=600.0), world, process

    return meet


@pytest.fixture
def ranks(meet):
    return meet(0)


def test_short_stops_do_not_add_up(ranks, clock):
    it, world, process = ranks
    process.stopped, world.takes = ((10.0, 35.0), (36.0, 60.0), (61.0, 85.0)), 100.0
    it.broadcast(b"data", "starting")
    assert clock.now >= 100.0


def test_who_is_stopped_for_too_long_at_a_time_ends_the_run(ranks, clock):
    it, world, process = ranks
    process.stopped, world.takes = ((10.0, 15.0), (20.0, 60.0)), 100.0
    with pytest.raises(RunFailed, match="rank 1 on there is stopped for 30 s"):
        it.broadcast(b"data", "starting")
    assert 20.0 + LIMIT <= clock.now < 20.0 + LIMIT + 2.0


def test_the_time_in_which_this_rank_was_stopped_itself_does_not_count(ranks, clock):
    it, world, process = ranks
    process.stopped, world.takes = ((10.0, 10_000.0),), 10_010.0
    sleep = clock.sleep
    clock.sleep = lambda seconds: setattr(clock, "now", 10_005.0) if 15.0 < clock.now < 10_000.0 else sleep(seconds)
    it.broadcast(b"data", "starting")


def test_who_gives_nothing_for_too_long_ends_the_run_and_is_killed(ranks, clock):
    it, world, process = ranks
    world.takes = inf
    with pytest.raises(RunFailed, match=r"nothing came for 600 s \(faults.setup_timeout\) from rank 1, starting"):
        it.broadcast(b"data", "starting")
    assert 600.0 <= clock.now < 602.0
    assert process.kills == 1


def test_rank_0_is_waited_for_twice_as_long_since_it_may_wait_for_another(meet, clock):
    it, _, process = meet(1)
    with pytest.raises(RunFailed, match="nothing came for 600 s"):
        it.broadcast(None, "starting")
    assert 1200.0 <= clock.now < 1202.0
    assert process.kills == 1


def test_who_has_died_is_noticed_at_once_without_a_word_of_mpi(ranks, clock):
    it, world, process = ranks
    process.is_gone, world.takes = lambda: clock.now >= 10.0, inf
    with pytest.raises(RunFailed, match=r"^rank 1 on there died while the run was being set up$"):
        it.broadcast(b"data", "starting")
    assert 10.0 <= clock.now < 12.0
