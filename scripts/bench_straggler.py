"""What one slow worker costs: time per iteration of every schedule with and without it, under real mpirun.

    python scripts/bench_straggler.py [--chunk-ms 20] [--iterations 20] [--factor 10]

8 workers, `blocks`, 8 chunks each, replication 3. Chunk times are emulated (a worker sleeps until its chunk has taken
its time), so that 9 processes on few cores behave as on 9 machines; messages, encoding and decoding are real. The
ratio is against `skipping` without the slow worker; the fluid limit is what perfectly divisible work would reach.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from psgc.data import write_dense

WORKERS, CHUNKS, SLOW = 8, 8, 3
SCHEDULES = ("uncoded", "full", "static", "skipping")
CONFIG = """
problem: {kind: softmax}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 1
coding: {chunks_per_worker: 8, replication: 3, assignment: blocks}
output: run
"""


def run(folder: Path, schedule: str, iterations: int, seconds: str) -> dict[str, float]:
    """One training run; its summary."""
    output = folder / f"{schedule}-{len(list(folder.iterdir()))}"
    settings = [f"schedule={schedule}", f"iterations={iterations}", f"output={output}"]
    settings += ["stragglers.kind=slow", f"stragglers.seconds={seconds}"]
    command = [sys.executable, "-m", "psgc", "launch", "run.yaml", "-n", str(WORKERS + 1)]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, float] = json.loads((output / "summary.json").read_text())
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk-ms", type=float, default=20.0, help="milliseconds that a chunk takes")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--factor", type=float, default=10.0, help="how much slower the slow worker is")
    options = parser.parse_args()
    chunk = options.chunk_ms / 1e3
    fluid = WORKERS / (WORKERS - 1 + 1 / options.factor)
    equal = f"{{all: {chunk}}}"
    slow = f"{{all: {chunk}, {SLOW}: {chunk * options.factor}}}"
    print(f"{WORKERS} workers, {CHUNKS} chunks of {options.chunk_ms:g} ms each, replication 3; worker {SLOW} slow")
    print(f"{'schedule':<10} {'none slow':>12} {'one slow':>12} {'ratio':>8} {'T*/T':>6} {'work thrown away':>18}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        write_dense(str(folder / "data.npz"), rng.random((640, 20)), np.arange(640.0) % 4)
        (folder / "run.yaml").write_text(CONFIG)
        reference = run(folder, "skipping", options.iterations, equal)["seconds_per_iteration"]
        for schedule in SCHEDULES:
            none, one = (run(folder, schedule, options.iterations, seconds) for seconds in (equal, slow))
            before, after = none["seconds_per_iteration"], one["seconds_per_iteration"]
            print(
                f"{schedule:<10} {1e3 * before:9.1f} ms {1e3 * after:9.1f} ms {after / reference:8.2f} "
                f"{one['efficiency']:6.2f} {100 * one['work_thrown_away']:16.1f} %",
                flush=True,
            )
    print(f"ratio: one slow over skipping with none slow ({1e3 * reference:.1f} ms); the fluid limit is {fluid:.2f}")


if __name__ == "__main__":
    main()
