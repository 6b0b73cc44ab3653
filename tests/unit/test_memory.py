"""What the ranks of a run hold, and what a host cannot hold."""

import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.aggregation import memory
from psgc.aggregation.memory import Held
from psgc.config import OptimizerSettings, load
from psgc.data import write_dense
from psgc.errors import UserError
from psgc.optimizer import make_optimizer
from psgc.plan import make_plan
from psgc.run.ending import Ending
from psgc.run.inputs import Given
from psgc.run.meeting import Meeting
from psgc.run.memory import check_memory, dimension, expected_memory, held, memory_line
from psgc.run.prepare import prepare
from psgc.run.worker_side import work
from psgc.vectors import TAIL
from tests.unit.scripted import Transport

CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: momentum, lr: 0.01}
iterations: 2
coding: {chunks_per_worker: 2, replication: 2}
aggregation: server
transfer: combined
dedicated_server: true
output: out
"""
DIM = 12_500_000  # 100 MB


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(40, 3)), rng.normal(size=40))
    Path("run.yaml").write_text(CONFIG)


@pytest.fixture
def available(monkeypatch):
    """Call it with the bytes that this machine has."""
    return lambda size: monkeypatch.setattr("psgc.run.memory.available_memory", lambda: size)


# what ranks hold


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["aggregation=allreduce", "coding.parts=2", "optimizer={kind: adam, lr: 0.1}", "dtype=float32"],
            "memory of rank 0: parameters 2 x 50 MB, optimizer 4 x 50 MB, gradients 2 x 50 MB, "
            "state of another iteration 3 x 50 MB, slices summed again 50 MB, blocks 83.6 MB, "
            "checkpoints 6 x 50 MB: 984 MB; "
            "of another rank: parameters 2 x 50 MB, optimizer 2 x 50 MB, gradients 2 x 50 MB, "
            "state of another iteration 3 x 50 MB, slices summed again 50 MB, blocks 83.6 MB, "
            "chunks 5 x 50 MB, accumulators 25 MB: 859 MB; "
            "besides data and program",
        ),
        (
            ["aggregation=allreduce", "dtype=float32", "checkpoint.every=0"],
            "memory of rank 0: parameters 2 x 50 MB, optimizer 2 x 50 MB, gradients 2 x 50 MB, "
            "state of another iteration 2 x 50 MB, slices summed again 50 MB, blocks 66.8 MB, "
            "shared with its host 2 x 50 MB: 617 MB; "
            "of another rank: parameters 2 x 50 MB, optimizer 50 MB, gradients 2 x 50 MB, "
            "state of another iteration 2 x 50 MB, slices summed again 50 MB, blocks 66.8 MB, "
            "chunks 2 x 50 MB, shared with its host 3 x 50 MB: 717 MB; besides data and program",
        ),
        (
            ["aggregation=allreduce", "reproducible=true", "dtype=float32", "checkpoint.every=0"],
            "memory of rank 0: parameters 2 x 50 MB, optimizer 2 x 50 MB, gradients 2 x 50 MB, "
            "state of another iteration 2 x 50 MB, slices summed again 50 MB, blocks 117 MB, "
            "shared with its host 2 x 50 MB: 667 MB; "
            "of another rank: parameters 2 x 50 MB, optimizer 50 MB, gradients 2 x 50 MB, "
            "state of another iteration 2 x 50 MB, slices summed again 50 MB, blocks 117 MB, "
            "chunks 2 x 50 MB, accumulators 4 x 50 MB, shared with its host 6 x 50 MB: 1.12 GB; besides data and "
            "program",
        ),
        (
            ["optimizer={kind: sgd, lr: 0.1}"],
            "memory of rank 0: parameters 2 x 100 MB, gradients 2 x 100 MB, state of another iteration 100 MB, "
            "slices summed again 100 MB, blocks 717 MB, checkpoints 2 x 100 MB: 1.52 GB; "
            "of another rank: parameters 2 x 100 MB, gradients 2 x 100 MB, state of another iteration 100 MB, "
            "slices summed again 100 MB, blocks 16.8 MB, chunks 2 x 100 MB, accumulators 100 MB: 917 MB; "
            "besides data and program",
        ),
        (
            ["transfer=per_chunk", "coding.parts=2", "checkpoint.every=0"],
            "memory of rank 0: parameters 2 x 100 MB, optimizer 2 x 100 MB, gradients 2 x 100 MB, "
            "state of another iteration 2 x 100 MB, blocks 108 MB, receives 2 x 50 MB, copies 16 x 100 MB, "
            "decoded 100 MB: 2.71 GB; "
            "of another rank: parameters 2 x 100 MB, optimizer 100 MB, gradients 2 x 100 MB, "
            "state of another iteration 2 x 100 MB, blocks 16.8 MB, chunks 2 x 100 MB, "
            "coded gradients 2 x 50 MB: 1.02 GB; besides data and program",
        ),
    ],
)
def test_the_figures_of_a_run(overrides, expected):
    assert memory_line(load("run.yaml", overrides), 16, 8, DIM) == expected


def test_the_first_process_holds_what_rank_0_and_a_worker_do_but_one_replica():
    dedicated, apart = (
        held(load("run.yaml", [f"dedicated_server={is_so}"]), 16, 8, DIM) for is_so in ("true", "false")
    )
    vector = 8 * DIM
    more = memory.most(apart[0]) - memory.most(dedicated[0])
    assert more == memory.most(apart[1]) - (2 + 1) * vector  # parameters, and the velocity
    assert memory.least(apart[0]) - memory.least(dedicated[0]) == memory.least(apart[1]) - (2 + 1) * vector
    assert apart[1] == dedicated[1]
    assert len({(item.name, item.size) for item in apart[0]}) == len(apart[0])


UNBIASED = ["recovery={mode: approximate, deadline: 5.0, estimator: unbiased}", "schedule=static"]


@pytest.mark.parametrize(
    ("overrides", "copies", "decoded"),
    [
        (
            ["verify={every: 1}", "transfer=per_chunk"],
            [Held("copies", 8 * DIM, 16, 0)],
            [Held("decoded", 8 * DIM, 1, 1)],
        ),
        (["verify={every: 1}", "transfer=combined"], [], []),
        # beside a gradient without weights
        ([*UNBIASED, "transfer=per_chunk"], [Held("copies", 8 * DIM, 16, 0)], [Held("decoded", 8 * DIM, 2, 1)]),
    ],
)
def test_rank_0_keeps_copies_where_gradients_come_to_it(overrides, copies, decoded):
    rank_0, _ = held(load("run.yaml", overrides), 16, 8, DIM)
    assert [item for item in rank_0 if item.name in ("copies", "decoded")] == [*copies, *decoded]


@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_the_state_of_an_optimizer(kind):
    optimizer = make_optimizer(OptimizerSettings(kind=kind, lr=0.1))
    optimizer.step(np.zeros(5), np.ones(5))
    assert sum(np.size(value) == 5 for value in optimizer.state().values()) == memory.KEPT[kind]


@pytest.mark.parametrize(
    ("overrides", "chunks"),
    [
        ([], 2),
        (["coding.parts=2"], 1 + 4),  # 16 chunks, each on 2 of 8 workers
        (["coding.parts=2", "transfer=per_chunk"], 2),
        (["verify={every: 1}"], 1 + 4),
        (["coding={parts: 2, assignment: {kind: file, path: A.npy}}"], 1 + 16),
    ],
)
def test_gradients_that_wait_for_their_other_copies(overrides, chunks):
    assert Held("chunks", 8 * DIM, chunks, 0) in held(load("run.yaml", overrides), 16, 8, DIM)[1]


# what does not fit


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        check_memory(*arguments, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("transfer", "server", "vectors"),
    [
        ("combined", True, 5 + 2 * 5),  # 2 of parameters, gradient, and velocity: 2 at rank 0, or 1 and accumulator
        ("combined", False, 2 * 5),
        ("per_chunk", True, 8 + 2 * 5),  # at rank 0 two receives as well, and what is made of them
        ("per_chunk", False, 2 * 5),
    ],
)
def test_what_no_iteration_ends_without_has_to_fit(available, transfer, server, vectors):
    config = load("run.yaml", [f"transfer={transfer}"])
    available(vectors * 8 * DIM + 2 * 8 * (TAIL + 2))  # two receives have room for a tail and a stamp
    check_memory(config, 8, DIM, 2, server_here=server)
    available(vectors * 8 * DIM - 1)
    assert "does not fit" in refused(config, 8, DIM, 2, server_here=server)


def test_the_line_says_what_is_needed_and_what_there_is(available):
    available(800_000_000)
    expected = (
        "problem: a dimension of 12500000 (float64) does not fit into the memory of this host: up to 500 MB for each "
        "of its 4 ranks, 2 GB in all, but there are 800 MB; start fewer ranks on each host"
    )
    assert refused(load("run.yaml"), 8, DIM, 3, server_here=True) == f"{expected}, or use dtype: float32"
    small = refused(load("run.yaml", ["dtype=float32"]), 8, 2 * DIM, 3, server_here=True)
    assert small == expected.replace("12500000 (float64)", "25000000 (float32)")


def test_a_system_that_does_not_say_refuses_nothing(available):
    available(None)
    check_memory(load("run.yaml"), 8, 10**15, 8, server_here=True)


def on_hosts(rank, *hosts):
    transport = Transport(len(hosts))
    transport.rank, transport.hosts = rank, list(hosts)
    return transport


def test_rank_0_asks_for_the_ranks_on_its_host(available):
    transport, config = on_hosts(0, "a", "a", "b", "a"), load("run.yaml")
    server, worker = (memory.least(items) for items in held(config, 6, 3, 4))
    available(server + 2 * worker)
    prepare(transport, config, Given("run.yaml"), False)
    available(server + 2 * worker - 1)
    with pytest.raises(UserError, match=r"a dimension of 4 .* each of its 3 ranks"):
        prepare(transport, config, Given("run.yaml"), False)


@pytest.mark.parametrize(("host", "complains"), [("a", False), ("b", True)])
def test_a_worker_asks_where_rank_0_is_not(available, host, complains):
    settings = load("run.yaml")
    plan = make_plan(settings.coding, settings.schedule, 3, settings.seed)
    worker = on_hosts(3, "a", "b", "b", host)
    sent, said = [settings.to_yaml().encode(), plan.to_bytes(), b"0 0.0 0"], []
    worker.broadcast = lambda *_: sent.pop(0)
    worker.gather = lambda text, doing: said.append(text) or ["", "somebody cannot", "", text]
    available(1)
    with pytest.raises(UserError, match=r"^rank 1 on b: somebody cannot$"):
        work(worker, Given("run.yaml"), ending := Ending(worker), Meeting(worker, ending, ""))
    assert ("for each of its 3 ranks" in said[0]) == complains


# the number of parameters before the run

MODEL = """
import os, sys, time
print("a model speaks")
print("psgc-dimension 7")

class Model:
    dim = 12

    def __init__(self, how="well"):
        if how == "badly":
            raise ValueError("no")
        if how == "hard":
            os.abort()
        if how == "never":
            while True:
                time.sleep(60)

    def initial_params(self):
        return [0.0] * 12

    def gradient(self, params, chunk, rng):
        return params
"""


@pytest.mark.parametrize(
    ("how", "seconds", "expected"),
    [("well", 60.0, 12), ("badly", 60.0, None), ("hard", 60.0, None), ("never", 0.1, None)],
)
def test_the_dimension_of_a_model_that_can_be_built(capfd, how, seconds, expected):
    Path("speaking.py").write_text(MODEL)
    problem = f"problem={{python: 'speaking:Model', options: {{how: {how}}}}}"
    assert dimension("run.yaml", [problem], seconds) == expected
    assert capfd.readouterr() == ("", "")
    assert "speaking" not in sys.modules


UNBIASED = ["transfer=auto", "schedule=static", "recovery={mode: approximate, deadline: 5, estimator: unbiased}"]


@pytest.mark.parametrize(
    ("overrides", "begin"),
    [
        ([], "memory of rank 0: parameters 2 x 32 bytes, "),
        (["transfer=auto"], "memory of rank 0: parameters 2 x 32 bytes, "),
        (["data.path=nowhere.npz"], ""),
        (["coding.chunks_per_worker=auto"], ""),
        (["coding={assignment: {kind: file, path: A.npy}}"], ""),
        ([*UNBIASED, "faults.inject=[{kind: kill, rank: 1, iteration: 1, step: after_commit}]"], ""),  # refused
    ],
)
def test_what_is_said_before_the_run(overrides, begin):
    line = expected_memory(load("run.yaml", overrides), "run.yaml", overrides, 3)
    assert line.startswith(begin)
    assert bool(line) == bool(begin)
    assert len(line.splitlines()) <= 1
