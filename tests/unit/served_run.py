"""The server from the YAML to the summary, without MPI and workers: a script answers in their place."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from psgc.checkpoints import load_newest
from psgc.config import load
from psgc.data import ChunkSource, write_dense
from psgc.messages import Kind
from psgc.run.checkpoint import read
from psgc.run.ending import Ending
from psgc.run.inputs import Given
from psgc.run.meeting import Meeting
from psgc.run.prepare import prepare
from psgc.run.server_side import serve, serve_on
from psgc.run.takeover import Beginning
from psgc.run.worker_side import ProblemProgram
from psgc.transport import Term
from tests.unit.scripted import Following, done, said

CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: momentum, lr: 0.01}
iterations: 2
coding: {chunks_per_worker: 2, replication: 2}
trial: false
schedule: dynamic
transfer: per_chunk
dedicated_server: true
output: out
"""
ROWS, FEATURES = 40, 3
VECTOR = np.full(FEATURES + 1, 0.1)
YAML = Given("run.yaml")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current one, with run.yaml, its data, and whatever module a test writes there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(ROWS, FEATURES)), rng.normal(size=ROWS))
    (tmp_path / "run.yaml").write_text(CONFIG)


def train(script, *overrides, resuming=False, stopped_by=(), debug=False, ranks=3):
    """The exit code of a run of two workers."""
    transport = Following(ranks, _to_the_end(script, range(1, ranks)))
    ending = Ending(transport, stopped_by)
    meeting = Meeting(transport, ending, "being tested")
    try:
        serve(transport, Given("run.yaml", overrides=overrides), ending, meeting, resuming, debug)
    finally:
        assert ending.in_order or ending.told
    return ending.code


def take_over(script, first, *overrides, ranks=3, away=(), stopped_by=(), since=0):
    """The exit code of the run in `out` when rank 0 has died, and worker 1 serves it from iteration `first` on.

    away: workers that are lost, but whose processes live
    since: the iteration with which the processes began
    """
    transport = Following(ranks, _to_the_end(script, range(2, ranks)))
    transport.place, transport.term = 1, Term(0, ranks).following(1)
    config = load("run.yaml", overrides)
    run = prepare(transport, config, Given("run.yaml", overrides=overrides), resuming=False)
    chunks = ChunkSource(run.dataset, run.plan.num_chunks, config.dtype, run.backend)
    run.first, run.program = first, ProblemProgram(config, run.backend, run.problem, chunks, transport.wake, run.test)
    run.program.own.start(first, np.zeros(FEATURES + 1))
    lost = {1: True, **dict.fromkeys(away, False)}
    run.beginning = Beginning(first=first, is_alike=True, away=lost, before="here")
    run.beginning.died, run.beginning.number, run.beginning.since = time.monotonic() - 7.0, 1, since
    ending = Ending(transport, stopped_by)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.alarm", lambda _: 0)  # the timeout of this test has one, which is no signal to the run
        serve_on(transport, run, run.beginning, 0.0, ending, False)
    return ending.code


def _to_the_end(script, workers):
    yield from script
    while True:  # farewells
        yield [said(worker, Kind.GOODBYE) for worker in workers]


def chunks_of(iteration, workers=(1, 2), seconds=(), gradient=0.1, **more):
    """Each of the four chunks by one of these workers, which take turns; seconds: of a chunk, by worker."""
    for chunk in range(4):
        worker = workers[chunk % len(workers)]
        vector = np.full(FEATURES + 1, gradient)
        yield [done(worker, iteration, chunk, vector, dict(seconds).get(worker, 0.1), **more)]


def newest():
    return load_newest(Path("out/checkpoints"), read)


def summary():
    return json.loads(Path("out/summary.json").read_text())
