"""Inside the ranks of one run: ranks die, the others say what their transport told them of it.

    mpirun --with-ft ulfm -n 4 python -m tests.ranks.inside_transport_faults CASE

With LARGEST in the environment MPI can count no further than that, as with messages of 2 GiB and more.

Every rank that lives to see the end of a case leaves a file of its number in the folder CONTENT of the environment; an
assertion that fails leaves a traceback and no such file. Not collected by itself; `test_transport.py` starts it.
"""

import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from pathlib import Path

import numpy as np

from psgc import rendezvous
from psgc.messages import Kind, record
from psgc.transport import Transport, Vector
from psgc.vectors import BlockName, pack_block, stamp
from tests.ranks.ear import LARGE, Ear, die, failure, finish, is_content, start


def idle(*victims):
    """Nobody sends anything; everybody notices."""
    transport, ear = start()
    if transport.rank in map(int, victims):
        print(f"killed {time.monotonic()}\n", end="", flush=True)
        die()
    ear.until_died(*map(int, victims))
    print(f"noticed {max(ear.died[int(victim)] for victim in victims)}\n", end="", flush=True)
    finish(transport, ear)


def traffic(count=3000, length=1000, window=40, every=5):
    """Numbered records and vectors in both directions; rank 2 dies on the way, nothing of the others is lost."""
    transport, ear = start(buffers=3, length=length)
    want = [*range(count)], [*range(0, count, every)]
    if transport.rank == 0:
        answered = Counter()
        living = [rank for rank in range(1, transport.size) if rank != 2]

        def serve():
            for rank in range(1, transport.size):
                for n in range(answered[rank], len(ear.records[rank])):
                    transport.send(rank, [record(Kind.ALIVE, iteration=ear.records[rank][n][2])])
                answered[rank] = len(ear.records[rank])
                for n in range(answered[-rank], len(ear.vectors[rank])):
                    iteration, value, length = ear.vectors[rank][n]
                    transport.send_vector(rank, stamp(np.full(length, value), iteration, 1))
                answered[-rank] = len(ear.vectors[rank])
            return all(len(ear.records[rank]) >= count for rank in living) and 2 in ear.died

        ear.until(serve, "everything")
        for rank in range(1, transport.size):
            numbers = [entry[2] for entry in ear.records[rank] if entry[0] == Kind.REPORT]
            vectors = [vector[0] for vector in ear.vectors[rank]]
            if rank == 2:
                assert 0 < len(numbers) < count
                assert numbers == want[0][: len(numbers)]
                assert vectors == want[1][: len(vectors)]
            else:
                assert numbers == want[0]
                ear.until(lambda rank=rank: serve() and len(ear.vectors[rank]) == len(want[1]), "the vectors")
                assert [vector[0] for vector in ear.vectors[rank]] == want[1]
                assert all(vector[:2] == (vector[0], float(vector[0])) for vector in ear.vectors[rank])
        assert list(ear.died) == [2]
    else:
        sent = 0

        def work():
            nonlocal sent
            while sent < count and sent - len(ear.records[0]) < window:
                transport.send(0, [record(Kind.REPORT, iteration=sent)])
                if sent % every == 0:
                    transport.send_vector(0, stamp(np.full(length, float(sent)), sent, 1))
                sent += 1
                if transport.rank == 2 and sent == count // 3:
                    die()
            return len(ear.records[0]) >= count and len(ear.vectors[0]) == len(want[1])

        ear.until(work, "the echo")
        assert [entry[2] for entry in ear.records[0] if entry[0] == Kind.ALIVE] == want[0]
        assert [vector[0] for vector in ear.vectors[0]] == want[1]
    finish(transport, ear)


class Holder(Ear):
    """Keeps the last five vectors, whatever arrives meanwhile."""

    def __init__(self, transport):
        super().__init__(transport)
        self.held = deque()

    def take(self, vector):
        self.transport.keep(vector.buffer)
        self.held.append((vector, float(vector.buffer[0])))
        if len(self.held) <= 5:
            self.transport.post(np.empty_like(vector.buffer))  # in its place
            return
        oldest, value = self.held.popleft()
        assert (oldest.buffer[: oldest.length] == value).all(), "a kept vector has changed"
        self.transport.post(oldest.buffer)


def blocks(victim="", count=12, length=1 << 17, window=2):
    """Everybody sends everybody numbered blocks of 1 MiB. A victim takes one, sends all its blocks at once and dies."""
    transport = Transport()
    transport.start(from_everybody=True)
    for _ in range(0 if victim == str(transport.rank) else 3):
        transport.post(np.empty(length + 2))
    transport.gather("")
    ear = Holder(transport)
    others = [rank for rank in range(transport.size) if rank != transport.rank]
    living = [rank for rank in others if str(rank) != victim]
    sent = {rank: [] for rank in others}

    def send(most):
        for rank in others:
            while len(sent[rank]) < count and sum(not sending.is_done for sending in sent[rank]) < most:
                n = len(sent[rank])
                block = stamp(np.full(length + 2, float(n)), n, pack_block(BlockName(0, 0, transport.rank, n)))
                sent[rank].append(transport.send_vector(rank, block))

    if victim == str(transport.rank):
        transport.post(np.empty(length + 2))
        while not any(isinstance(message, Vector) for message in transport.poll()):
            transport.wait()
        send(count)
        die()

    def exchanged():
        send(window)
        done = all(len(mine) == count and all(sending.is_free for sending in mine) for mine in sent.values())
        return done and all(len(ear.vectors[rank]) == count for rank in living)

    ear.until(exchanged, "all blocks")
    for rank in others:
        numbers = [(n, float(n), length) for n in range(count)]
        assert ear.vectors[rank] == (numbers if rank in living else numbers[: len(ear.vectors[rank])])
    for rank in living:  # workers hear each other's records as well, and of each other's deaths
        transport.send(rank, [record(Kind.STATE)])
    for rank in living:
        ear.until_kind(rank, Kind.STATE)
    if victim:
        ear.until_died(int(victim))
    assert len(ear.died) == bool(victim)
    if transport.rank:
        transport.send(0, [record(Kind.ALIVE)])
    for rank in living if transport.rank == 0 else ():  # who leaves is dead to the others
        ear.until_kind(rank, Kind.ALIVE)
    finish(transport, ear)


def another_serves():
    """Rank 0 dies with vectors under way, then rank 1 is rank 0. What was sent in the old term comes to nobody."""
    transport, ear = start()
    calls = []
    transport.hear_outside = lambda place, records: calls.append((place, int(records["kind"][0])))
    if transport.rank == 0:
        for rank in range(1, transport.size):
            ear.until_kind(rank, Kind.GOODBYE)  # all have begun
            transport.send_vector(rank, stamp(np.zeros(LARGE), 0, 0))
        die()
    transport.send(0, [record(Kind.GOODBYE)])
    ear.until_died(0)
    old = record(Kind.ALIVE)
    for rank in range(1, transport.size):
        transport.send(rank, [old])
        transport.send_vector(rank, stamp(np.full(LARGE, float(transport.rank)), 1, 0))
    for place in range(1, transport.size):
        transport.send_outside(place, [record(Kind.GIVE)])
    transport.enter(transport.term.following(1))
    assert transport.rank == [1, 0, 2, 3][transport.place]
    transport.start(from_everybody=True)
    ear = Ear(transport)
    ear.take = lambda vector: None
    for _ in range(4):
        transport.post(np.empty(LARGE))
    for rank in (0, 2, 3):
        transport.send(rank, [record(Kind.REPORT)])
        transport.send_text(rank, "x" * 60_000)
        transport.send_vector(rank, stamp(np.full(LARGE, float(transport.rank)), 2, 0))
    for rank in (0, 2, 3):
        ear.until_kind(rank, Kind.REPORT)
        ear.until(lambda rank=rank: ear.vectors[rank], f"the vector of {rank}")
        assert ear.vectors[rank] == [(2, float(rank), LARGE - 2)]
        assert Kind.ALIVE not in [entry[0] for entry in ear.records[rank]]
        ear.until(lambda rank=rank: ear.texts[rank] == b"x" * 60_000, f"the text of {rank}")
    ear.until(lambda: len(calls) == 3, "what was sent outside of the terms")
    assert sorted(calls) == [(place, Kind.GIVE) for place in (1, 2, 3)]
    ear.until_died(1)
    finish(transport, ear, code=3)


def setup(when, victim):
    """A rank dies while the others wait for it or for each other; everybody gets the same error."""
    transport = Transport()
    if transport.rank == int(victim):
        if transport.rank == 0:
            transport.gather("")  # then everybody has its transport
        die()
    if transport.rank == 0 and when == "late":  # its collective, begun after the death, alone would not learn of it
        while Path(f"/proc/{transport.pids[int(victim)]}").exists():
            time.sleep(0.001)

    def set_up():
        transport.gather("")
        for _ in range(3):
            transport.broadcast(b"x" * 100_000 if transport.rank == 0 else None)
            transport.gather("")

    assert failure(set_up) == f"rank {victim} on {transport.hosts[int(victim)]} died while the run was being set up"
    is_content(transport.rank)
    transport.leave(1 if transport.rank == 0 else 0, [r for r in range(1, transport.size) if r != int(victim)])


def missing(how, victim):
    """A rank leaves or is busy for too long before the others have heard it: they end, and say why."""
    transport = Transport()
    victim = int(victim)
    if transport.rank == 0:
        transport.be_patient(2.0, 30.0)
    rendezvous.FIRST_WORD = 0.2

    def set_up():
        transport.gather("")  # the patience has come
        if transport.rank == victim:
            if how == "leaves":
                os._exit(0)  # mpirun would end the others for another code
            while True:
                signal.pause()
        transport.gather("", "thinking")

    expected = {
        "leaves": f"rank {victim} on {transport.hosts[victim]} died while the run was being set up",
        "thinks": f"nothing came for 2 s (faults.setup_timeout) from rank {victim}, thinking",
    }
    assert failure(set_up) == expected[how]  # some may not have left the first when rank 0 leaves
    is_content(transport.rank)
    transport.leave(1 if transport.rank == 0 else 0, [r for r in range(1, transport.size) if r != victim])


def stopped():
    """Rank 2 is stopped: the server forgets it, remembers it when it comes back, and gets and sends everything."""
    transport, ear = start()
    if transport.rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    if transport.rank == 0:
        while Path(f"/proc/{transport.pids[2]}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        vectors = [stamp(np.full(LARGE, float(n)), n, 0) for n in range(2)]
        to_2 = [transport.send_vector(2, vector) for vector in vectors]
        to_1 = [transport.send_vector(1, vector) for vector in vectors]
        ear.until(lambda: any(entry[0] == Kind.ALIVE for entry in ear.records[1]), "rank 1")
        ear.until(lambda: all(sending.is_free for sending in to_1), "rank 1's vectors")
        assert transport.sending()
        assert not any(sending.is_done or sending.is_free for sending in to_2)
        transport.forget(2)
        assert all(sending.is_done and not sending.is_free for sending in to_2)
        ear.until(lambda: not transport.sending(), "forgetting")
        assert not transport.sending(vectors[0])
        transport.remember(2)
        assert transport.sending()
        transport.forget(2)
        os.kill(transport.pids[2], signal.SIGCONT)
        ear.until_kind(2, Kind.ALIVE)
        transport.remember(2)
        ear.until(lambda: not transport.sending(), "remembering")
        assert all(sending.is_free for sending in to_2)
        assert not ear.died
    else:
        ear.until(lambda: len(ear.vectors[0]) == 2, "the vectors")
        transport.send(0, [record(Kind.ALIVE)])
    finish(transport, ear)


def killed():
    """A stopped rank is killed by the server; texts come before records; the exit code is the server's."""
    transport, ear = start()
    if transport.rank == 2:
        transport.send_text(0, "y" * 60_000)
        os.kill(os.getpid(), signal.SIGSTOP)
    if transport.rank == 1:
        transport.send_text(0, "z" * 60_000)
        transport.send(0, [record(Kind.ALIVE)])
    if transport.rank == 0:
        while Path(f"/proc/{transport.pids[2]}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        transport.send_vector(2, stamp(np.ones(LARGE), 0, 0))
        assert transport.kill(2)
        ear.until_died(2)
        assert transport.kill(2)
        assert not transport.sending()
        ear.until_kind(1, Kind.ALIVE)
        assert ear.texts[1] == b"z" * 60_000
    finish(transport, ear, code=3)


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](*sys.argv[2:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
