"""Checkpoint-and-restart around Allreduce, as one writes it without psgc: beside psgc in scripts/chaos.py.

    mpirun -n 8 python scripts/chaos_loop.py run.yaml

It takes the YAML of `psgc train`. Every 50 iterations rank 0 writes parameters, velocity and iteration to OUTPUT. When
it is started again it goes on from there. OUTPUT/iterations.csv has a row for each iteration that counts.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from psgc import config as configuration
from psgc.backend import open_backend
from psgc.data import ChunkSource
from psgc.optimizer import make_optimizer
from psgc.problems import evaluate
from psgc.record.csv_files import csv_text, row_text
from psgc.run.checkpoint import initial_params
from psgc.run.inputs import open_problem
from psgc.run_rows import COLUMNS, IterationRow

EVERY = 50


def main() -> None:
    comm = MPI.COMM_WORLD
    config = configuration.load(sys.argv[1])
    output = Path(config.output)
    dataset, problem = open_problem(config, sys.argv[1])
    share = ChunkSource(dataset, comm.size, config.dtype, open_backend("numpy", 0)).chunk(comm.rank)
    loss_and_gradient, optimizer = evaluate(problem), make_optimizer(config.optimizer, config.iterations)
    seconds = config.coding.per_worker * config.stragglers.seconds["all"]
    params, first, repeated = initial_params(config, problem), 0, 0
    if (output / "state.npz").exists():
        with np.load(output / "state.npz") as state:
            params, first = state["params"], int(state["first"])
            optimizer.load({name: state[name] for name in state.files if name not in ("params", "first")})
    rows = output / "iterations.csv"
    if comm.rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        lines = rows.read_text().splitlines(keepends=True) if rows.exists() else [csv_text(COLUMNS)]
        known = output / "summary.json"
        repeated = json.loads(known.read_text())["repeated"] if known.exists() else 0
        repeated += max(0, len(lines) - 1 - first)
        known.write_text(json.dumps({"repeated": repeated}))
        rows.write_text("".join(lines[: first + 1]))
    for iteration in range(first, config.iterations):
        began = time.monotonic()
        _, total = loss_and_gradient(params, share, np.random.default_rng((config.seed, iteration)))
        time.sleep(seconds)
        comm.Allreduce(MPI.IN_PLACE, total)
        params = optimizer.step(params, total, iteration)
        if comm.rank:
            continue
        with rows.open("a") as stream:
            row = IterationRow(iteration, seconds=time.monotonic() - began, bound=seconds)
            row.recovered = comm.size * config.coding.per_worker
            stream.write(row_text(row))
        if (iteration + 1) % EVERY == 0 or iteration + 1 == config.iterations:
            state = {name: value for name, value in optimizer.state().items() if isinstance(value, np.ndarray)}
            np.savez(output / "new.npz", params=params, first=iteration + 1, **state)
            os.replace(output / "new.npz", output / "state.npz")
    if comm.rank == 0:
        np.save(output / "params.npy", params)


if __name__ == "__main__":
    main()
