"""What a step takes with DistributedDataParallel over gloo, torchft and psgc.torch: one table, every row a real run.

    python scripts/bench_torch.py [--rows perceptron defaults ...] [--programs ddp torchft psgc dedicated] [--steps 40]
        [--batch 10240] [--turns] [--out runs/bench/torch.md]

The same model, data, batches and optimizer (torch_tasks.py); losses that differ by more than 1e-4 are an error.

    perceptron         669,706 parameters, 4 workers, each with 0.35 of a core, chunks and micro-batches tried out
    perceptron-slow    the same, and one worker has 0.07 of a core
    perceptron-killed  the same with 0.35 for all, and one worker is killed half-way
    defaults           the perceptron with the defaults of psgc.torch.init; a rank of DDP computes its examples at once
    defaults-slow      the same, and one worker has 0.07 of a core
    alone              the same in one process, with batches of 8,192, and plain torch
    small              85,002 parameters, batches of 256, defaults, in one process, and plain torch
    small-workers      the same with 4 workers; the ratio is to plain torch in one process
    transformer        characters of functions of Python's standard library, of very different length, padded for each
                       micro-batch; 2 workers with a core each, nobody slow

A share of a core is a CPU quota (cpu_quotas.py), or where there are none, or with --turns, the worker is stopped and
continued in turns (stop_and_go.py). The examples of a step are dealt out to DDP's ranks as DistributedSampler does it,
and to those of torchft, of which each is a replica group. torchft is left out where it is not installed, and in one
process. The first worker of psgc is the server as well, within its quota. A dedicated server and torchft's lighthouse
come on top of the workers and have no quota.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benching import publish
from cpu_quotas import CpuQuotas, has_quotas
from stop_and_go import StopAndGo

from psgc.errors import RunFailed, UserError
from psgc.machine import THREADS

DDP, TORCHFT, PSGC, DEDICATED = "DDP, gloo", "torchft, gloo", "psgc", "psgc, dedicated server"
PROGRAMS = {"ddp": DDP, "torchft": TORCHFT, "psgc": PSGC, "dedicated": DEDICATED}
AGREE = 1e-4  # relative difference of losses
LIMIT, AFTER_FAILURE = 300.0, 60.0  # seconds of a run, and of what is left of it after a process has failed
SHARE, SLOW_SHARE, SLOW, VICTIM = 0.35, 0.07, 2, 3  # of a core; workers, from 1 on
WARM = 3  # steps that do not count
ADVICE = "pip install '.[torch]'"
NOT_INSTALLED = "not installed: pip install torchft==0.2.0"


@dataclass(frozen=True)
class Setting:
    """A pair of rows. task: of torch_tasks.TASKS; shares: of a core for each worker, None: nobody is held back;
    workers: 1 for one process; batch: examples of a step, None: --batch; undisturbed: the setting with nobody slow;
    steps: relative to --steps."""

    task: str
    text: str
    shares: tuple[float, ...] | None
    workers: int = 4
    batch: int | None = None
    killed: bool = False
    undisturbed: str = "perceptron"
    steps: float = 1.0


EQUAL = (SHARE,) * 4
ONE_SLOW = (*EQUAL[: SLOW - 1], SLOW_SHARE, *EQUAL[SLOW:])
SETTINGS = {
    "perceptron": Setting("perceptron", "perceptron, none slow", EQUAL),
    "perceptron-slow": Setting("perceptron", "perceptron, one 5 x slower", ONE_SLOW, steps=0.5),
    "perceptron-killed": Setting("perceptron", "perceptron, one killed", EQUAL, killed=True),
    "defaults": Setting("defaults", "defaults, none slow", EQUAL, undisturbed="defaults"),
    "defaults-slow": Setting("defaults", "defaults, one 5 x slower", ONE_SLOW, undisturbed="defaults", steps=0.5),
    "alone": Setting("defaults", "defaults, one process", None, 1, 8192, undisturbed="alone"),
    "small": Setting("small", "small, one process", None, 1, 256, undisturbed="small", steps=10),
    "small-workers": Setting("small", "small, 4 workers", None, 4, 256, undisturbed="small", steps=5),
    "transformer": Setting("transformer", "transformer, none slow", None, 2, 32, undisturbed="transformer", steps=0.8),
}


@dataclass(frozen=True)
class Row:
    """What a run came to. seconds: of a step in the median, or what to say in its place; losses: of each step."""

    seconds: float | str
    losses: tuple[float, ...] = ()


Rows = dict[tuple[str, str], Row]


def main() -> int:
    options = _options()
    if importlib.util.find_spec("torch") is None:
        print(f"bench_torch: PyTorch is not installed: {ADVICE}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the with blocks clean up
    rows: Rows = {}
    how = "stopped and continued in turns" if options.turns or not has_quotas() else "CPU quotas"
    try:
        for name in options.rows:
            steps = max(WARM + 1, 2 * round(options.steps * SETTINGS[name].steps / 2))  # an epoch has two
            for program in (PROGRAMS[word] for word in options.programs):
                if program in (TORCHFT, DEDICATED) and SETTINGS[name].workers == 1:
                    continue
                rows[name, program] = measure(SETTINGS[name], program, steps, options.batch, how == "CPU quotas")
                print(line(rows, name, program), flush=True)
    except (UserError, RunFailed) as error:
        print(f"bench_torch: {SETTINGS[name].text}, {program}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    publish(report(rows, how), options.out)
    if wrong := disagreeing(rows):
        print(f"bench_torch: losses differ: {wrong}", file=sys.stderr)
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--steps", type=int, default=40, help="of the perceptron with nobody slow")
    parser.add_argument("--batch", type=int, default=10240, help="examples of a step of the perceptron")
    parser.add_argument("--turns", action="store_true", help="stop and continue workers even where there are quotas")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/torch.md"), help="where the table goes")
    return parser.parse_args()


def measure(setting: Setting, program: str, steps: int, batch: int, quotas: bool) -> Row:
    """One run. Raises UserError: no torch; RunFailed: it fails, takes too long, or leaves nothing."""
    if program == TORCHFT and importlib.util.find_spec("torchft") is None:
        return Row(NOT_INSTALLED)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options: dict[str, Any] = {"task": setting.task, "steps": steps, "batch": setting.batch or batch}
        options |= {"folder": str(folder), "groups": ""}
        options["first"] = int(program == PSGC and setting.workers > 1)  # the worker that is rank 0 of MPI
        options["kill"] = [VICTIM, steps // 2] if setting.killed else None
        if setting.shares:
            shares = {f"worker{number}": share for number, share in enumerate(setting.shares, 1)}
            name = f"psgc-bench-{os.getpid()}"
            groups = stack.enter_context(CpuQuotas(name, shares) if quotas else StopAndGo(shares))
            options["groups"] = str(groups.folder)
        environ = {}
        if program == TORCHFT:
            os.environ["RUST_LOG"] = "error"
            from torchft.coordination import LighthouseServer

            lighthouse = LighthouseServer("[::]:0", setting.workers - setting.killed, join_timeout_ms=60_000)
            stack.callback(lighthouse.shutdown)
            environ["TORCHFT_LIGHTHOUSE"] = f"http://localhost:{lighthouse.address().rpartition(':')[2]}"
        stack.callback(kill_all, processes := start(program, setting.workers, options, environ))
        codes = wait(processes)
        errors = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("stderr*")))
        if any(codes) and setting.killed and program in (DDP, TORCHFT):  # torchft 0.2.0: by an assertion in its ddp.py
            return Row("ends")
        if any(codes) or not (folder / "result.json").exists():
            raise RunFailed(f"the run failed with exit code {max(codes)}: {' '.join(errors.split())[-500:]}")
        result = json.loads((folder / "result.json").read_text())
    first = steps // 2 + 1 if setting.killed else WARM  # what a death costs is measured after it
    return Row(statistics.median(result["seconds"][first:]), tuple(result["losses"]))


def start(
    program: str, workers: int, options: dict[str, Any], more: Mapping[str, str]
) -> list["subprocess.Popen[bytes]"]:
    """The processes of a run: ranks of DDP or torchft, or psgc launch. more: for their environment."""
    script = str(Path(__file__).with_name("torch_ranks.py"))
    environ = {**os.environ, **dict.fromkeys(THREADS, "1"), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(workers)}
    environ |= more
    if program in (DDP, TORCHFT):
        commands = [[sys.executable, script, "ddp" if program == DDP else "torchft"]] * workers
    elif workers == 1:
        commands = [[sys.executable, script, "psgc"]]
    else:
        ranks = [str(workers)] if program == PSGC else [str(workers + 1), "--dedicated-server"]
        launch = ["-P", "-m", "psgc", "launch", script, "-n", *ranks]
        commands = [[sys.executable, *launch, "--", "psgc"]]
    started = []
    for rank, command in enumerate(commands):
        with open(Path(options["folder"], f"stderr{rank}"), "wb") as stream:
            started.append(
                subprocess.Popen(
                    [*command, json.dumps(options)], env={**environ, "RANK": str(rank)},
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                )
            )  # fmt: skip
    return started


def wait(processes: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
    """The exit codes of all. Some time after the first failure the rest is killed. Raises RunFailed after LIMIT s."""
    end = time.monotonic() + LIMIT
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            end = min(end, time.monotonic() + AFTER_FAILURE)
        if time.monotonic() > end:
            if not any(process.returncode for process in processes):
                raise RunFailed(f"it took more than {LIMIT:g} s")
            kill_all(processes)
        time.sleep(0.05)
    return [process.returncode for process in processes]


def kill_all(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """What is left of a run; psgc launch takes its ranks along."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def line(rows: Rows, name: str, program: str) -> str:
    """A line of the table, as Markdown. The ratio is to DDP with nobody slow."""
    row, reference = rows[name, program], rows.get((SETTINGS[name].undisturbed, DDP))
    cells = [SETTINGS[name].text, "torch" if program == DDP and SETTINGS[name].workers == 1 else program]
    if isinstance(row.seconds, str):
        return f"| {' | '.join([*cells, row.seconds, '', ''])} |"
    ratio = f"{row.seconds / reference.seconds:.2f}" if reference and isinstance(reference.seconds, float) else ""
    return f"| {' | '.join([*cells, f'{1e3 * row.seconds:.0f} ms', ratio, f'{row.losses[-1]:.5f}'])} |"


def disagreeing(rows: Rows) -> str:
    """The first step in which the programs' losses of a setting differ, in words; empty when they agree."""
    for name in dict.fromkeys(name for name, _ in rows):
        where = SETTINGS[name].undisturbed if SETTINGS[name].killed else name  # DDP has ended
        for program in TORCHFT, PSGC, DEDICATED:
            pair = (rows.get((where, DDP)), rows.get((name, program)))
            losses = [row.losses if row else () for row in pair]
            for step, (ddp, other) in enumerate(zip(*losses, strict=False)):
                if not abs(ddp - other) <= AGREE * abs(ddp):
                    return f"{SETTINGS[name].text}, step {step}: {ddp!r} ({DDP}), {other!r} ({program})"
    return ""


def report(rows: Rows, how: str) -> str:
    """The table as Markdown, and how to read it."""
    lines = ["| run | program | per step | ratio | last loss |", "|---|---|---|---|---|"]
    lines += [line(rows, name, program) for name, program in rows]
    table = "\n".join(lines)
    return f"""\
PyTorch {importlib.metadata.version("torch")}; slow processors: {how}.

{table}

*Per step* is the median, without the first {WARM} steps, with a death that of the steps after it; *ratio* is to DDP
with none slow.
"""


if __name__ == "__main__":
    sys.exit(main())
