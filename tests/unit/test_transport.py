"""The transport's own bookkeeping, without MPI; what it does with MPI is in tests/ranks."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc import transport
from psgc.errors import RunFailed
from psgc.messages import Kind, record, stamp
from psgc.transport import SLOWEST, Control, Died, Transport, Vector


@pytest.fixture
def it():
    """A transport that has never met MPI."""
    it = Transport.__new__(Transport)
    it.library, it._tag_limit = "an MPI", 100
    it._ring, it._sends, it._sent, it._forgotten = [], [], [], set()
    it._dead, it._told, it._polls = {}, set(), 0
    return it


@pytest.fixture
def clock(monkeypatch):
    """Seconds; assign to `now`."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr(transport, "time", clock := Clock())
    return clock


def send(it, clock, dest, size):
    it._sent.append(transport._Sent(np.empty(0), size, dest, clock.now))


def test_who_takes_nothing_for_too_long_is_unreached_unless_it_is_forgotten(it, clock):
    send(it, clock, 1, 8)
    clock.now += 2.0
    send(it, clock, 2, 8)
    assert it.unreached(3.0) == []
    clock.now += 1.5
    assert it.unreached(3.0) == [1]
    clock.now += 2.0
    assert it.unreached(3.0) == [1, 2]
    it.forget(1)
    assert it.unreached(3.0) == [2]
    it.remember(1)
    assert it.unreached(3.0) == [1, 2]


def test_large_messages_have_the_time_that_a_slow_network_takes(it, clock):
    send(it, clock, 1, int(20 * SLOWEST))
    clock.now += 22.0
    assert it.unreached(3.0) == []
    clock.now += 2.0
    assert it.unreached(3.0) == [1]


def test_the_last_words_of_a_dead_rank_come_before_its_death(it, monkeypatch):
    """More than one look takes; what has come of it is in front of `Died`, in order."""
    words = [Control(2, record(Kind.ALIVE)), Control(2, record(Kind.GOODBYE)), Vector(2, 0, 0, np.empty(0), 0)]
    left = list(words)
    monkeypatch.setattr(it, "_poll_control", lambda messages: messages.extend([left.pop(0)] if left else []))
    monkeypatch.setattr(it, "_poll_vectors", lambda messages: None)
    monkeypatch.setattr(it, "_poll_sends", lambda: None)
    it._dead[2] = None
    assert it.poll() == [*words, Died(2)]
    assert it.poll() == []


def arrives(it, monkeypatch, source):
    """A vector from `source` is in the one buffer that is posted: what comes of it, and what is posted then."""
    buffer = np.zeros(3)
    stamp(buffer, 7)
    status = SimpleNamespace(Get_source=lambda: source, Get_count=lambda _: buffer.nbytes, Get_tag=lambda: 5)
    it._posted, it._posted_buffers, it._named, it.bytes_received = [None], [buffer], [], 0
    monkeypatch.setattr(transport, "_completed", lambda requests, statuses: statuses.append(status) or [0])
    monkeypatch.setattr(transport, "_without_null", lambda requests, beside: ([], []))
    messages, posted = [], []
    monkeypatch.setattr(it, "post", posted.append)
    it._poll_vectors(messages)
    return messages, [other is buffer for other in posted]


def test_a_late_vector_of_a_dead_rank_takes_no_receive_buffer_with_it(it, monkeypatch):
    (message,), posted = arrives(it, monkeypatch, source=2)
    assert (message.source, message.iteration, message.chunk, message.length) == (2, 7, 5, 2)
    assert posted == []  # whoever gets the message posts its buffer again
    it._told.add(2)
    assert arrives(it, monkeypatch, source=2) == ([], [True])


def test_too_few_tags_are_refused_in_one_line(it, monkeypatch):
    monkeypatch.setattr(it, "_post_control", lambda buffer: None)
    it.start(100)
    with pytest.raises(RunFailed, match=r"^an MPI has 100 tags, too few for 101 chunks and workers$"):
        it.start(101)
