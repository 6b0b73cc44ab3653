"""`psgc submit run.yaml`: the SLURM batch script of a run, or of an array of runs that sweeps over values of the YAML.

The job runs `psgc launch` over all of its nodes: mpirun, not srun, which has no fault tolerance. It is warned before
its time limit, writes a checkpoint, puts itself back into the queue, and goes on from there at its next start.
"""

import itertools
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from psgc import slurm
from psgc.config import Config, load
from psgc.errors import UserError
from psgc.mpirun import THREADS
from psgc.plan import make_plan
from psgc.reporting.files import write_text
from psgc.yaml_source import printable

PROGRAM = Path(sys.executable).with_name("psgc")  # a relative one is meant from where sbatch is called
MIN_WARNING = 15  # seconds: `psgc launch` keeps ten of them for itself
_WORD = "[A-Za-z0-9][A-Za-z0-9._+@,-]*"  # what needs no quotes in an #SBATCH line, which no shell reads
_OPTION = r"--[a-z][a-z-]*(=[^\s\"'\\#]+)?"
_TIME = r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d\d?))?(?::(?P<third>\d\d?))?"


@dataclass(frozen=True, slots=True)
class Job:
    """What a job asks of SLURM, checked. name: also of its log; warning: seconds before the time limit.

    options: further options for SLURM, such as --qos=long. Raises UserError for the first value that cannot be.
    """

    nodes: int
    ranks_per_node: int
    time: str
    name: str
    cpus_per_rank: int = 1
    gpus_per_rank: int = 0
    partition: str | None = None
    account: str | None = None
    warning: int = 60
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            least = {"gpus_per_rank": 0, "warning": MIN_WARNING}.get(field.name, 1)
            if isinstance(value, int) and not least <= value <= 65535:
                raise UserError(f"{option} {value}: expected a whole number from {least} to 65535")
            if field.name in ("name", "partition", "account") and value is not None and not re.fullmatch(_WORD, value):
                raise UserError(f"{option} {printable(value)}: expected letters, digits and . _ + @ , -")
        if self.ranks < 2:
            raise UserError(
                "--nodes 1 --ranks-per-node 1: expected 2 ranks or more, one to serve and the others to work"
            )
        if self.seconds() <= self.warning:
            raise UserError(
                f"--time {self.time}: expected more than the --warning of {self.warning} seconds before its end"
            )
        for option in self.options:
            if not re.fullmatch(_OPTION, option):
                raise UserError(f"--sbatch {printable(option)}: expected one option without blanks, such as --qos=long")

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def seconds(self) -> int:
        """The time limit. SLURM reads 90 as minutes, 90:00 as minutes and seconds, 1-12 as a day and 12 hours."""
        found = re.fullmatch(_TIME, self.time)
        if not found:
            raise UserError(
                f"--time {printable(self.time)}: expected hours:minutes:seconds or days-hours:minutes:seconds"
            )
        days, *parts = (int(part) if part else None for part in found.groups())
        units = [3600, 60, 1] if days is not None or parts[2] is not None else [60, 1, 0]
        return 86400 * (days or 0) + sum(unit * (part or 0) for unit, part in zip(units, parts, strict=True))

    def directives(self, log: str, array: str) -> list[str]:
        """The options of sbatch."""
        optional = {
            "--gpus-per-node": self.gpus_per_rank * self.ranks_per_node,
            "--partition": self.partition,
            "--account": self.account,
            "--array": array,
        }
        return [
            f"--job-name={self.name}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.ranks_per_node}",
            f"--cpus-per-task={self.cpus_per_rank}",
            f"--time={self.time}",
            *(f"{option}={value}" for option, value in optional.items() if value),
            f"--output={log}",
            "--open-mode=append",
            f"--signal=B:USR1@{self.warning}",
            "--requeue",
            *self.options,
        ]


def submit(
    config_path: str,
    job: Job,
    overrides: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    *,
    resume: bool = False,
    output: str | None = None,
    go: bool = False,
    written_by: Sequence[str] = ("psgc", "submit"),
) -> int:
    """Writes the batch script to `output` (default: the run directory's name with .sbatch) and, with `go`, submits it.

    sweeps: "optimizer.lr=0.1,0.3", every combination is a run with a directory of its own in the run directory.
    resume: the first start goes on from the newest checkpoint as well. Returns 0. Raises UserError for a wrong YAML,
    override or sweep, and for what SLURM refuses; RunFailed when SLURM is out of order.
    """
    config = load(config_path, overrides)
    points = sweep_points(sweeps, config.output)
    for point in points or [[]]:
        _check(load(config_path, [*overrides, *point]), job, point)
    script = Path(output or f"{config.output.rstrip('/')}.sbatch")
    text = batch_script(config_path, job, overrides, points, resume, written_by)
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        write_text(script, text)
    except OSError as error:
        raise UserError(f"{printable(str(script))}: cannot be written: {error.strerror}") from None
    runs = f"{len(points)} runs" if points else "a run"
    what = f"{runs} on {job.nodes} x {job.ranks_per_node} ranks"
    if not go:
        print(f"{script}: {what}; submit it with: {shlex.join(['sbatch', str(script)])}")
        return 0
    try:
        number = slurm.submit(script)
    except UserError as error:
        there = slurm.partitions() if job.partition else []
        if there and job.partition not in there:
            there_are = f"SLURM has no such partition, expected {', '.join(there)}"
            raise UserError(f"--partition {job.partition}: {there_are}") from None
        raise error
    log = f"{job.name}-{number}{'_*' if points else ''}.log"
    print(f"job {number}: {what}, as {script} says; it writes {log}")
    return 0


def sweep_points(sweeps: Sequence[str], output: str) -> list[list[str]]:
    """The overrides of each run of a sweep, its own directory below `output` among them; none for no sweep.

    >>> sweep_points(["seed=1,2"], "runs/a")
    [['seed=1', 'output=runs/a/0_seed=1'], ['seed=2', 'output=runs/a/1_seed=2']]
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        key, _, values = sweep.partition("=")
        key = key.strip()
        if key in axes or key == "output":
            reason = "every run of a sweep has its own" if key == "output" else "given twice"
            raise UserError(f"--sweep {printable(sweep)}: {printable(key)}: {reason}")
        axes[key] = [f"{key}={value}" for value in _split(values, sweep)]
    points = [list(point) for point in itertools.product(*axes.values())] if axes else []
    for index, point in enumerate(points):
        name = re.sub(r"[^A-Za-z0-9._=+-]+", "_", "_".join([str(index), *point]))
        point.append(f"output={yaml.safe_dump(f'{output}/{name[:100]}', width=10**6).splitlines()[0]}")
    return points


def _split(values: str, sweep: str) -> list[str]:
    """The texts of the values, which YAML takes apart: 1,[2, 3],'4,5' are three."""
    try:
        node = yaml.compose(f"[{values}]", Loader=yaml.SafeLoader) if values.isprintable() else None
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise UserError(f"--sweep {printable(sweep)}: expected key=value,value,... such as optimizer.lr=0.1,0.3")
    return [f"[{values}]"[item.start_mark.index : item.end_mark.index] for item in node.value]


def _check(config: Config, job: Job, point: Sequence[str]) -> None:
    """Refuse now what the ranks would refuse when the job starts at last."""
    try:
        make_plan(config.coding, config.schedule, job.ranks - 1, config.seed)
    except UserError as error:
        where = f"{' '.join(point)}: " if point else ""
        raise UserError(f"{where}{error}") from None


def batch_script(
    config_path: str,
    job: Job,
    overrides: Sequence[str],
    points: Sequence[Sequence[str]],
    resume: bool,
    written_by: Sequence[str],
) -> str:
    """The text of the script; written_by: the command that its first lines name."""
    log = "%x-%A_%a.log" if points else "%x-%j.log"
    array = f"0-{len(points) - 1}" if points else ""
    lines = ["#!/bin/bash", f"# Written by: {' '.join(shlex.join(written_by).split())}"]
    lines += [f"#SBATCH {directive}" for directive in job.directives(log, array)]
    place = ("" if PROGRAM.is_absolute() else '"$PWD"/') + shlex.quote(str(PROGRAM.parent))
    lines += ["", f'export PATH={place}:"$PATH"']
    lines += ["export " + " ".join(f"{name}={job.cpus_per_rank}" for name in THREADS), ""]
    if points:
        lines += ["case $SLURM_ARRAY_TASK_ID in"]
        lines += [f"  {i}) run=({_settings(point)}) ;;" for i, point in enumerate(points)]
        lines += ["esac", ""]
    lines += ["trap '' USR1 # SLURM's warning is for psgc launch"]
    again = "--resume" if resume else "${SLURM_RESTART_COUNT:+--resume}"
    launch = ["exec psgc launch", shlex.quote(config_path), f"-n {job.ranks}", _settings(overrides)]
    launch += ['"${run[@]}"' if points else "", f"--requeue {job.warning}", again]
    return "\n".join([*lines, f"{' '.join(filter(None, launch))}\n"])


def _settings(overrides: Sequence[str]) -> str:
    return " ".join(f"--set {shlex.quote(override)}" for override in overrides)


def job_name(config_path: str) -> str:
    """The name of a job by default: the YAML's, as far as SLURM takes it.

    >>> job_name("runs/my run.yaml")
    'my-run'
    """
    return re.sub("[^A-Za-z0-9._+@-]+", "-", Path(config_path).stem).lstrip("._+@-") or "psgc"
