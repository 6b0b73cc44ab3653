"""Rank 0 of a script as a worker: which of its chunks end it."""

from types import SimpleNamespace

import pytest

from psgc.errors import RunFailed
from psgc.server.failure_detector import FailureDetector
from psgc.torch import hang_detector

TIMEOUT, STEP = 5.0, 0.5


class Chunks:
    """Looks at the chunks of worker 1, in the process of rank 0."""

    def __init__(self, monkeypatch):
        self.clock, self.began, self.chunk = 100.0, 0.0, -1
        self.cluster = SimpleNamespace(now=3.0, detector=FailureDetector([1, 2], 1000.0, TIMEOUT))
        monkeypatch.setattr(hang_detector.time, "monotonic", lambda: self.clock)
        transport = SimpleNamespace(place=0, hosts=["vm"], survives_deaths=False)
        self.look = hang_detector.HangDetector(transport, self.running, self.cluster).look

    def running(self):
        return self.chunk, self.clock - self.began

    def takes(self, chunk):
        self.began, self.chunk = self.clock, chunk

    def passes(self, seconds):
        for _ in range(int(seconds / STEP)):
            self.clock += STEP
            self.cluster.now += STEP
            self.look()


@pytest.fixture
def chunks(monkeypatch):
    return Chunks(monkeypatch)


@pytest.mark.parametrize("how", [{"failed": True}, {"counts": False}, {}])
def test_a_lost_worker_ends_rank_0_only_when_a_chunk_does_not_return(chunks, how):
    chunks.takes(2)
    chunks.passes(4.0)
    chunks.cluster.detector.lost(1, **how)
    chunks.passes(1.0)
    chunks.takes(2)  # the same chunk again, as in the next iteration
    chunks.passes(5.0)
    chunks.takes(-1)
    chunks.passes(9.0)
    chunks.takes(0)
    chunks.passes(5.0)
    with pytest.raises(
        RunFailed, match=r"rank 0 on vm, which is worker 1 as well: in chunk 0 for 5.\d s, its gradient does not return"
    ):
        chunks.passes(1.0)


def test_while_its_worker_is_not_lost_the_failure_detector_looks(chunks):
    chunks.takes(2)
    chunks.passes(20.0)
    chunks.cluster.detector.lost(1)
    with pytest.raises(RunFailed):
        chunks.look()


def test_the_time_in_which_the_process_was_stopped_does_not_count(chunks):
    chunks.cluster.detector.lost(1)
    chunks.takes(2)
    chunks.passes(2.0)
    chunks.clock += 1000.0
    chunks.look()
    chunks.passes(3.0)
    with pytest.raises(RunFailed):
        chunks.passes(1.0)
