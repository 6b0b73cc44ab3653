"""What an iteration costs besides the gradients: time per iteration when chunks take next to nothing.

    python scripts/bench_overhead.py [--workers 2 4 8] [--chunks 1 8 16] [--chunk-ms 0 1 5]
        [--factor 1] [--iterations 100] [--rounds 1] [--out runs/bench/overhead.md]

Every row of the table is a setting of psgc, or the same under a plain mpi4py loop (scripts/allreduce_loop.py), and
every run a real mpirun. The gradient of a chunk takes some 30 us; --chunk-ms makes chunks as long as that by sleeping.
--factor makes the last worker so many times slower. --rounds repeats the whole grid: a row is the median of its
rounds, which lie far apart, so that a busy minute of the machine does not fall on one row alone.

--virtual adds a second table, on a virtual clock: what rank 0's coordinator and schedule (`dynamic`) take for larger
clusters, and for how long all workers wait for new queues after a loss.

The grid as it stands takes an hour. The shortest that shows something: --workers 8 --chunks 8 --chunk-ms 0.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benching import publish, train, train_with_allreduce
from virtual_overhead import measure_virtual, virtual_table

from psgc.data import write_dense

SCHEDULES = ("uncoded", "static", "skipping", "dynamic")
LOOP, REFERENCE = "`Allreduce` loop", "`uncoded`"
PROGRAMS: dict[str, dict[str, Any]] = {  # settings by what the table calls them; those of the loop are empty
    LOOP: {},
    **{f"`{name}`": {"schedule": name, "transfer": "per_chunk"} for name in SCHEDULES},
    **{f"`{name}`, `combined`": {"schedule": name, "transfer": "combined"} for name in SCHEDULES},
}
WARM_UP = 5  # iterations that are not counted
ROWS, FEATURES = 2048, 10


@dataclass(frozen=True)
class Case:
    """workers, chunks for each of them, milliseconds that a chunk is made to take."""

    workers: int
    chunks: int
    chunk_ms: float


@dataclass(frozen=True)
class Took:
    """seconds: median time per iteration; redundant: share of the computing time that did not count."""

    seconds: float
    redundant: float = 0.0


def main() -> int:
    options = _options()
    cases = [Case(*values) for values in itertools.product(options.workers, options.chunks, options.chunk_ms)]
    measured: dict[tuple[Case, str], list[Took]] = {}
    with tempfile.TemporaryDirectory() as name:
        config = _prepare(Path(name))
        for _, case in itertools.product(range(options.rounds), cases):
            for program, settings in PROGRAMS.items():
                took = measure(config, case, program, settings, options)
                if took is None:
                    print(f"bench_overhead: {program}, {case}: the run failed", file=sys.stderr)
                    return 1
                measured.setdefault((case, program), []).append(took)
                print(f"{case} {program}: {1e3 * took.seconds:.2f} ms", file=sys.stderr, flush=True)
    text = f"{options.iterations} iterations, {options.rounds} rounds.\n\n{table(medians(measured))}\n"
    if options.virtual:
        text += "\n" + virtual_table([measure_virtual(workers) for workers in options.virtual]) + "\n"
    publish(text, options.out)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 8, 16], help="chunks for each worker")
    parser.add_argument("--chunk-ms", type=float, nargs="+", default=[0.0, 1.0, 5.0])
    parser.add_argument("--virtual", type=int, nargs="*", default=[64, 512, 4096], help="workers on a virtual clock")
    parser.add_argument("--factor", type=float, default=1.0, help="how much slower the last worker is")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/overhead.md"), help="where the table goes")
    return parser.parse_args()


def _prepare(folder: Path) -> Path:
    """The YAML of a problem whose gradients take next to no time, with its data beside it."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, FEATURES))
    data, config = folder / "data.npz", folder / "run.yaml"
    write_dense(str(data), X, X @ rng.standard_normal(FEATURES))
    config.write_text(
        f"problem: {{kind: least_squares}}\ndata: {{path: {data}}}\noptimizer: {{kind: sgd, lr: 0.01}}\n"
        "iterations: 1\ncheckpoint: {every: 0}\noutput: out\n"
    )
    return config


def measure(
    config: Path, case: Case, program: str, settings: Mapping[str, Any], options: argparse.Namespace
) -> Took | None:
    """One run; None when it fails."""
    chunk = case.chunk_ms / 1e3
    slow = chunk * options.factor
    common = {
        "iterations": options.iterations + WARM_UP,
        "coding.chunks_per_worker": case.chunks,
        "coding.replication": min(3, case.workers),
        "stragglers": f"{{kind: slow, seconds: {{all: {chunk}, {case.workers}: {slow}}}}}" if chunk else "{}",
    }
    launch = train_with_allreduce if program == LOOP else train
    with tempfile.TemporaryDirectory() as output:
        run = launch(config, Path(output) / "run", common | settings, case.workers)
    if run is None:
        return None
    return Took(run.median("seconds", WARM_UP), run.summary.get("work_thrown_away", 0.0))


def medians(measured: Mapping[tuple[Case, str], Sequence[Took]]) -> dict[tuple[Case, str], Took]:
    """Of the rounds of each row."""
    return {
        row: Took(statistics.median(t.seconds for t in tooks), statistics.median(t.redundant for t in tooks))
        for row, tooks in measured.items()
    }


def table(rows: Mapping[tuple[Case, str], Took]) -> str:
    """The rows as Markdown, each beside `uncoded` with the same workers and chunks, if that was measured."""
    lines = ["| workers | chunks each | chunk | program | per iteration | to `uncoded` | redundant work |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (case, program), took in rows.items():
        reference = rows.get((case, REFERENCE))
        ratio = f"{took.seconds / reference.seconds:.2f}" if reference else ""
        cells = [str(case.workers), str(case.chunks), f"{case.chunk_ms:g} ms", program]
        cells += [f"{1e3 * took.seconds:.2f} ms", ratio, f"{100 * took.redundant:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
