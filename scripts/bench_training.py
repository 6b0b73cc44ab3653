"""What training takes under an Allreduce loop and under psgc's schedules: one table, every row a real mpirun.

    python scripts/bench_training.py [--slowness emulated quota] [--situations none slow neighbour cycle]
        [--programs loop uncoded static skipping dynamic] [--rounds 3] [--chunk-ms 10] [--iterations 25]
        [--trace FILE.npy] [--out runs/bench/bench.md]

Emulated: 8 workers on the flights problem (python scripts/make_flights.py), without a straggler, with one worker that
is `factor` times slower, with recorded times (--trace; seconds, rounds x workers, scaled so that a chunk takes chunk-ms
in the median), and with a worker that is killed half-way.

Compared are a plain mpi4py loop (scripts/allreduce_loop.py), and psgc without redundancy (`uncoded`), as original
gradient coding (`full`), as the paper has it (`static`), with recovered chunks skipped (`skipping`), and reordered by
the server (`dynamic`). Rank 0 gets the gradient of each chunk, as in the paper; in the emulated rows `dynamic` is there
once more with `combined`, where rank 0 gets one sum from each worker.

Chunk times are emulated: a worker sleeps until its chunk has taken its time, so that 8 workers on few cores behave as
on 8 machines; gradients, coding, messages and steps are real. All rows take the same steps, so the final losses must
agree: exits with 1 if they do not.

Quota, by default as well where CPU quotas can be had: 4 workers with 0.35 of a core each, chunks of real matrix
products (training_quotas.py), and every row once in each round. The situations:

    none       nobody slow
    slow       one worker has a fifth of that
    neighbour  one shares its quota with a busy process
    cycle      one has its whole share and a fifth of it, in turns of 2 s
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import training_quotas
from benching import (
    OF_THE_PAPER,
    SCHEDULES,
    SLOW,
    WORKERS,
    Run,
    equal,
    one_slow,
    publish,
    traced,
    train,
    train_with_allreduce,
)
from cpu_quotas import has_quotas
from training_quotas import LOOP, SITUATIONS

from psgc.errors import PsgcError, RunFailed

NONE_SLOW, KILLED = "none slow", "one killed"
PROGRAMS: dict[str, dict[str, Any]] = {
    LOOP: {},
    **{f"`{schedule}`": {"schedule": schedule, **OF_THE_PAPER} for schedule in SCHEDULES},
    "`dynamic`, `combined`": {"schedule": "dynamic", "transfer": "combined", "aggregation": "server"},
}
VICTIM = 5  # rank of the worker that is killed
AGREE = 1e-9  # relative difference of final losses
COUNTED = 20  # iterations of the run in which Open MPI counts the loop's bytes


@dataclass(frozen=True)
class Row:
    """One line of the table. seconds: median per iteration, None for a run that ended; redundant: share of the
    computing time; into: bytes into rank 0 per iteration, None when not known."""

    times: str
    program: str
    seconds: float | None
    redundant: float = 0.0
    into: float | None = None
    loss: float = float("nan")


def main() -> int:
    options = _options()
    slowness = options.slowness or ["emulated", *(["quota"] if has_quotas() else [])]
    texts, wrong = [], ""
    try:
        if "emulated" in slowness:
            rows = emulated(options)
            texts.append(report(options, rows))
            wrong = disagreeing(rows)
        if "quota" in slowness:
            under_quotas = training_quotas.measure(
                options.situations, options.programs, options.chunks, options.iterations, options.rounds
            )
            texts.append(training_quotas.report(under_quotas, options.chunks, options.iterations))
            wrong = wrong or disagreeing_under_quotas(under_quotas)
    except PsgcError as error:
        print(f"bench_training: {error}", file=sys.stderr)
        return error.exit_code
    publish("\n".join(texts), options.out)
    if wrong:
        print(f"bench_training: final losses differ: {wrong}", file=sys.stderr)
    return 1 if wrong else 0


def emulated(options: argparse.Namespace) -> list[Row]:
    """The rows whose chunk times are emulated. Raises RunFailed."""
    began = options.iterations // 2 + 1  # what a death costs is measured after it
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        into = loop_bytes(options.config, folder)
        for times, settings in scenarios(options).items():
            for number, (program, more) in enumerate(PROGRAMS.items()):
                output = folder / f"{len(rows)}-{number}"
                launch = train_with_allreduce if program == LOOP else train
                run = launch(options.config, output, settings | more)
                if run is None and times != KILLED:
                    raise RunFailed(f"{program}, {times}: the run failed")
                rows.append(row(times, program, run, into, began if times == KILLED else 1))
                print(table(rows[-1:], rows[0].seconds).splitlines()[-1], flush=True)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slowness", nargs="+", choices=("emulated", "quota"), help="(default: both, where possible)")
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=list(SITUATIONS), help="with quotas")
    programs = training_quotas.PROGRAMS
    parser.add_argument("--programs", nargs="+", choices=programs, default=list(programs), help="with quotas")
    parser.add_argument("--rounds", type=int, default=3, help="with quotas")
    parser.add_argument("--config", type=Path, default=Path("scripts/flights.yaml"), help="the YAML of emulated runs")
    parser.add_argument("--chunks", type=int, default=16, help="chunks for each worker")
    parser.add_argument("--chunk-ms", type=float, default=10.0, help="milliseconds that an emulated chunk takes")
    parser.add_argument("--iterations", type=int, default=25, help="of each run")
    parser.add_argument("--factor", type=float, default=5.0, help="how much slower the emulated slow worker is")
    parser.add_argument("--trace", type=Path, help="measured times, .npy: seconds, rounds x workers")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/bench.md"), help="where the table goes, Markdown")
    return parser.parse_args()


def scenarios(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Settings by the name of the workers' times."""
    chunk = options.chunk_ms / 1e3
    common = {
        "iterations": options.iterations,
        "coding.chunks_per_worker": options.chunks,
        "coding.replication": 3,
        "checkpoint.every": 0,
    }
    death = f"[{{kind: kill, rank: {VICTIM}, iteration: {options.iterations // 2}}}]"
    found = {
        NONE_SLOW: common | {"stragglers": equal(chunk)},
        f"one {options.factor:g} x slower": common | {"stragglers": one_slow(chunk, options.factor)},
    }
    if options.trace:
        found[options.trace.stem] = common | {"stragglers": traced(options.trace, chunk)[0]}
    return found | {KILLED: common | {"stragglers": equal(chunk), "faults.inject": death}}


def loop_bytes(config: Path, folder: Path) -> float | None:
    """Bytes into rank 0 per iteration of the loop, as Open MPI counts them; None where it does not."""
    environment = {
        "OMPI_MCA_pml_monitoring_enable": "1",
        "OMPI_MCA_pml_monitoring_enable_output": "3",
        "OMPI_MCA_pml_monitoring_filename": str(folder / "sent"),
    }
    train_with_allreduce(
        config, folder / "counted", {"iterations": COUNTED, "stragglers": "{}"}, environment=environment
    )
    counted = [sent_to_zero(path.read_text()) for path in folder.glob("sent.*.prof")]
    return sum(counted) / COUNTED if counted else None


def sent_to_zero(profile: str) -> int:
    """Bytes that one rank has sent to rank 0, by the profile that Open MPI's monitoring leaves of it."""
    lines = [line.split() for line in profile.splitlines()]
    return sum(int(words[3]) for words in lines if len(words) > 3 and words[0] in "IE" and words[2] == "0")


def row(times: str, program: str, run: Run | None, loop_into: float | None, first: int) -> Row:
    """What a run comes to from iteration `first` on."""
    if run is None:
        return Row(times, program, None)
    into = loop_into if program == LOOP else run.median("bytes_in", first)
    redundant = run.summary.get("work_thrown_away", 0.0)
    loss = run.summary.get("final_loss", run.rows[-1]["loss"])
    return Row(times, program, run.median("seconds", first), redundant, into, loss)


def table(rows: Sequence[Row], reference: float | None) -> str:
    """The rows as Markdown; reference: seconds to which all others are compared."""
    lines = [
        "| workers | program | per iteration | ratio | redundant work | into rank 0 | final loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.seconds is None or reference is None:
            cells = ["ends", "", "", "", ""]
        else:
            into = "" if row.into is None else f"{row.into / 1e6:.2f} MB"
            cells = [f"{1e3 * row.seconds:.1f} ms", f"{row.seconds / reference:.2f}", f"{100 * row.redundant:.1f} %"]
            cells += [into, f"{row.loss:.10f}"]
        lines.append(f"| {' | '.join([row.times, row.program, *cells])} |")
    return "\n".join(lines)


def disagreeing(rows: Sequence[Row]) -> str:
    """The rows whose final loss is not that of the first one; empty when all agree."""
    loss = rows[0].loss
    wrong = [row for row in rows if row.seconds is not None and not abs(row.loss - loss) <= AGREE * abs(loss)]
    return ", ".join(f"{row.loss!r} ({row.program}, {row.times})" for row in wrong and [rows[0], *wrong])


def disagreeing_under_quotas(rows: training_quotas.Rows) -> str:
    """The same for the rows of each situation, which may have iterations of its own."""
    for situation in dict.fromkeys(name for name, _ in rows):
        of_it = [
            Row(SITUATIONS[situation].text, program, took.seconds, loss=took.loss)
            for (name, program), tooks in rows.items()
            for took in tooks
            if name == situation
        ]
        if wrong := disagreeing(of_it):
            return wrong
    return ""


def report(options: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The whole Markdown text: what ran where, the table, how to read it."""
    computing = options.chunks * options.chunk_ms
    more = {row.program: 1e3 * row.seconds - computing for row in rows if row.times == NONE_SLOW and row.seconds}
    overheads = ", ".join(f"{program} {more[program]:.1f} ms" for program in PROGRAMS if program != "`full`")
    return f"""\
Emulated: {WORKERS} workers, {options.chunks} chunks of {options.chunk_ms:g} ms for each of them, replication 3, \
{options.iterations} iterations of {options.config}.

{table(rows, rows[0].seconds)}

Chunk times are emulated: a worker sleeps until its chunk has taken its time; gradients, coding, messages and steps are
real. *Per iteration* is the median time from the parameters to the gradient, without the first iteration, and where one
is killed of those after its death; *ratio* is to the loop with none slow; redundant work is computing time that did not
count. The slow worker has rank {SLOW}, the killed one {VICTIM}. The loop's ranks yield while they wait
(mpi_yield_when_idle), as they have to where there are fewer cores than ranks.

Above the {computing:g} ms that a worker's own chunks take, an iteration with none slow takes:
{overheads}.
"""


if __name__ == "__main__":
    sys.exit(main())
