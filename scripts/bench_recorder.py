"""What it costs the server to keep the record of a run, against the time that the workers compute.

    python scripts/bench_recorder.py

A row is recorded while the workers are busy with the next iteration, so what it takes delays nobody as long as it is
shorter than the first chunk of that iteration. Printed, for one row: the time of the calls for its chunks, of the row
itself and, within that, of the bound T*; all of it as a share of the iteration; and the share that is left when the
time until the first report is taken off, the delay. Chunks take 5 ms.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from psgc import coding
from psgc.reporting.records import Recorder
from psgc.run_rows import Outcome
from psgc.server.observer import IterationRecord

SECONDS = 0.005  # a chunk


def measure(workers: int, chunks_per_worker: int, replication: int, rows: int) -> tuple[float, float, float, float]:
    """Seconds of one row: the calls for its chunks, the row, the bound; and of `finish` for all of them."""
    num_chunks = workers * chunks_per_worker
    assignment = coding.blocks(num_chunks, workers, replication, seed=0)
    rng = np.random.default_rng(0)
    calls, closing, bounds = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(Path(directory), "seed: 0\n", assignment, 1, [chunks_per_worker] * workers)
        for iteration in range(rows):
            seconds = SECONDS * rng.lognormal(0, 0.1, workers)
            reports = {
                (worker, (worker - 1) * chunks_per_worker + k, 0): (k * each, each)
                for worker, each in enumerate(seconds.tolist(), start=1)
                for k in range(chunks_per_worker)
            }
            row = IterationRecord(iteration, seconds=1.1 * SECONDS * chunks_per_worker, loss=0.5, reports=reports)
            began = time.process_time()
            for (worker, chunk, _), (start, each) in reports.items():
                recorder.chunk(worker, chunk, iteration, start, each, Outcome.USED)
            called = time.process_time()
            recorder.iteration(row)
            closed = time.process_time()
            coding.clairvoyant_bound(assignment, 1, seconds)
            calls.append(called - began)
            closing.append(closed - called)
            bounds.append(time.process_time() - closed)
        began = time.process_time()
        recorder.finish(np.zeros(1), {})
        finish = time.process_time() - began
    return float(np.median(calls)), float(np.median(closing)), float(np.median(bounds)), finish


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=50, metavar="K", help="iterations that are recorded (50)")
    options = parser.parse_args()
    print("workers x chunks   calls ms    row ms  (bound ms)  iteration ms   share   delay   finish ms")
    for workers, chunks in ((8, 8), (256, 16)):
        calls, row, bound, finish = measure(workers, chunks, 3, options.rows)
        iteration = 1.1 * SECONDS * chunks
        share, delay = (calls + row) / iteration, max(0.0, calls + row - SECONDS) / iteration
        print(
            f"{workers:>7} x {chunks:<6} {1e3 * calls:>10.3f} {1e3 * row:>9.3f} {1e3 * bound:>11.3f} "
            f"{1e3 * iteration:>13.1f} {share:>7.2%} {delay:>7.2%} {1e3 * finish:>11.1f}"
        )


if __name__ == "__main__":
    main()
