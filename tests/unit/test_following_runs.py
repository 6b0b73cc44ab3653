"""Runs that follow one another in a process, such as those of a program that calls psgc.train again."""

import math
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import from_yaml_text
from psgc.data import ChunkSource
from psgc.errors import RunFailed, UserError
from psgc.run import launched, session
from psgc.run.inputs import Given
from psgc.run.worker_side import ProblemProgram
from psgc.workers.chunk_runner import ChunkRunner
from psgc.workers.emulation import Emulation
from psgc.workers.injection import Injector
from psgc.workers.work import Work
from tests.simulation.network import Clock
from tests.unit.computing import CHUNKS, DATASET, DIM, NO_TRIAL, PARAMS, FakeDesk
from tests.unit.recorded_runs import CONFIG


class Desk(FakeDesk):
    waits_for = -1

    def in_chunk(self, chunk):
        self.waits_for = chunk
        return nullcontext()

    def running(self):
        return 13, 0.0  # of a run with more chunks


class Waiting:
    """A model for one thread at a time, whose gradient waits until it may go on."""

    dim = DIM

    def __init__(self):
        self.inside, self.is_in, self.goes_on = 0, threading.Event(), threading.Event()

    def gradient(self, params, chunk, rng):
        self.inside += 1
        assert self.inside == 1, "two at a time"
        self.is_in.set()
        self.goes_on.wait(10)
        self.inside -= 1
        return np.zeros(DIM)


def test_a_run_waits_for_the_gradient_that_the_one_before_has_begun():
    """Others have done that chunk as well, so the run before is over."""
    problem, config = Waiting(), from_yaml_text(f"{CONFIG}iterations: 1\noutput: out\n")

    def begun(desk):
        chunks = ChunkSource(DATASET, CHUNKS, "float64", Backend())
        program = ProblemProgram(config, Backend(), problem, chunks, lambda: None)
        program.computing(desk, ChunkRunner(desk, Backend(), Emulation("none", 1, 0), Injector(()), NO_TRIAL)).start()
        return program

    first = begun(Desk([Work(0, 0, PARAMS, 0.0)], Clock()))
    assert problem.is_in.wait(10)
    assert not first.rests(0.01)
    second = begun(desk := Desk([Work(0, 1, PARAMS, 0.0)], Clock()))
    problem.goes_on.set()
    assert second.rests(10)
    assert ([*desk.results], desk.failures) == ([(0, 1)], {})
    assert desk.waits_for == CHUNKS - 1  # the server of this run knows no chunk 13


def test_ranks_wait_for_each_other_as_the_settings_say_and_between_two_runs_without_end(monkeypatch):
    """Rank 0 may look at the result for an hour before it begins the next run."""
    waits = []

    def transport(interrupted, timeout):
        waits.append(timeout)
        raise RunFailed("enough")

    monkeypatch.setattr(session, "Transport", transport)
    monkeypatch.setattr(launched, "_begun", False)
    given = Given("p.py", from_yaml_text(f"{CONFIG}iterations: 1\noutput: out\nfaults: {{setup_timeout: 5}}\n"))
    well = SimpleNamespace(in_order=True, is_cut_short=False)
    for before, its in ((None, given), (None, UserError("no")), (well, given)):
        monkeypatch.setattr(session, "_script", SimpleNamespace(session=before))
        with pytest.raises(RunFailed, match="enough"):
            session.train_in_program(its, "p.py", False)
    assert waits == [5.0, 600.0, math.inf]
