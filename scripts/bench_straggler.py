"""What slow workers cost under every schedule, under real mpirun, and whether the simulator foresees it.

    python scripts/bench_straggler.py [--chunk-ms 20] [--iterations 20] [--factor 10] [--trace FILE.npy ...]

8 workers, `blocks`, replication 3. Chunk times are emulated (a worker sleeps until its chunk has taken its time), so
that 9 processes on few cores behave as on 9 machines; messages, encoding and decoding are real.

The first table has 8 chunks a worker and one worker that is `factor` times slower; its ratio is against `skipping`
without the slow worker, and the fluid limit is what perfectly divisible work would reach.

A further table for every trace (seconds, rounds x workers; scaled so that a chunk takes chunk-ms in the median) has 16
chunks a worker and the mean time per iteration beside what the simulator says for the same times. The first iteration
is left out: it starts while the ranks are still being set up.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from benching import SCHEDULES, SLOW, WORKERS, Run, equal, one_slow, traced, train

from psgc import schedules
from psgc.config import Coding
from psgc.data import write_dense
from psgc.plan import make_plan
from psgc.simulation.virtual import VirtualCluster

SEED = 0
CONFIG = """
problem: {kind: softmax}
data: {path: given}
optimizer: {kind: sgd, lr: 0.1}
iterations: 1
coding: {replication: 3, assignment: blocks}
output: run
"""


def run(folder: Path, schedule: str, iterations: int, chunks: int, stragglers: str) -> Run:
    settings = {
        "schedule": schedule,
        "iterations": iterations,
        "coding.chunks_per_worker": chunks,
        "stragglers": stragglers,
        "data.path": folder / "data.npz",
    }
    done = train(folder / "run.yaml", folder / f"{schedule}-{len(list(folder.iterdir()))}", settings)
    if done is None:
        sys.exit(f"bench_straggler: the run of {schedule} failed")
    return done


def simulated(schedule: str, chunks: int, times: np.ndarray) -> np.ndarray:
    """Seconds per iteration of the same plan on a virtual clock; times: seconds per chunk, (iterations, workers)."""
    plan = make_plan(Coding(replication=3, chunks_per_worker=chunks), schedule, WORKERS, SEED)
    holders = plan.holders()
    rules = schedules.SCHEDULES[schedule](plan.queues, plan.backups, holders, 1)
    cluster = VirtualCluster(holders, plan.queues, 1, rules)
    return np.array([cluster.recover(dict(enumerate(row.tolist(), start=1))).time for row in times])


def table_of_one_slow(folder: Path, options: argparse.Namespace) -> None:
    """The first table."""
    chunk = options.chunk_ms / 1e3
    even, slow = equal(chunk), one_slow(chunk, options.factor)
    print(f"{WORKERS} workers, 8 chunks of {options.chunk_ms:g} ms each, replication 3; worker {SLOW} slow")
    print(f"{'schedule':<10} {'none slow':>12} {'one slow':>12} {'ratio':>8} {'T*/T':>6} {'work thrown away':>18}")
    reference = run(folder, "skipping", options.iterations, 8, even).median("seconds")
    for schedule in SCHEDULES:
        before = reference
        if schedule != "skipping":
            before = run(folder, schedule, options.iterations, 8, even).median("seconds")
        slowed = run(folder, schedule, options.iterations, 8, slow)
        after = slowed.median("seconds")
        print(
            f"{schedule:<10} {1e3 * before:9.1f} ms {1e3 * after:9.1f} ms {after / reference:8.2f} "
            f"{slowed.summary['efficiency']:6.2f} {100 * slowed.summary['work_thrown_away']:16.1f} %",
            flush=True,
        )
    fluid = WORKERS / (WORKERS - 1 + 1 / options.factor)
    print(f"ratio: one slow over skipping with none slow ({1e3 * reference:.1f} ms); the fluid limit is {fluid:.2f}")


def table_of_trace(folder: Path, options: argparse.Namespace, trace: Path) -> None:
    """The table of one trace."""
    stragglers, times = traced(trace, options.chunk_ms / 1e3)
    times = times[: options.iterations]
    print(f"\n{trace.name}: {WORKERS} workers, 16 chunks each, {options.chunk_ms:g} ms in the median; means")
    print(f"{'schedule':<10} {'measured':>12} {'simulated':>12} {'ratio':>8} {'T*/T':>6}")
    for schedule in SCHEDULES:
        done = run(folder, schedule, len(times), 16, stragglers)
        measured, expected = float(done.seconds().mean()), float(simulated(schedule, 16, times)[1:].mean())
        print(
            f"{schedule:<10} {1e3 * measured:9.1f} ms {1e3 * expected:9.1f} ms {measured / expected:8.3f} "
            f"{done.summary['efficiency']:6.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk-ms", type=float, default=20.0, help="milliseconds that a chunk takes")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--factor", type=float, default=10.0, help="how much slower the slow worker is")
    parser.add_argument("--trace", type=Path, action="append", default=[], help="measured times (repeatable)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dense(str(folder / "data.npz"), np.random.default_rng(0).random((640, 20)), np.arange(640.0) % 4)
        (folder / "run.yaml").write_text(CONFIG)
        table_of_one_slow(folder, options)
        for trace in options.trace:
            table_of_trace(folder, options, trace)


if __name__ == "__main__":
    main()
