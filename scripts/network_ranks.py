"""What the ranks of scripts/bench_network.py run: an Allreduce loop, and a problem of psgc with the same sums.

    mpirun -n 8 python network_ranks.py OUTPUT OPTIONS

OPTIONS is a JSON object: library (mpi4py or gloo), steps (whether the loop makes a step of gradient descent with each
sum, as psgc does), iterations, and the arguments of `Work` and `Constant`. Every vector is made of equal numbers whose
sum over the ranks, or the chunks, is 1. Rank 0 leaves OUTPUT/iterations.csv with the seconds of each iteration: from
the beginning of the computing until the sum is there, as psgc counts them, or the step is made.
"""

import csv
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from cpu_quotas import join

PORT = 29500  # of gloo's rank 0, on a host where nothing else listens
TOLERANCE = 1e-4  # of a sum of float32


class Work:
    """Computing that takes `seconds` of processor time. groups: the folder of the hosts' CPU quotas, empty for none."""

    def __init__(self, seconds: float, groups: str) -> None:
        self._seconds = seconds
        self._groups = groups
        self._vector = np.ones(10_000)

    def __call__(self) -> None:
        if self._groups:  # now, not when the process starts: imports at a twentieth of a core take a minute
            join(self._groups, socket.gethostname())
            self._groups = ""
        if not self._seconds:
            return
        end = time.thread_time() + self._seconds
        while time.thread_time() < end:
            self._vector @ self._vector


class Constant:
    """A problem of `dim` parameters. The gradient of a chunk has its weight everywhere, so that all chunks sum to 1."""

    def __init__(self, dim: int, seconds: float, groups: str) -> None:
        self.dim = dim
        self._work = Work(seconds, groups)

    def initial_params(self) -> np.ndarray:
        return np.zeros(self.dim)

    def gradient(self, params, chunk, rng) -> np.ndarray:
        self._work()
        return np.full(self.dim, chunk.weight, params.dtype)


def add_up(library: str, comm: Any, dim: int):
    """The vector that is to be added up over the ranks, (dim,) float32, a function that does it in place, and one that
    all ranks call at the end."""
    vector = np.empty(dim, np.float32)
    if library == "mpi4py":
        from mpi4py import MPI

        return vector, lambda: comm.Allreduce(MPI.IN_PLACE, vector), comm.Barrier
    import torch
    from torch import distributed

    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    torch.set_num_threads(1)
    address = f"tcp://{comm.bcast(socket.gethostname())}:{PORT}"
    distributed.init_process_group("gloo", init_method=address, rank=comm.rank, world_size=comm.size)
    tensor = torch.from_numpy(vector)

    def end() -> None:
        comm.Barrier()  # gloo aborts where a rank is gone before the others have closed their connections
        distributed.destroy_process_group()
        comm.Barrier()

    return vector, lambda: distributed.all_reduce(tensor), end


def main() -> int:
    from mpi4py import MPI

    output, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    comm = MPI.COMM_WORLD
    work = Work(options["seconds"], options["groups"])
    vector, add, end = add_up(options["library"], comm, options["dim"])
    rows, params = [], np.zeros_like(vector) if options["steps"] else None
    for iteration in range(options["iterations"]):
        began = time.monotonic()
        work()
        vector.fill(1 / comm.size)
        add()
        if params is not None:
            params -= np.float32(1.0) * vector
        rows.append((iteration, time.monotonic() - began))
        if np.abs(vector - 1).max() > TOLERANCE:
            print(f"rank {comm.rank}: the sum is wrong", file=sys.stderr)
            comm.Abort(1)
    end()
    if comm.rank == 0:
        output.mkdir(parents=True)
        with (output / "iterations.csv").open("w", newline="") as text:
            csv.writer(text).writerows([("iteration", "seconds"), *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
