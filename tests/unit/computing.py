"""A compute thread without a mailbox: its chunks are a list, and what comes of them is kept."""

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.data import ChunkSource, Dataset
from psgc.workers import chunk_runner
from psgc.workers.chunk_runner import ChunkRunner, Trial
from psgc.workers.compute import ComputeThread, Gradients
from psgc.workers.emulation import Emulation
from psgc.workers.injection import Injector
from psgc.workers.work import Work
from tests.simulation.network import Clock

DIM, CHUNKS = 3, 4
PARAMS = np.array([1.0, 2.0, 3.0])
ROWS = np.arange(40.0)
DATASET = Dataset("data.npz", 40, 1, False, ROWS[:, None], ROWS)  # chunk i is the rows 10 i .. 10 i + 9


class FakeDesk:
    """Hands out `works`, then stops; keeps what comes back."""

    def __init__(self, works, clock):
        self.works, self.clock = list(works), clock
        self.results, self.failures, self.waits = {}, {}, []
        self.broken_rules, self.tries, self.sketches = [], [], []

    def take(self, is_over=None, joins=False):
        return self.works.pop(0) if self.works else None

    def wait_stale(self, work, seconds):
        self.waits.append((work.chunk, seconds))
        self.clock.now += seconds

    def finished(self, work, result):
        self.results[work.iteration, work.chunk] = result

    def failed(self, work, text, at=-1):
        self.failures[work.iteration, work.chunk if at < 0 else at] = text

    def broken(self, work, error):
        self.broken_rules.append((work.iteration, work.chunk, str(error)))

    def trying(self, chunk):
        self.tries.append(chunk)

    def tried(self, iteration, chunk, found, vector=None):
        self.sketches.append((iteration, chunk, found))


@pytest.fixture
def chunk_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(chunk_runner, "time", clock)
    return clock


def mean_row(params, chunk, rng):
    return float(chunk.y.sum()), np.full(DIM, chunk.y.mean())


NO_TRIAL = Trial(-1, None, frozenset())


def thread_for(
    mailbox, evaluate, rank=1, seed=0, batch=None, dtype="float64", emulation=None, backend=None, dim=DIM, faults=(),
    trial=NO_TRIAL, before=None,
):  # fmt: skip
    backend = backend or Backend()
    chunks = ChunkSource(DATASET, CHUNKS, dtype, backend)
    emulation = emulation or Emulation("none", rank, seed)
    runner = ChunkRunner(mailbox, backend, emulation, Injector(faults), trial)
    return ComputeThread(runner, Gradients(mailbox, evaluate, chunks, backend, dim, dtype, seed, batch), before)


@pytest.fixture
def compute(chunk_clock):
    """Computes (iteration, chunk) pairs in this thread, and gives back the mailbox."""

    def compute_all(evaluate, pairs=((0, 2),), params=PARAMS, **arguments):
        mailbox = FakeDesk(
            [Work(iteration, chunk, params, chunk_clock.now - 7.0) for iteration, chunk in pairs], chunk_clock
        )
        thread_for(mailbox, evaluate, **arguments).run()
        return mailbox

    return compute_all
