"""What it costs the server to keep the record of a run, in CPU time and in memory.

    python scripts/bench_recorder.py

A row is recorded while the workers are busy with the next iteration, so what it takes delays nobody as long as it is
shorter than the first chunk of that iteration. Printed, for one row: the CPU time of the calls for its chunks and of
the row itself, which has a bound T* as often as 2 % of the run's time allow; both as a share of the iteration; and the
share that is left when the time until the first report is taken off, the delay. Then the memory that all rows take,
and the time of `finish`. Chunks take 5 ms.
"""

import re
import tempfile
import time
from pathlib import Path

import numpy as np

from psgc import coding
from psgc.record.recorder import Recorder
from psgc.run_rows import IterationRow, Outcome

SECONDS = 0.005  # a chunk
ROWS = 50  # iterations that are recorded


def measure(workers: int, chunks_per_worker: int) -> tuple[float, float, float, float]:
    """Mean seconds of the calls for one row and of the row; megabytes for all rows; seconds of `finish`."""
    assignment = coding.blocks(workers * chunks_per_worker, workers, 3, seed=0)
    rng = np.random.default_rng(0)
    calls = closing = 0.0
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(Path(directory), "seed: 0\n", assignment, 1, [chunks_per_worker] * workers, ROWS)
        before = memory()
        for iteration in range(ROWS):
            seconds = (SECONDS * rng.lognormal(0, 0.1, workers)).tolist()
            began = time.process_time()
            for worker, each in enumerate(seconds, start=1):
                for k in range(chunks_per_worker):
                    chunk = (worker - 1) * chunks_per_worker + k
                    recorder.chunk(worker, chunk, iteration, k * each, each, Outcome.USED)
            called = time.process_time()
            recorder.iteration(IterationRow(iteration, seconds=1.1 * SECONDS * chunks_per_worker, loss=0.5))
            calls += called - began
            closing += time.process_time() - called
        grown = memory() - before
        began = time.process_time()
        recorder.finish(np.zeros(1), {})
        return calls / ROWS, closing / ROWS, grown, time.process_time() - began


def memory() -> float:
    """Megabytes of this process that are in no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1000


def main() -> None:
    print("workers x chunks   calls ms    row ms  iteration ms   share   delay   memory MB   finish ms")
    for workers, chunks in ((8, 8), (256, 16), (512, 16)):
        calls, row, megabytes, finish = measure(workers, chunks)
        iteration = 1.1 * SECONDS * chunks
        share, delay = (calls + row) / iteration, max(0.0, calls + row - SECONDS) / iteration
        print(
            f"{workers:>7} x {chunks:<6} {1e3 * calls:>10.3f} {1e3 * row:>9.3f} {1e3 * iteration:>13.1f} "
            f"{share:>7.2%} {delay:>7.2%} {megabytes:>11.1f} {1e3 * finish:>11.1f}"
        )


if __name__ == "__main__":
    main()
