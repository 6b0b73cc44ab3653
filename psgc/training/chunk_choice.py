"""`coding.chunks_per_worker: auto`: as many chunks as pay for their messages, by the time of a gradient.

A chunk has to take long enough for two things. The worker needs a twentieth of it at most for what comes with a chunk
besides the gradient. Rank 0 handles the reports of all workers one after another, and is busy with them a quarter of
the time at most.
"""

import time

import numpy as np

from psgc.backend import Backend
from psgc.config import Config
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError, one_line
from psgc.messages import MESSAGE
from psgc.problems import Problem, evaluate
from psgc.training.inputs import initial_params
from psgc.user_code import raised_at
from psgc.workers.compute import gradient_of

MOST = 8  # chunks for each worker
BESIDES = 2e-4  # seconds that a worker needs for a chunk besides its gradient, all its threads together; measured
SMALL = 0.05  # share of a worker's time that this may be
REPORT = 1e-4  # seconds that rank 0 needs for a report of few bytes; measured: 0.08 ms, 0.1 ms with 256 KiB
BUSY = 0.25  # share of its time that this may be
TIMED = (5, 0.2)  # gradients of one chunk that are timed, and seconds after which it is enough


def chosen_chunks(share: float, num_workers: int, report_bytes: int) -> int:
    """Chunks for each worker.

    share: seconds that a worker computes for its share of the data; report_bytes: of the vector in a report.

    >>> chosen_chunks(0.008, 8, 0), chosen_chunks(0.1, 8, 0), chosen_chunks(0.1, 100, 0)
    (2, 8, 2)
    """
    least = max(BESIDES / SMALL, num_workers * REPORT * (1 + report_bytes / MESSAGE) / BUSY)  # seconds of a chunk
    return max(1, min(MOST, int(share / least)))


def seconds_of_share(
    config: Config, num_workers: int, dataset: Dataset | None, problem: Problem, backend: Backend
) -> float:
    """How long a worker computes for its share of the data, from the gradient of the first of its chunks.

    What a gradient takes however few rows it has counts once for each of `MOST` chunks. Raises UserError.
    """
    per_worker = MOST if dataset is None else max(1, min(MOST, dataset.num_rows // num_workers))
    chunks = ChunkSource(dataset, per_worker * num_workers, config.dtype, backend)
    params = backend.asarray(initial_params(problem, config.dtype))
    evaluation = evaluate(problem)
    times: list[float] = []
    while len(times) < TIMED[0] and sum(times) < TIMED[1]:
        began = time.perf_counter()
        try:
            gradient = gradient_of(evaluation, chunks, 0, params, 0, config.seed, None)[1]
            np.asarray(backend.to_host(backend.asarray(gradient)))  # a device has done it only then
        except UserError:  # damaged data
            raise
        except (Exception, SystemExit) as error:  # the user's code
            text = f"the gradient of chunk 0 failed: {one_line(error)}{raised_at(error)}"
            raise UserError(f"problem: {text} (it is timed for coding.chunks_per_worker: auto)") from error
        times.append(time.perf_counter() - began)
    cost = (chunks.costs() or [1.0])[0]
    return min(times) / cost * per_worker
