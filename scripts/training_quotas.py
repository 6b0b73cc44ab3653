"""The part of scripts/bench_training.py whose workers are really slow: CPU quotas, in place of sleeping.

A slow worker is slow in everything: its messages, copies and waiting come out of its quota as well.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benching import OF_THE_PAPER, Run, train, train_with_allreduce
from cpu_quotas import CpuQuotas
from slowed_network import ROWS, WIDTH, make_rows

from psgc.data import write_dense
from psgc.errors import RunFailed

LOOP, DYNAMIC = "`Allreduce` loop", "`dynamic`"
PROGRAMS = {"loop": LOOP, "uncoded": "`uncoded`", "static": "`static`", "skipping": "`skipping`", "dynamic": DYNAMIC}
WORKERS, SLOW = 4, 2
SHARE, FACTOR = 0.35, 5.0  # of a core for each worker; how much less the slow one has
HALF_CYCLE = 2.0  # seconds
WARM = 3  # iterations that do not count: in the first the workers get their quotas
CYCLE_ITERATIONS = 3  # times as many where the share changes
DISTURBED, TRIES = 0.1, 5  # cores that others keep busy, from which a run is repeated; how often it is tried
CONFIG = """\
problem: {{python: "slowed_network:Network", options: {{groups: "{groups}", first: 0}}}}
data: {{path: {data}}}
optimizer: {{kind: sgd, lr: 0.01}}
iterations: 1
checkpoint: {{every: 0}}
output: out
"""
BUSY = "import sys; from cpu_quotas import join; join(*sys.argv[1:])\nwhile True: pass"


@dataclass(frozen=True)
class Situation:
    """share: of a core that the slow worker has, in the mean; how: steady, beside a busy process, or now all and now
    a fifth."""

    text: str
    share: float
    how: str = "steady"

    @property
    def limit(self) -> float:
        """What all work takes that is divided without end, over what it takes when nobody is slow."""
        return WORKERS * SHARE / ((WORKERS - 1) * SHARE + self.share)


SITUATIONS = {
    "none": Situation("none slow", SHARE),
    "slow": Situation(f"one {FACTOR:g} x slower", SHARE / FACTOR),
    "neighbour": Situation("one with a busy neighbour", SHARE / 2, "beside"),
    "cycle": Situation(f"one {FACTOR:g} x slower now and then", (SHARE + SHARE / FACTOR) / 2, "cycle"),
}


@dataclass(frozen=True)
class Took:
    """seconds: per iteration; redundant: share of the computing time that did not count; loss: the final one; others:
    cores that processes outside of the benchmark kept busy meanwhile."""

    seconds: float
    redundant: float
    loss: float
    others: float = 0.0


Rows = Mapping[tuple[str, str], Sequence[Took]]  # by situation and program: one of each round


def measure(situations: Sequence[str], programs: Sequence[str], chunks: int, iterations: int, rounds: int) -> Rows:
    """These programs (PROGRAMS) in these situations, in turns. Raises RunFailed."""
    found: dict[tuple[str, str], list[Took]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_dense(f"{folder}/data.npz", *make_rows(ROWS * WORKERS * chunks))
        for _ in range(rounds):
            for situation in situations:
                for program in [PROGRAMS[name] for name in programs]:
                    took = undisturbed(Path(folder), SITUATIONS[situation], program, chunks, iterations)
                    found.setdefault((situation, program), []).append(took)
                    more = f"{1e3 * took.seconds:.1f} ms, others on {took.others:.2f} cores"
                    print(f"{SITUATIONS[situation].text}, {program}: {more}", flush=True)
    return found


def undisturbed(*arguments: Any) -> Took:
    """A run, again as long as other processes disturb it; in the end that which they disturbed least."""
    tries: list[Took] = []
    while len(tries) < TRIES and (not tries or tries[-1].others > DISTURBED):
        before = _processor_times()
        tries.append(_measure(*arguments))
        tries[-1] = replace(tries[-1], others=_others(before, _processor_times()))
    return min(tries, key=lambda took: took.others)


def _processor_times() -> tuple[float, float, float]:
    """The time, the busy seconds of all cores, and those of this process and of what it has waited for."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle, and waiting for disks
    return time.monotonic(), busy, sum(os.times()[:4])


def _others(before: Sequence[float], after: Sequence[float]) -> float:
    """Cores that other processes kept busy between two looks."""
    seconds, busy, own = (later - earlier for earlier, later in zip(before, after, strict=True))
    return max(0.0, busy - own) / seconds


def _measure(folder: Path, situation: Situation, program: str, chunks: int, iterations: int) -> Took:
    settings = {
        "iterations": iterations * (CYCLE_ITERATIONS if situation.how == "cycle" else 1) + WARM,
        "coding.chunks_per_worker": chunks,
        "coding.replication": 3,
        "problem.options.first": int(program == LOOP),
    }
    if program != LOOP:
        settings |= {"schedule": program.strip("`"), **OF_THE_PAPER}
    with tempfile.TemporaryDirectory(dir=folder) as output, slowed(situation) as groups:
        config = folder / "run.yaml"
        config.write_text(CONFIG.format(groups=groups, data=folder / "data.npz"))
        launch = train_with_allreduce if program == LOOP else train
        run = launch(config, Path(output, "run"), settings, WORKERS)
    if run is None:
        raise RunFailed(f"{situation.text}, {program}: the run failed")
    return took(run, situation)


@contextmanager
def slowed(situation: Situation) -> Iterator[Path]:
    """The folder of the workers' groups, while the slow one has what the situation says."""
    steady = situation.share if situation.how == "steady" else SHARE
    shares = {f"worker{worker}": steady if worker == SLOW else SHARE for worker in range(1, WORKERS + 1)}
    with ExitStack() as stack:
        quotas = stack.enter_context(CpuQuotas(f"psgc-bench-{os.getpid()}", shares))
        if situation.how == "beside":
            command = [sys.executable, "-c", BUSY, str(quotas.folder), f"worker{SLOW}"]
            busy = subprocess.Popen(command, cwd=Path(__file__).parent)
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        if situation.how == "cycle":
            stack.enter_context(_in_turns(quotas))
        yield quotas.folder


@contextmanager
def _in_turns(quotas: CpuQuotas) -> Iterator[None]:
    """As a processor that gets too hot: the slow worker has its whole share and a part of it in turns."""
    over = threading.Event()

    def change() -> None:
        share = SHARE
        while not over.wait(HALF_CYCLE):
            share = SHARE / FACTOR if share == SHARE else SHARE
            quotas.change(f"worker{SLOW}", share)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def took(run: Run, situation: Situation) -> Took:
    """What a run comes to: the median, of paces that change the mean."""
    summarise = statistics.mean if situation.how == "cycle" else statistics.median
    loss = run.summary.get("final_loss", run.rows[-1]["loss"])
    return Took(float(summarise(run.seconds(WARM))), run.summary.get("work_thrown_away", 0.0), loss)


def table(rows: Rows) -> str:
    """The rows as Markdown, each over the loop with none slow, and over the limit; medians of the rounds."""
    lines = ["| workers | program | per iteration | ratio | over the limit | redundant work | final loss |"]
    lines.append("|---|---|---|---|---|---|---|")
    loops = rows.get(("none", LOOP))
    for (name, program), tooks in rows.items():
        situation = SITUATIONS[name]
        seconds, redundant = (statistics.median(getattr(t, what) for t in tooks) for what in ("seconds", "redundant"))
        cells = [situation.text, program, f"{1e3 * seconds:.0f} ms", "", ""]
        if loops:  # in one round the machine is as fast as it is
            ratio = statistics.median(t.seconds / loop.seconds for t, loop in zip(tooks, loops, strict=True))
            cells[-2:] = [f"{ratio:.2f}", f"{ratio / situation.limit:.2f}"]
        lines.append(f"| {' | '.join([*cells, f'{100 * redundant:.1f} %', f'{tooks[0].loss:.10f}'])} |")
    return "\n".join(lines)


def report(rows: Rows, chunks: int, iterations: int) -> str:
    """The Markdown text: what ran, the table, how to read it."""
    names = dict.fromkeys(name for name, _ in rows)
    limits = ", ".join(f"{SITUATIONS[name].text} {SITUATIONS[name].limit:.3f}" for name in names)
    rounds = len(next(iter(rows.values())))
    most = max(took.others for tooks in rows.values() for took in tooks)
    return f"""\
Slowness by CPU quotas: {WORKERS} workers, {chunks} chunks of {ROWS} rows for each of them (matrix products of width
{WIDTH}), replication 3, {iterations} iterations in each of {rounds} rounds.

{table(rows)}

A worker has {SHARE} of a core; the server has no quota. The slow worker has {SHARE / FACTOR:.2f}, shares its {SHARE}
with a busy process, or has {SHARE} and {SHARE / FACTOR:.2f} in turns of {HALF_CYCLE:g} s. *Per iteration* is the
median, with such turns the mean; *ratio* is to the loop of the same round with none slow. The limit is what all work
takes that is divided without end by the processor time of all workers, over that loop: {limits}.
Other processes kept at most {most:.2f} cores busy; with more than {DISTURBED:g} a run was repeated.
"""
