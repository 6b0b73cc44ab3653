"""The server from the YAML to the summary, without MPI and workers: a script answers in their place."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from psgc.messages import Kind
from psgc.server.checkpoint import load_newest
from psgc.training.ending import Ending
from psgc.training.server_side import serve
from tests.unit.scripted import Transport, done, said

CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: momentum, lr: 0.01}
iterations: 2
coding: {chunks_per_worker: 2, replication: 2}
schedule: dynamic
output: out
"""
FEATURES = 3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(40, FEATURES)), rng.normal(size=40))
    (tmp_path / "run.yaml").write_text(CONFIG)


def train(script, *overrides, resuming=False):
    """The exit code of a run of two workers."""

    def to_the_end():
        yield from script
        while True:  # farewells
            yield [said(worker, Kind.GOODBYE) for worker in (1, 2)]

    return serve(Transport(3, to_the_end()), "run.yaml", overrides, [], resuming, Ending())


def chunks_of(iteration, workers, seconds, gradient=0.1):
    """Each of the four chunks by one of these workers, which take turns; seconds: of a chunk, by worker."""
    for chunk in range(4):
        worker = workers[chunk % len(workers)]
        yield [done(worker, iteration, chunk, np.full(FEATURES + 1, gradient), seconds[worker])]


def newest():
    return load_newest(Path("out/checkpoints"))[0]


def test_a_resumed_run_knows_how_fast_the_workers_are():
    def first():
        for iteration in (0, 1):
            yield from chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.3})

    assert train(first()) == 0
    assert newest().estimates == pytest.approx({1: 0.1, 2: 0.3})
    assert train(chunks_of(2, (1,), {1: 0.1}), "iterations=3", resuming=True) == 0
    assert newest().iteration == 3
    assert newest().estimates == pytest.approx({1: 0.1, 2: 0.3})  # worker 2 was not heard of since


def test_a_resumed_run_goes_on_with_the_state_of_its_optimizer():
    def some(first, end):
        for iteration in range(first, end):
            yield from chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.1}, gradient=iteration + 1.0)

    assert train(some(0, 4), "iterations=4") == 0
    whole = newest().params
    shutil.rmtree("out")
    assert train(some(0, 2)) == 0
    assert train(some(2, 4), "iterations=4", resuming=True) == 0
    assert newest().params.tolist() == whole.tolist()
