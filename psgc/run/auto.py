"""The values that `auto` stands for: how many chunks each worker has, and how gradients travel.

A chunk must take long enough for two limits. A worker spends at most 5 % of its time on the overhead of chunks. Rank 0
handles the reports of all workers one after another, and spends at most 25 % of its time on them.

Workers compute several chunks in one pass if they may. Then one gradient travels with the report of each pass, or one
sum for each worker.
"""

import time
from typing import Literal

import numpy as np

from psgc.backend import Backend
from psgc.config import Config, ScriptProblem
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError, one_line, raised_at
from psgc.problems import Problem, evaluate
from psgc.run.checkpoint import initial_params
from psgc.run.inputs import rows_in_iteration
from psgc.schedules import SCHEDULES
from psgc.vectors import MESSAGE
from psgc.workers.compute import gradient_of

MOST = 8  # chunks for each worker
OVERHEAD = 2e-4  # seconds of a worker for a chunk besides its gradient, all threads together; measured
MOST_OVERHEAD = 0.05  # of a worker's time
REPORT = 1e-4  # seconds of rank 0 for a small report; measured: 0.08 ms, 0.1 ms with 256 KiB
MOST_REPORTS = 0.25  # of rank 0's time
TIMED = (5, 0.2)  # a chunk is timed so many times, or until so many seconds have passed
PER_PASS = 1 << 14, 1 << 20  # bytes of a vector, and in and out of the server, up to which `transfer: auto` is per_pass


def chosen_chunks(share: float, num_workers: int, report_bytes: int) -> int:
    """The number of chunks for each worker.

    share: seconds that a worker needs for its share of the data
    report_bytes: size of the vector in a report

    >>> chosen_chunks(0.008, 8, 0), chosen_chunks(0.1, 8, 0), chosen_chunks(0.1, 100, 0)
    (2, 8, 2)
    """
    reports = num_workers * REPORT * (1 + report_bytes / MESSAGE)
    least = max(OVERHEAD / MOST_OVERHEAD, reports / MOST_REPORTS)  # seconds of a chunk
    return max(1, min(MOST, int(share / least)))


def seconds_of_share(
    config: Config, num_workers: int, dataset: Dataset | None, problem: Problem, backend: Backend
) -> float:
    """How long a worker needs for its share of an iteration's rows, extrapolated from the first of `MOST` chunks.

    Raises UserError.
    """
    per_worker = MOST if dataset is None else max(1, min(MOST, dataset.num_rows // num_workers))
    rows = rows_in_iteration(config, None if dataset is None else dataset.num_rows)
    share = 1.0 if dataset is None or rows is None else rows / dataset.num_rows
    chunks = ChunkSource(dataset, per_worker * num_workers, config.dtype, backend)
    params = backend.asarray(initial_params(config, problem))
    evaluation = evaluate(problem)
    times: list[float] = []
    while len(times) < TIMED[0] and sum(times) < TIMED[1]:
        began = time.perf_counter()
        try:
            gradient = gradient_of(evaluation, chunks, 0, params, 0, config.seed, None)[1]
            np.asarray(backend.to_host(backend.asarray(gradient)))  # waits for the device
        except UserError:  # damaged data
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            text = f"the gradient of chunk 0 failed: {one_line(error)}{raised_at(error)}"
            raise UserError(f"problem: {text} (it is timed for coding.chunks_per_worker: auto)") from error
        times.append(time.perf_counter() - began)
    cost = (chunks.costs() or [1.0])[0]
    return min(times) / cost * per_worker * share


def chosen_transfer(config: Config, vector: int, through_server: int) -> Literal["per_chunk", "per_pass", "combined"]:
    """The transfer of the run.

    vector: bytes of a vector
    through_server: bytes of the vectors from and to all workers

    `per_chunk` if rank 0 needs the gradient of each chunk. `per_pass` for small vectors of NumPy problems, since a
    worker then gets one message in place of two, unless workers must do single chunks. Otherwise `combined`. It is not
    known yet whether a script draws random numbers, and so must do single chunks.
    """
    if config.transfer != "auto":
        return config.transfer
    if config.aggregation == "allreduce":
        return "combined"
    compares_codes = config.verify is not None and config.coding.parts > 1
    is_unbiased = config.recovery.estimator == "unbiased"
    if compares_codes or is_unbiased or config.faults.flips("sending"):
        return "per_chunk"
    keeps = config.verify is not None or any(it.step == "after_commit" for it in config.faults.inject)
    is_small = vector <= PER_PASS[0] and through_server <= PER_PASS[1]
    is_known = config.batch is None and not isinstance(config.problem, ScriptProblem)
    joins = config.joins and SCHEDULES[config.schedule].joins
    return "per_pass" if joins and not keeps and is_small and is_known else "combined"


def without_auto(config: Config, num_workers: int, dim: int) -> Config:
    """The settings with the transfer and the aggregation that `auto` stands for. Raises UserError."""
    vector = vector_bytes(config, dim)
    through_server = num_workers * (vector + vector // config.coding.parts)
    if config.transfer == "auto":
        config = config.model_copy(update={"transfer": chosen_transfer(config, vector, through_server)})
        if text := config.transfer_conflict():
            raise UserError(f"{text} (transfer: auto chose {config.transfer})")
    if config.aggregation == "auto":
        aggregation = "allreduce" if config.allreduce_conflict() is None else "server"
        config = config.model_copy(update={"aggregation": aggregation})
    return config


def vector_bytes(config: Config, dim: int) -> int:
    """The size of a vector of so many parameters."""
    return dim * np.dtype(config.dtype).itemsize
