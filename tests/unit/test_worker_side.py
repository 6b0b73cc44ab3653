"""A worker from the server's settings to goodbye, with its compute thread, but without MPI: a script is the server."""

import sys
import time

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import load
from psgc.data import ChunkSource, open_data, write_dense
from psgc.iteration import is_checked
from psgc.messages import Kind
from psgc.plan import make_plan
from psgc.problems import evaluate
from psgc.run.ending import Ending
from psgc.run.inputs import Given, open_problem, rows_taken
from psgc.run.meeting import Meeting
from psgc.run.worker_side import work
from psgc.vectors import TAIL, unpack_block
from psgc.workers import reports
from psgc.workers.compute import gradient_of
from tests.simulation.network import Clock
from tests.unit.given_states import map_of, state_of
from tests.unit.scripted import Transport, said

CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.01}
iterations: 9
batch: 4
seed: 3
coding: {chunks_per_worker: 2, replication: 3}
trial: false
transfer: per_chunk
schedule: static
dedicated_server: true
output: out
"""
WORKERS, FEATURES, RANK, PARAMS = 3, 3, 2, np.array([0.5, -1.0, 2.0, 0.25])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(60, FEATURES)), rng.normal(size=60))
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "model.py").write_text(MODELS)


class Served(Transport):
    """To the worker of rank 2 what its server says, then a script."""

    def __init__(self, overrides, first=0):
        super().__init__(WORKERS + 1)
        self.config = load("run.yaml", overrides)
        self.plan = make_plan(self.config.coding, self.config.schedule, WORKERS, self.config.seed)
        self.rank = RANK
        self._told = [self.config.to_yaml().encode(), self.plan.to_bytes(), f"{first} 0.0 0".encode(), b"begin"]

    def broadcast(self, data, doing=""):
        return self._told.pop(0)

    def neighbours(self, place):
        return {}

    def begin(self, iteration):
        """What comes when the worker has missed the iterations before."""
        return [*state_of(iteration, PARAMS, self.config.optimizer), said(0, Kind.BEGIN, iteration)]

    def share(self, iteration):
        """Rank 0 sums what this worker has accumulated."""
        return [map_of(iteration, WORKERS + 1, (RANK, RANK, 0))]

    def wait(self, wakeup=None, **more):
        time.sleep(1e-3)
        return True

    def run(self, script):
        """Whether it left in order."""

        def to_the_end():
            yield from script
            yield [said(0, Kind.STOP)]
            while (0, ["GOODBYE"]) not in self.sent:
                yield []
            yield [said(0, Kind.LEAVE)]

        self.script = to_the_end()
        ending = Ending(self)
        work(self, Given("run.yaml"), ending, Meeting(self, ending, ""))
        assert ending.in_order

    def until(self, condition):
        """Polls that find nothing."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            yield []


def gradients(config, plan, iteration):
    """What the worker should have computed, by chunk."""
    dataset, problem = open_data("data.npz"), open_problem(config, "run.yaml", 1)[1]
    chunks = ChunkSource(dataset, plan.num_chunks, config.dtype, Backend())
    of, rows = evaluate(problem), rows_taken(config, dataset.num_rows)
    return [gradient_of(of, chunks, i, PARAMS, iteration, config.seed, rows) for i in range(plan.num_chunks)]


EPOCHS = ["iterations=null", "batch={size: 28, epochs: 2}"]  # the last of them has 4 rows for 6 chunks


EVALUATED = ["data.test=data.npz", "evaluate={every: 5}"]


@pytest.mark.parametrize("overrides", [[], ["batch=null"], ["seed=4"], EPOCHS, EVALUATED])
def test_it_sends_the_gradients_of_its_queue_in_order(overrides):
    server = Served(overrides, first=5)

    def script():
        yield server.begin(5)
        yield from server.until(lambda: len(server.vectors) == len(server.plan.queues[RANK]))

    server.run(script())
    assert [(dest, iteration, chunk) for dest, iteration, chunk, _ in server.vectors] == [
        (0, 5, chunk) for chunk in server.plan.queues[RANK]
    ]
    expected = gradients(server.config, server.plan, 5)
    for _, _, chunk, vector in server.vectors:
        loss, gradient = expected[chunk]
        assert vector[:-TAIL] == pytest.approx(gradient)
        assert vector[2 - TAIL] == pytest.approx(loss)
        assert (vector[3 - TAIL] > 0) == (overrides is EVALUATED)  # the loss of some held-out rows


def test_with_combined_and_verify_checked_chunks_are_sketched_and_what_is_committed_goes_where_it_is_summed():
    server = Served(["transfer=combined", "aggregation=server", "verify={every: 2}", "coding.replication=2"])
    queue = server.plan.queues[RANK]
    checked = [chunk for chunk in queue if is_checked(chunk, 0, 2)]

    def told(kind):
        return [entry["chunk"] for entry in server.records[0] if entry["kind"] == kind]

    def script():
        yield server.begin(0)
        yield from server.until(lambda: len(told(Kind.REPORT)) == len(queue))
        yield [said(0, Kind.COMMIT, 0, checked[0], worker=RANK, role=RANK), *server.share(0)]
        yield from server.until(lambda: server.vectors)

    server.run(script())
    assert (told(Kind.REPORT), told(Kind.SKETCH)) == (queue, checked)
    ((dest, iteration, what, accumulator),) = server.vectors
    assert (dest, iteration, unpack_block(what).role) == (0, 0, RANK)
    assert accumulator == pytest.approx(gradients(server.config, server.plan, 0)[checked[0]][1])


def test_it_says_that_it_is_there_four_times_in_the_time_after_which_it_is_lost(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reports, "time", clock)
    server = Served(["faults.collect_timeout=0.4"])

    def script():
        clock.now += 0.09
        yield []
        yield []
        assert server.sent == []
        clock.now += 0.02
        yield []
        yield []
        assert server.sent == [(0, ["ALIVE"])]

    server.run(script())


def test_a_fault_on_purpose_happens_on_its_rank_alone():
    faults = "faults.inject=[{{kind: raise, rank: {}, iteration: 0, step: gradient}}]"

    def kinds(rank):
        server = Served([faults.format(rank)])

        def script():
            yield server.begin(0)
            yield from server.until(lambda: len(server.vectors) + ((0, ["FAILED"]) in server.sent) >= 6)

        server.send_text = lambda dest, text: None
        server.run(script())
        return [kind for _, what in server.sent if isinstance(what, list) for kind in what]

    assert "FAILED" in kinds(RANK)
    assert "FAILED" not in kinds(RANK - 1)


MODELS = """
import time
import numpy as np

class Mean:
    dim = 4

    def initial_params(self):
        return np.zeros(4)

    def gradient(self, params, chunk, rng):
        return params - chunk.y.mean()

class Busy(Mean):
    def __init__(self, quick):
        self.quick = quick

    def gradient(self, params, chunk, rng):
        end = time.monotonic() + 0.5
        while chunk.index != self.quick and time.monotonic() < end:
            sum(range(100))  # holds the interpreter lock, lets go of it only when asked
        return chunk.weight * params
"""


@pytest.mark.parametrize("rows", ["batch=4", "batch=~"], ids=["some rows", "all rows"])
def test_a_gradient_without_the_weight_of_its_chunk_is_told_to_the_server(rows):
    server, told = Served(["problem={python: 'model:Mean'}", rows]), []

    def script():
        yield server.begin(0)
        yield from server.until(lambda: (0, ["FAILED"]) in server.sent or len(server.vectors) > 1)

    server.send_text = lambda dest, text: told.append(text)
    server.run(script())
    assert not server.vectors
    assert told[0].startswith("the gradient of a chunk has the length ")


def test_a_worker_deep_in_a_chunk_answers_at_once():
    quick = int(Served([]).plan.queues[RANK][0])
    problem = f"problem={{python: 'model:Busy', options: {{quick: {quick}}}}}"
    server, delays = Served([problem, "transfer=combined"]), []

    def script():
        for iteration in range(3):
            yield server.begin(iteration)
            yield from server.until(lambda: server.sent[-1:] == [(0, ["REPORT"])])
            yield [said(0, Kind.COMMIT, iteration, quick, worker=RANK, role=RANK)]
            began, delivered = time.monotonic(), len(server.vectors)
            yield from server.until(lambda began=began: time.monotonic() > began + 0.2)  # let it get deep
            began = time.monotonic()
            yield server.share(iteration)
            yield from server.until(lambda delivered=delivered: len(server.vectors) > delivered)
            delays.append(time.monotonic() - began)

    server.run(script())
    assert min(delays) < 0.2, delays  # who does its chunk first takes 0.3 s every time
