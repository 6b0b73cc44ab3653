"""What the coordinator and the dynamic schedule cost per report, as the cluster grows, on a virtual clock.

    python scripts/bench_scheduler.py [--workers 100 1000 10000 100000]

One iteration of `blocks` with 10 chunks a worker, replication 3 and exponential speeds: nobody is like anybody else, so
that the schedule has all its work to do. The time includes the simulated workers' own state machines.
"""

import argparse
import resource
import time
from itertools import pairwise

import numpy as np

from psgc import coding
from psgc.plan import default_queues
from psgc.schedules import SCHEDULES
from psgc.simulation.virtual import VirtualCluster

CHUNKS = 10  # of each worker


def measure(workers: int) -> None:
    """One iteration; prints a row."""
    began = time.perf_counter()
    assignment = coding.blocks(workers * CHUNKS, workers, 3, seed=0)
    ordering = coding.ordering(assignment)
    primary = coding.primary_copies(assignment, ordering, 1)
    queues, backups = default_queues("dynamic", ordering, primary, 0, range(1, workers + 1))
    indices, indptr = (assignment.indices + 1).tolist(), assignment.indptr.tolist()
    holders = [indices[a:b] for a, b in pairwise(indptr)]
    speeds = np.random.default_rng(1).exponential(1.0, workers).tolist()
    seconds = dict(enumerate(speeds, start=1))
    schedule = SCHEDULES["dynamic"](queues, backups, holders, 1)
    cluster = VirtualCluster(holders, queues, 1, schedule)
    ready = time.perf_counter()
    trial = cluster.recover(seconds)
    spent = time.perf_counter() - ready
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{workers:>8} {len(holders):>9} {trial.computed:>9} {1e6 * spent / trial.computed:>10.1f} us "
        f"{spent:>9.1f} s {ready - began:>9.1f} s {memory:>7.2f} GiB {trial.time:>8.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    options = parser.parse_args()
    print(" workers    chunks   reports    per report   iteration        plan      memory        T")
    for workers in options.workers:
        measure(workers)


if __name__ == "__main__":
    main()
