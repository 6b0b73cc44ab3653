"""Memory that processes of a host share: real processes, which end at any time."""

import os
import signal
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest

from psgc.aggregation.map import SLOTS
from psgc.aggregation.shared import GENERATIONS, HostMemory, memory_bytes
from psgc.processes import Identity
from psgc.transport import Shared, host_memory
from psgc.transport.host_memory import attach, create, share

ENTRIES = 100_000


def begin(what):
    """Have another process call `what` with its end of a pipe; its pid, and the other end."""
    here, there = Pipe()
    if (pid := os.fork()) == 0:
        try:
            what(there)
        finally:
            os._exit(0)
    return pid, here


def end(pid, number=signal.SIGKILL):
    os.kill(pid, number)
    os.waitpid(pid, 0)


def opened(file, size, pid=None):
    return HostMemory((3, 5), attach(pid or os.getpid(), file, size), ENTRIES, np.float32)


@pytest.fixture
def size():
    return memory_bytes(2, ENTRIES, 4)


@pytest.fixture
def file(size):
    made = create(size)
    yield made
    os.close(made)


def test_what_a_rank_has_put_there_is_read_by_others_also_when_it_is_dead(file, size):
    def rank_5(pipe):
        memory = opened(file, size)
        memory.accumulator(5, 1)[:] = 7
        pipe.send("published")
        time.sleep(60)

    pid, pipe = begin(rank_5)
    memory = opened(file, size)
    assert pipe.recv() == "published"
    end(pid)
    assert (memory.accumulator(5, 1) == 7).all()
    assert not memory.accumulator(5, 0).any()
    assert not memory.accumulator(3, 1).any()


def test_places_of_ranks_slots_and_generations_do_not_overlap(size):
    memory = HostMemory((3, 5), bytearray(size), ENTRIES, np.float32)
    places = [memory.accumulator(rank, slot) for rank in (3, 5) for slot in range(SLOTS)]
    places += [memory.sums(rank, iteration) for rank in (3, 5) for iteration in range(GENERATIONS)]
    for number, place in enumerate(places):
        place[:] = number
    for rank in (3, 5):
        for iteration in range(GENERATIONS):
            memory.begin(rank, iteration)
    assert [set(place.tolist()) for place in places] == [{number} for number in range(len(places))]
    assert memory.sums(3, 7) is not memory.sums(3, 7 + GENERATIONS)
    assert np.shares_memory(memory.sums(3, 7), memory.sums(3, 7 + GENERATIONS))


def test_who_reads_sums_too_late_knows_it(size):
    memory = HostMemory((3, 5), bytearray(size), ENTRIES, np.float32)
    assert not memory.is_of(5, 0)
    assert memory.begin(5, 4)
    assert memory.begin(5, 4)
    assert memory.is_of(5, 4)
    assert not memory.is_of(3, 4)
    assert memory.begin(5, 5)
    assert memory.is_of(5, 4)
    assert memory.begin(5, 6)
    assert not memory.is_of(5, 4)
    assert not memory.begin(5, 4), "sums of a later iteration are overwritten"
    assert memory.is_of(5, 6)


def test_no_mixture_of_two_iterations_is_taken_for_one_of_them(file, size):
    """While another process writes one iteration after the other."""

    def writer(pipe):
        memory = opened(file, size)
        for iteration in range(1_000_000):
            memory.begin(5, iteration)
            memory.sums(5, iteration)[:] = iteration
            if iteration == 10:
                pipe.send("goes on")

    pid, pipe = begin(writer)
    memory, right, late, own = opened(file, size), 0, 0, np.empty(ENTRIES, np.float32)
    assert pipe.recv() == "goes on"
    try:
        until = time.monotonic() + 20.0
        while (right < 20 or late < 20) and time.monotonic() < until:
            firsts = [memory.sums(5, generation)[0] for generation in range(GENERATIONS)]
            newest = int(max(firsts)) - 1  # whose sums are written, if its rank is not two further by now
            np.copyto(own, memory.sums(5, newest))
            if memory.is_of(5, newest):
                right += 1
                assert (own == newest).all()
            else:
                late += 1
    finally:
        end(pid)
    assert right


def test_nothing_is_left_when_all_processes_are_killed(size):
    """While they hold the memory, and before all of them have opened it."""
    before = {*Path("/dev/shm").iterdir()}

    def first(pipe):
        made = create(size)
        memory = opened(made, size)
        memory.accumulator(3, 0)[:] = 1
        pipe.send(made)
        time.sleep(60)

    pid, pipe = begin(first)
    made = pipe.recv()
    memory = opened(made, size, pid)
    end(pid)
    assert (memory.accumulator(3, 0) == 1).all()
    left, until = {*Path("/dev/shm").iterdir()} - before, time.monotonic() + 5
    while (left := {path for path in left if path.exists()}) and time.monotonic() < until:  # of tests beside this one
        time.sleep(0.02)
    assert [path for path in left if "sm_segment" not in path.name] == []  # MPI's, of runs beside this one
    with pytest.raises(OSError, match="No such file"):
        opened(made, size, pid)


def test_memory_of_another_size_is_refused(file, size):
    with pytest.raises(ValueError, match=f"{size} bytes, not {size + 1}"):
        attach(os.getpid(), file, size + 1)


class Gathering:
    """Ranks that share one after the other; each run of them hears what was said in the one before."""

    def __init__(self, hosts, pids=None, unless=None):
        self.processes = [
            Identity(host, "machine", (pids or {}).get(rank, os.getpid()), "") for rank, host in enumerate(hosts)
        ]
        self.said, self.unless = [["-1"] * len(hosts), [""] * len(hosts)], unless or {}

    def run(self):
        for _ in range(3):
            found = [self.share(rank) for rank in range(len(self.processes))]
        return found

    def share(self, rank):
        rounds = iter(self.said)

        def gather(text):
            texts = next(rounds)
            texts[rank] = text
            return texts

        return share(rank, self.processes, gather, lambda ranks: 4096 * ranks, self.unless.get(rank, ""))


@pytest.fixture
def kept(monkeypatch):
    """Files of the first rank stay open: in this process ranks come one after the other."""
    monkeypatch.setattr(host_memory.os, "close", lambda _: None)


@pytest.mark.usefixtures("kept")
def test_ranks_of_a_host_share_memory_and_who_is_alone_does_not():
    found = Gathering(["a", "b", "a", "c", "c"]).run()
    assert [shared.hosts for shared, _ in found] == [(0, 1, 0, 3, 3)] * 5
    assert [shared.memory is None for shared, _ in found] == [False, True, False, False, False]
    assert found[0][0].of_host(2) == [0, 2]
    found[0][0].memory[5:6] = b"x"
    assert found[2][0].memory[5:6] == b"x"
    assert found[3][0].memory[5:6] == b"\0"


def test_a_rank_0_that_works_has_a_part_of_the_memory_behind_those_of_the_processes_of_its_host():
    """Wherever it is: the parts of the others stay where they are when another process is rank 0."""
    shared = Shared((0, 0, 2, 2))  # by place
    for server, expected in ((0, [1, 2, 0]), (1, [1, 2, 0]), (3, [3, 4, 0])):
        found = shared.of([server, 0, 1, 2, 3])
        assert found.of_host(0) == expected
        assert found.of_host(1)[:2] == [1, 2]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("rank", [0, 2])
def test_a_host_of_which_a_rank_cannot_share_does_not_and_others_do(rank):
    found = Gathering(["a", "b", "a", "c", "c"], unless={rank: "a GPU"}).run()
    assert [(shared.hosts, reasons) for shared, reasons in found] == [((0, 1, 2, 3, 3), ["a GPU"])] * 5
    assert [shared.memory is None for shared, _ in found] == [True, True, True, False, False]


@pytest.mark.usefixtures("kept")
def test_ranks_that_cannot_open_the_memory_of_their_host_say_why():
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    found = Gathering(["a", "a"], pids={0: gone}).run()
    assert {shared for shared, _ in found} == {Shared()}
    assert "cannot open the memory of rank 0: [Errno 2]" in found[0][1][0]


def test_where_there_is_no_memory_to_share_ranks_say_so(monkeypatch):
    def fails(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(host_memory.os, "memfd_create", fails)
    found = Gathering(["a", "a"]).run()
    assert found == [(Shared(), ["no memory to share: [Errno 38] Function not implemented"])] * 2
