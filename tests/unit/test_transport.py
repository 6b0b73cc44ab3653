"""The transport's own bookkeeping, without MPI; what it does with MPI is in tests/ranks."""

import weakref
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest

from psgc import processes
from psgc.messages import OF_WORKERS_RECORD, Kind, record
from psgc.mpi_start import MPI
from psgc.transport import Control, Died, Term, Vector, receives, sends
from psgc.transport.receives import Receives
from psgc.transport.sends import SLOWEST, SMALL, Sends
from psgc.transport.transport import Transport
from psgc.vectors import bundle, mark, stamp
from tests.stand_in import cupy

FIRST = Term(0, 5)


class Status:
    def __init__(self, source=MPI.ANY_SOURCE, size=0, error=MPI.SUCCESS):
        self.source, self.size, self.error = source, size, error

    def Get_source(self):
        return self.source

    def Get_elements(self, _):
        return self.size

    def Get_error(self):
        return self.error


class Request:
    """status: with which it ends; None while it is pending. moves: MPI sees that only in the call after the next."""

    def __init__(self, buffer=None, status=None, moves=False):
        self.buffer, self.status, self.moves, self.is_null = buffer, status, moves, False

    def __eq__(self, other):
        return self.is_null and other.is_null

    __hash__ = object.__hash__

    def ends(self):
        self.moves, moved = False, not self.moves
        self.is_null = self.is_null or (moved and self.status is not None)
        return self.is_null

    def Test(self, status=None):
        if self.ends() and status is not None:
            vars(status).update(vars(self.status))
        return self.is_null


class Mpi:
    """In the place of MPI and of its communicators: requests end when a test says so. posted: receives, in order.

    error: what the next look at several requests raises, with these statuses. dead: ranks.
    """

    ANY_SOURCE, ANY_TAG, SUCCESS, Exception = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.SUCCESS, MPI.Exception
    ERR_PROC_FAILED_PENDING = MPI.ERR_PROC_FAILED_PENDING
    Status, REQUEST_NULL = Status, Request()
    REQUEST_NULL.is_null = True

    def __init__(self):
        self.Request, self.posted, self.dead, self.error = self, [], {}, None
        self.forgive = lambda *_: None

    def Isend(self, *_):
        return Request()

    def Irecv(self, message, *_):
        self.posted.append(Request(message[0]))
        return self.posted[-1]

    def Testsome(self, requests, statuses=None):
        if self.error is not None:
            statuses += self.error
            self.error = None
            for request in requests:
                request.ends()
            raise MPI.Exception(MPI.ERR_IN_STATUS)
        indices = [index for index, request in enumerate(requests) if not request.is_null and request.ends()]
        if statuses is not None:
            statuses += [requests[index].status for index in indices]
        return indices


@pytest.fixture
def mpi(monkeypatch):
    mpi = Mpi()
    for module in (sends, receives):
        monkeypatch.setattr(module, "MPI", mpi)
    return mpi


@pytest.fixture
def clock(monkeypatch):
    """Seconds; assign to `now`."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(processes, "time", clock)
    return clock


@pytest.fixture
def it(clock, mpi):
    return Sends(mpi, FIRST)


def send(it, dest, size):
    return it.send(Mpi(), np.empty(size, np.uint8), dest)


def pass_by(it, clock, seconds, step=0.5):
    """Time between two polls after another, and nothing leaves."""
    for _ in range(round(seconds / step)):
        clock.now += step
        it.poll()


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
    assert it.unreached(3.0) == [2]


def test_who_is_remembered_has_the_time_anew_for_what_was_on_its_way(it, clock):
    send(it, 1, 8)
    pass_by(it, clock, 4.0)
    it.forget(1)
    pass_by(it, clock, 10.0)
    it.remember(1)
    pass_by(it, clock, 2.5)
    it.remember(1)  # it is not forgotten now
    assert it.unreached(3.0) == []
    pass_by(it, clock, 1.0)
    assert it.unreached(3.0) == [1]


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


def test_a_send_to_a_dead_rank_is_dropped_and_its_buffer_is_free(it, mpi):
    late = send(it, 2, 8)
    mpi.dead |= {1: None, 2: None}
    sending = it.send(None, np.empty(3), 1, 0)
    it.poll()
    assert (sending.is_done, sending.is_free, late.is_free, it.awaits(), it.bytes) == (True, True, True, False, 8)


def test_nobody_looks_more_often_for_the_sake_of_a_forgotten_rank(it):
    """The largest send that is under way says how `Transport.wait` looks."""
    assert it.largest() == 0
    send(it, 1, 8)
    send(it, 2, 1 << 20)
    assert it.largest() == 1 << 20
    it.forget(2)
    assert it.largest() == 8
    it.remember(2)
    assert it.largest() == 1 << 20


@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
def test_a_small_message_is_free_as_soon_as_mpi_has_taken_it(it, mpi, size):
    buffer = np.empty(size, np.uint8)
    mpi.Isend = lambda *_: Request(status=Status())
    sending = it.send(mpi, buffer, 1, 0)
    assert (sending.is_free, it.awaits()) == (size == SMALL, size > SMALL)
    mpi.Isend = lambda *_: Request()  # there is no room for it
    assert not it.send(mpi, buffer, 1, 0).is_free
    assert it.awaits()


def test_a_message_of_which_it_is_asked_whether_it_is_heard_is_complete_no_earlier(it, mpi):
    mpi.Isend = lambda *_: Request(status=Status())
    mpi.Issend = lambda *_: Request()
    buffer = np.empty(SMALL, np.uint8)
    assert [it.send(mpi, buffer, 1, heard).is_free for heard in (False, True)] == [True, False]


def test_mpi_gets_memory_of_a_device_when_the_device_is_done():
    """MPI would read what is not there yet, or write over what a kernel still has to read."""
    given = []

    def take(message, *_):
        given.append(message[0].__cuda_array_interface__["shape"])
        return Request()

    buffer = cupy.zeros(3)
    with pytest.raises(RuntimeError, match="under way"):
        take([buffer])
    comm, nobody = SimpleNamespace(Isend=take, Irecv=take), SimpleNamespace(dead={})
    stamp(buffer, 1, 2)
    Sends(nobody, FIRST).send(comm, buffer, 1)
    _ = buffer + 1
    Receives(None, comm, nobody, FIRST, 1).post(buffer, 1)
    assert given == [(3,), (3,)]


# receives


@pytest.fixture
def inbox(mpi):
    return Receives(mpi, mpi, mpi, FIRST, 1)


def arrives(it, mpi, source, *vectors, **more):
    """These (iteration, what, value) arrive in one message."""
    message = bundle([stamp(np.full(3, value), iteration, what) for iteration, what, value in vectors])
    buffer = np.append(message, np.zeros(5))  # a message may be shorter than the buffer
    it.post(buffer, MPI.ANY_SOURCE)
    request = mpi.posted.pop()
    request.status, request.moves = Status(source, message.nbytes), more.get("moves", False)
    return buffer


def test_a_bundle_is_given_out_vector_by_vector_and_its_buffer_is_posted_again_later(inbox, mpi):
    buffer = arrives(inbox, mpi, 2, (7, 0, 0.5), (7, 5, 1.5), (6, 1, 2.5))
    vectors = inbox.poll()
    assert [(v.source, v.iteration, v.chunk, v.buffer[: v.length].tolist()) for v in vectors] == [
        (2, 7, 0, [0.5]), (2, 7, 5, [1.5]), (2, 6, 1, [2.5]),
    ]  # fmt: skip
    with pytest.raises(ValueError):
        inbox.keep(vectors[0].buffer)  # others are in its memory
    assert mpi.posted == []
    inbox.repost()
    inbox.repost()
    assert [posted.buffer is buffer for posted in mpi.posted] == [True]
    assert inbox.bytes == 3 * 24


def test_a_buffer_that_is_kept_is_not_posted_again(inbox, mpi):
    first = arrives(inbox, mpi, 2, (7, 0, 0.5))
    (vector,) = inbox.poll()
    second = arrives(inbox, mpi, 2, (7, 1, 0.5))
    inbox.poll()
    inbox.keep(vector.buffer)
    with pytest.raises(ValueError):
        inbox.keep(first)
    inbox.repost()
    assert [posted.buffer is second for posted in mpi.posted] == [True]
    with pytest.raises(ValueError):
        inbox.keep(second)


def test_what_a_worker_sends_from_the_place_of_rank_0_is_told_from_what_rank_0_sends(mpi):
    """Place 2 is rank 0 and worker 3. Rank 0 itself hears from workers only, each of which is one after its place."""
    term = Term(2, 5, is_dedicated=False)
    for rank, expected in ((2, [0, 3, 1]), (0, [3, 3, 1])):
        inbox = Receives(mpi, mpi, mpi, term, rank)
        for place, is_marked in ((2, False), (2, True), (0, False)):
            vector = stamp(np.full(3, 0.5), 7, 5)
            if is_marked:
                mark(vector)
                mark(vector)
            inbox.post(vector, MPI.ANY_SOURCE)
            mpi.posted[-1].status = Status(place, vector.nbytes)
        assert [(it.source, it.iteration, it.chunk) for it in inbox.poll()] == [(source, 7, 5) for source in expected]

        inbox = Receives(mpi, mpi, mpi, term, rank)
        inbox.start()
        for place, is_marked in ((2, False), (2, True), (0, False)):
            word = record(Kind.STATE, 7)
            word["kind"] |= OF_WORKERS_RECORD * is_marked
            mpi.posted[-16].buffer[:1], mpi.posted[-16].status = word, Status(place, word.nbytes)
            (control,) = inbox.poll()
            assert (control.source, control.records["kind"][0]) == (expected.pop(0), Kind.STATE)
        mpi.dead[2] = None
        assert inbox.poll() == [Died(0), Died(3)]
        mpi.dead.clear()


def test_messages_of_a_term_and_to_rank_0_have_tags_of_their_own():
    terms = [Term(0, 5, is_dedicated=False)]
    terms += [terms[0].following(place) for place in range(3)]
    assert len({term.tag(rank) for term in terms for rank in (0, 1)}) == 8


def test_a_message_that_is_too_short_for_its_stamp_is_given_out_as_such(inbox, mpi):
    inbox.post(np.zeros(4), MPI.ANY_SOURCE)
    mpi.posted[0].status = Status(source=1, size=8)
    (vector,) = inbox.poll()
    assert (vector.iteration, vector.length) == (-1, 0)


def test_a_message_that_has_come_is_given_out_by_the_next_poll(inbox, mpi):
    assert not inbox.has_message()
    arrives(inbox, mpi, 2, (7, 0, 0.5))
    assert inbox.has_message()
    assert [vector.source for vector in inbox.poll()] == [2]


def test_late_words_of_a_dead_rank_are_not_given_out_and_a_late_vector_takes_no_buffer_with_it(inbox, mpi):
    inbox.start()
    word = record(Kind.ALIVE)
    ring, mpi.posted = mpi.posted, []
    mpi.dead[2] = None
    assert inbox.poll() == [Died(2)]
    ring[0].buffer[:1], ring[0].status = word, Status(2, word.nbytes)
    assert inbox.poll() == []
    mpi.posted.clear()
    buffer = arrives(inbox, mpi, 2, (7, 0, 0.5))
    assert inbox.poll() == []
    inbox.repost()
    assert mpi.posted[0].buffer is buffer


def test_the_last_words_of_a_dead_rank_come_before_its_death(inbox, mpi):
    """More than one look takes; what has come of it is in front of `Died`, in order."""
    inbox.start()
    word = record(Kind.ALIVE)
    mpi.posted[0].buffer[:1] = word
    mpi.posted[0].status = Status(2, word.nbytes)
    arrives(inbox, mpi, 2, (7, 0, 0.5), moves=True)
    mpi.dead[2] = None
    control, vector, died = inbox.poll()
    assert (control, died) == (Control(2, word), Died(2))
    assert (type(vector), vector.source) == (Vector, 2)
    assert inbox.poll() == []


def test_with_a_death_what_is_whole_is_given_out_and_what_is_not_is_replaced(inbox, mpi):
    """Testsome's statuses: of two complete receives, one of them with an error, then of the pending ones."""
    buffers = [np.full(3, place, float) for place in range(4)]
    for buffer in buffers:
        inbox.post(buffer, MPI.ANY_SOURCE)
    mpi.error = [
        Status(1, 24), Status(2, error=MPI.ERR_PROC_FAILED),
        Status(error=MPI.ERR_PROC_FAILED_PENDING), Status(2, error=MPI.ERR_PROC_FAILED_PENDING),
    ]  # fmt: skip
    for request, status in zip(mpi.posted[:2], mpi.error, strict=False):
        request.status = status
    mpi.dead[2] = None
    pending, half_filled = mpi.posted[2], weakref.ref(buffers[3])
    mpi.posted.clear()
    vector, died = inbox.poll()
    assert vector.buffer is buffers[0]
    assert died == Died(2)
    assert [posted.buffer.shape for posted in mpi.posted] == [(3,)] * 2
    assert not any(posted.buffer is old for posted in mpi.posted for old in buffers)
    assert [request is pending for request in inbox.requests()] == [True, False, False]
    del buffers, buffer, vector
    assert half_filled() is not None  # MPI may still write to it


def test_what_was_sent_while_mpi_was_not_called_is_let_go_at_once(it):
    """Open MPI's Testsome looks at the requests before it moves messages, so the first call finds nothing."""
    sent = send(it, 1, 8)
    sent.request.status, sent.request.moves = Status(), True
    assert it.poll()
    assert sent.is_free


@pytest.mark.parametrize(("rank", "number"), [*enumerate([0, 1, 0, 2, 1])])
def test_ranks_of_a_host_have_numbers_of_their_own(monkeypatch, rank, number):
    """By which each takes a GPU of its own."""
    hosts = [Mock(host=host, is_near=lambda other, host=host: other.host == host) for host in "aabab"]
    names = "MPI", "Bell", "Deaths", "Receives", "Sends", "die_with_parent", "keep_freed_memory", "sleep_precisely"
    for name in names:
        monkeypatch.setattr(f"psgc.transport.transport.{name}", MagicMock())
    monkeypatch.setattr("psgc.transport.transport.Rendezvous", lambda *_: MagicMock(processes=hosts))
    monkeypatch.setattr(Transport, "_duplicate", Mock())
    assert Transport(Mock(Get_rank=lambda: rank, Get_size=lambda: 5)).local_rank == number


@pytest.mark.parametrize(("library", "by"), [("Open MPI v5.0.11", "_exit 3"), ("MPICH Version: 4.3", "exit 3")])
def test_mpich_is_told_that_a_process_ends_in_order(monkeypatch, library, by):
    """By a handler of the C library's exit. Open MPI knows it since Finalize, and nothing is waited for."""

    def ends(how):
        def end(code):
            raise SystemExit(f"{how} {code}")

        return end

    module = "psgc.transport.transport"
    monkeypatch.setattr(f"{module}.os._exit", ends("_exit"))
    monkeypatch.setattr(f"{module}.ctypes.CDLL", lambda _: SimpleNamespace(exit=ends("exit")))
    monkeypatch.setattr(f"{module}.threading.Timer", Mock())
    with pytest.raises(SystemExit, match=f"^{by}$"):
        Transport.end(SimpleNamespace(library=library), 3)
