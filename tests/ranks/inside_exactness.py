"""Inside the ranks: eight iterations of every combination against a single process that computes the full gradient.

Not collected by itself; `test_exactness.py` starts it in nine ranks, a case uses as many as it needs.
Each number of workers takes its share of an eleventh of the combinations; with PSGC_EVERY_CASE=1 each takes all.
"""

import itertools
import os
import tempfile
import time
from operator import mul
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI  # before psgc's transport, which would leave MPI uninitialised for pytest-mpi

from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.coding import ASSIGNMENTS
from psgc.config import from_yaml_text
from psgc.data import ChunkSource, open_data, write_dense
from psgc.optimizer import make_optimizer
from psgc.plan import Plan, make_plan
from psgc.problems import make_problem
from psgc.run.building import make_worker
from psgc.run.inputs import make_injector
from psgc.run.worker_side import ProblemProgram
from psgc.schedules import SCHEDULES
from psgc.server.driver import ProblemDriver
from psgc.server.loop import Server
from psgc.server.settings import ServerSettings
from psgc.transport import Transport

ITERATIONS = 8
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
DIMENSIONS = (
    [*ASSIGNMENTS],
    [1, 2, 3],
    ["per_chunk", "combined", "allreduce"],
    [*SCHEDULES],
    ["float64", "float32"],
)
EVERY = bool(os.environ.get("PSGC_EVERY_CASE"))
FACTORS = (1, 4, 2, 2, 3)  # every two values of different dimensions meet, and each meets each number of workers
CASES = [
    tuple(values[place] for values, place in zip(DIMENSIONS, places, strict=True))
    for places in itertools.product(*(range(len(values)) for values in DIMENSIONS))
    if EVERY or sum(map(mul, places, FACTORS)) % 11 == 0
]
RUNS = [
    (workers, *case)
    for place, case in enumerate(CASES)
    for workers in (4, 5, 6, 7, 8)
    if EVERY or place % 5 == workers - 4
]


def replication(workers: int, assignment: str, parts: int) -> int:
    """The smallest that this many workers allow for the assignment."""
    for candidate in range(max(2, parts), workers + 1):
        if assignment == "fractional" and workers % candidate:
            continue
        if assignment == "graph" and (candidate >= workers or workers * candidate % 2):
            continue
        return candidate
    raise AssertionError(f"no replication for {assignment} with {workers} workers")


def settings(workers: int, assignment: str, parts: int, transfer: str, schedule: str, dtype: str) -> str:
    return f"""
problem: {{kind: softmax, l2: 0.01}}
data: {{path: unused}}
optimizer: {{kind: nesterov, lr: 0.5}}
iterations: {ITERATIONS}
coding:
  assignment: {assignment}
  parts: {parts}
  replication: {replication(workers, assignment, parts)}
  chunks_per_worker: 2
aggregation: {"allreduce" if transfer == "allreduce" else "server"}
transfer: {"combined" if transfer == "allreduce" else transfer}
schedule: {schedule}
dtype: {dtype}
stragglers: {{kind: slow, seconds: {{2: 0.001}}}}
dedicated_server: true
output: unused
seed: 7
"""


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(90, 6)), rng.integers(0, 5, 90)  # 35 parameters: 2 and 3 parts leave a rest
    y[:5] = range(5)
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: the ranks would clean up each other's
        write_dense(f"{folder}/data.npz", X, y.astype(float))
        return open_data(f"{folder}/data.npz")


def single_process(problem, dataset, config):
    """The same training, with the gradient of all rows at once."""
    chunk = ChunkSource(dataset, 1, "float64", Backend()).chunk(0)
    params, velocity = problem.initial_params(), 0.0
    for _ in range(ITERATIONS):
        gradient = problem.gradient(params, chunk, None)
        velocity = 0.9 * velocity + gradient
        params = params - config.optimizer.lr * (gradient + 0.9 * velocity)
    return params


def come_together():
    """Ranks that a case does not need wait here for the next, asleep: MPI would have them keep the cores busy."""
    everybody = MPI.COMM_WORLD.Ibarrier()
    while not everybody.Test():
        time.sleep(0.002)


@pytest.mark.mpi(min_size=9)
@pytest.mark.parametrize("case", RUNS, ids=lambda case: "-".join(map(str, case)))
def test_parameters_equal_those_of_a_single_process(case, data):
    workers = case[0]
    come_together()
    taking_part = MPI.COMM_WORLD.Get_rank() <= workers
    world = MPI.COMM_WORLD.Split(0 if taking_part else MPI.UNDEFINED)
    if taking_part:
        train_and_compare(case, data, world)
        world.Free()


def unexpected(*event):
    raise AssertionError(event)


def train_and_compare(case, data, world):
    config = from_yaml_text(settings(*case))
    problem = make_problem("softmax", dataset=data, l2=0.01)
    transport = Transport(world)
    try:
        plan = make_plan(config.coding, config.schedule, case[0], config.seed) if transport.rank == 0 else None
        plan = Plan.from_bytes(transport.broadcast(plan.to_bytes() if plan else None))
        if transport.rank == 0:
            silent = SimpleNamespace(
                chunk=lambda *_: None,
                iteration=lambda _: None,
                stepped=lambda *_: False,
                failure_text=lambda _, text: text,
                lost=unexpected,
                returned=unexpected,
            )
            transport.start(from_everybody=config.aggregation == "allreduce")
            driver = ProblemDriver(Replica(make_optimizer(config.optimizer), Backend(), transport.wake))
            server = Server(transport, Backend(), silent, ServerSettings(config=config, plan=plan, driver=driver))
            params = server.run(problem.initial_params().astype(config.dtype), ITERATIONS)
            assert server.stop_workers(timeout=10)
            expected = single_process(problem, data, config)
            assert params.dtype == config.dtype
            assert np.linalg.norm(params - expected) <= TOLERANCE[config.dtype] * np.linalg.norm(expected)
        else:
            chunks = ChunkSource(data, plan.num_chunks, config.dtype, Backend())
            program = ProblemProgram(config, Backend(), problem, chunks, transport.wake)
            make_worker(transport, config, plan, program, 0, make_injector(config, transport.rank)).run()
    finally:
        transport.close()
