"""How ranks come together, without MPI; what happens to real ranks is in tests/ranks."""

import json
from math import inf
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from psgc import processes, rendezvous
from psgc.errors import FirstDied, FirstSilent, RunFailed
from psgc.rendezvous import Rendezvous

TEXTS = b'["any", "any", "any"]'  # what the other rank sends while they meet
LIMIT = 30.0  # seconds for which a rank may be stopped


class Process:
    """Of the other rank; stopped: between which moments it is."""

    host, stopped, kills, ended = "there", (), 0, inf
    runs = inf  # seconds between two moments at which it runs, unseen, while it is stopped
    reason = None  # to end, that this rank is told

    def __init__(self, clock):
        self._clock = clock

    def text(self):
        return "any"

    def is_near(self, other):
        return True

    def is_gone(self):
        return self._clock.now >= self.ended

    def is_stopped(self):
        return any(begin <= self._clock.now < end for begin, end in self.stopped)

    def switches(self):
        return self._clock.now // self.runs

    def kill(self):
        self.kills += 1
        return False


class World:
    """This rank of two. The other one sends these (tag, data), and takes what it is sent at the moment `takes`."""

    def __init__(self, clock, rank):
        self._clock, self._rank, self.takes, self.sends = clock, rank, 0.0, [(rendezvous.DATA_TAG, TEXTS)]
        self.told = []  # what the other one is sent

    def Get_rank(self):
        return self._rank

    def Get_size(self):
        return 2

    def Isend(self, message, rank, tag):
        self.told.append((tag, bytes(message[0])))
        return SimpleNamespace(Test=lambda: self._clock.now >= self.takes)

    def Improbe(self, source, tag, status):
        wanted = [sent for sent in self.sends if tag in (sent[0], MPI.ANY_TAG)]
        if not wanted:
            return None
        self.sends.remove(wanted[0])
        tag, self.data = wanted[0]
        status.Set_source(1 - self._rank)
        status.Set_tag(tag)
        return SimpleNamespace(Irecv=self._fill)

    def _fill(self, buffer):
        buffer[0][:] = np.frombuffer(self.data, np.uint8)
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
        monkeypatch.setattr(rendezvous, "received", lambda _: len(world.data))
        return Rendezvous(world, interrupted=lambda: process.reason, timeout=600.0), world, process

    return meet


@pytest.fixture
def ranks(meet):
    return meet(0)


def test_texts_are_gathered_with_512_bytes_of_each(ranks):
    it, world, _ = ranks
    world.sends = [(rendezvous.DATA_TAG, b"the other one's")]
    assert it.gather("x" * 600) == ["x" * 512, "the other one's"]
    assert json.loads(world.told[-1][1]) == ["x" * 512, "the other one's"]


def test_all_texts_that_have_come_are_taken_at_once(ranks, clock, monkeypatch):
    """With a pause after each a start of many ranks would take long."""
    it, *_ = ranks
    texts = iter(range(1, 40))
    monkeypatch.setattr(it, "_others", range(1, 40))
    monkeypatch.setattr(it, "_receive", lambda *_: (next(texts), 0, b"x"))
    began = clock.now
    assert len(it.gather("x")) == 40
    assert clock.now - began < 1.0


def test_the_reminder_of_a_rank_that_waits_is_not_its_text(ranks):
    it, world, _ = ranks
    world.sends = [(rendezvous.REMINDER_TAG, b""), (rendezvous.DATA_TAG, b"its text")]
    assert it.gather("mine") == ["mine", "its text"]


def test_of_several_that_die_rank_0_is_named_since_the_others_have_left_because_of_that(meet, monkeypatch):
    it, _, _ = meet(1)
    monkeypatch.setattr(rendezvous, "failed_ranks", lambda _: [2, 0])
    with pytest.raises(FirstDied, match="rank 0 on there died while the run was being set up"):
        it.broadcast(None)


def test_short_stops_do_not_add_up(ranks, clock):
    it, world, process = ranks
    process.stopped, world.takes = ((10.0, 35.0), (36.0, 60.0), (61.0, 85.0)), 100.0
    it.broadcast(b"data", "starting")
    assert clock.now >= 100.0


def test_who_runs_between_the_looks_that_find_it_stopped_is_only_slow(ranks, clock):
    it, world, process = ranks
    process.stopped, process.runs, world.takes = ((10.0, 90.0),), 20.0, 100.0
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


def test_who_has_ended_is_not_waited_for(ranks, clock):
    """Without fault tolerance MPI does not tell."""
    it, world, process = ranks
    world.takes, process.ended = inf, 5.0
    with pytest.raises(RunFailed, match="rank 1 on there died while the run was being set up"):
        it.broadcast(b"data", "starting")
    assert 5.0 <= clock.now < 7.0


def test_who_is_told_to_end_ends(ranks, clock):
    it, world, process = ranks
    world.takes, process.reason = inf, "stopped by SIGINT"
    with pytest.raises(RunFailed, match="stopped by SIGINT"):
        it.broadcast(b"data", "starting")
    assert clock.now < 1.0
    assert world.told[-1] == (rendezvous.OFF_TAG, b'["stopped by SIGINT", []]')  # so that nobody takes it for a death


def test_who_gives_nothing_for_too_long_ends_the_run_and_is_killed(ranks, clock, capsys):
    it, world, process = ranks
    world.takes = inf
    with pytest.raises(RunFailed, match=r"nothing came for 600 s \(faults.setup_timeout\) from rank 1, starting"):
        it.broadcast(b"data", "starting")
    assert 600.0 <= clock.now < 602.0
    assert process.kills == 1
    reason = "nothing came for 600 s (faults.setup_timeout) from rank 1, starting"
    assert world.told[-1] == (rendezvous.OFF_TAG, json.dumps([reason, [1]]).encode())
    said = capsys.readouterr().err.splitlines()
    assert said == [f"waiting for rank 1 for {seconds} s, starting" for seconds in (20, 40, 80, 160, 320)]


def test_rank_0_is_waited_for_twice_as_long_since_it_may_wait_for_another(meet, clock):
    it, _, process = meet(1)
    with pytest.raises(FirstSilent, match="nothing came for 600 s"):
        it.broadcast(None, "starting")
    assert 1200.0 <= clock.now < 1202.0
    assert process.kills == 1


def test_rank_0_says_how_long_to_wait_and_that_the_run_is_off(meet, clock):
    it, world, process = meet(1)
    world.sends = [(rendezvous.PATIENCE_TAG, np.array([50.0, 3.0]).tobytes())]
    with pytest.raises(RunFailed, match="nothing came for 50 s"):
        it.broadcast(None, "starting")
    assert 100.0 <= clock.now < 102.0
    world.sends = [(rendezvous.OFF_TAG, b'["it is over", [0]]')]
    with pytest.raises(RunFailed, match="it is over"):
        it.broadcast(None, "starting")
    assert clock.now < 103.0
    assert process.kills == 2
