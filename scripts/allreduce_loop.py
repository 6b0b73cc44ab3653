"""Gradient descent as one writes it without psgc: each rank has its share of the data, Allreduce adds the gradients up.

    mpirun -n 8 python scripts/allreduce_loop.py run.yaml [--set key=value ...]

What psgc is compared with by scripts/bench_training.py. It takes the YAML of `psgc train`: problem, data, optimizer,
iterations, dtype and seed mean the same; there is no server, so worker r of psgc is rank r - 1 here, also for
`stragglers` and `faults.inject`. A rank computes one gradient of its share, which is made to take as long as
`coding.chunks_per_worker` chunks do there. Rank 0 leaves OUTPUT/iterations.csv: loss, and seconds from the
parameters to the gradient, as psgc counts them.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from psgc import config as configuration
from psgc.backend import open_backend
from psgc.config import Config
from psgc.data import ChunkSource
from psgc.errors import UserError
from psgc.optimizer import make_optimizer
from psgc.problems import evaluate
from psgc.run.checkpoint import initial_params
from psgc.run.inputs import emulated_chunks, emulated_seconds, make_injector, open_problem
from psgc.workers.emulation import Emulation


def descend(comm: MPI.Intracomm, config: Config, config_path: str) -> list[tuple[int, float, float]]:
    """The whole run on this rank: iteration, loss and seconds of each iteration."""
    dataset, problem = open_problem(config, config_path)
    share = ChunkSource(dataset, comm.size, config.dtype, open_backend("numpy", 0)).chunk(comm.rank)
    loss_and_gradient = evaluate(problem)
    optimizer = make_optimizer(config.optimizer, config.iterations)
    slow, worker = config.stragglers, comm.rank + 1
    times = emulated_seconds(config, comm.size)
    chunk_times = emulated_chunks(config, comm.size * config.coding.per_worker)
    emulation = Emulation(slow.kind, worker, config.seed, slow.factor, slow.seconds, times, chunk_times)
    injector = make_injector(config, worker)
    per_worker = config.coding.per_worker
    chunks = range(comm.rank * per_worker, worker * per_worker)

    params = initial_params(config, problem)
    total = np.empty(problem.dim + 1, config.dtype)  # the gradient, and the loss behind it: one Allreduce for both
    rows = []
    for iteration in range(config.iterations):
        began = time.monotonic()
        injector.at("gradient", iteration)
        total[-1], total[:-1] = loss_and_gradient(params, share, np.random.default_rng((config.seed, iteration)))
        computed = (time.monotonic() - began) / per_worker
        time.sleep(sum(emulation.extra(iteration, computed, chunk) for chunk in chunks))
        comm.Allreduce(MPI.IN_PLACE, total)
        rows.append((iteration, float(total[-1]), time.monotonic() - began))
        params = optimizer.step(params, total[:-1], iteration)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a run's YAML")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    comm = MPI.COMM_WORLD
    try:
        config = configuration.load(arguments.config, arguments.overrides)
        if config.batch:
            raise UserError("batch: this loop takes all rows")
        rows = descend(comm, config, arguments.config)
    except UserError as error:
        if comm.rank == 0:
            print(f"allreduce_loop: {error}", file=sys.stderr)
        return error.exit_code
    if comm.rank == 0:
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        with (output / "iterations.csv").open("w", newline="") as text:
            csv.writer(text).writerows([("iteration", "loss", "seconds"), *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
