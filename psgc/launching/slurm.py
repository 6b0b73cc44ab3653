"""SLURM: the batch script of a run or of an array of runs, and the commands to submit it and to requeue this job.

The script has `psgc launch` run over all nodes of the job, since srun has no fault tolerance.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from psgc.errors import RunFailed, UserError
from psgc.launching.script import Program
from psgc.machine import THREADS
from psgc.yaml_source import printable

_BESIDE = Path(sys.executable).with_name("psgc")
PROGRAM = _BESIDE if _BESIDE.exists() else Path(shutil.which("psgc") or _BESIDE)  # elsewhere after pip install --user
MIN_WARNING = 15  # seconds, of which `psgc launch` reserves ten
_WORD = "[A-Za-z0-9][A-Za-z0-9._+@,-]*"  # needs no quotes in an #SBATCH line, which no shell reads
_OPTION = r"--[a-z][a-z-]*(=[^\s\"'\\#]+)?"
_LOCAL = r"([A-Za-z0-9._/+@=,-]|\$\w+|\$\{\w+\})+"  # may contain a variable, so it is written in double quotes
_TIME = r"(?:([0-9]{1,5})-)?([0-9]{1,7})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?"  # days-first:second:third
# Options of sbatch that the script sets, or that would contradict it.
_OWN = (
    "--job-name", "--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node", "--time",
    "--partition", "--account", "--array", "--output", "--signal", "--open-mode", "--requeue", "--no-requeue",
)  # fmt: skip
CLIENT_SECONDS = 30.0  # clients retry for up to a minute where SLURM does not answer
_OUT_OF_ORDER = r"[Uu]nable to contact|authentication|[Mm]unge|timed out|temporarily|Zero Bytes|configuration file"
_NOISE = r"^\w+: (?:error|fatal): |Batch job submission failed: |^sbatch: "


@dataclass(frozen=True, slots=True)
class Job:
    """What a job asks of SLURM; warning: in seconds. Raises UserError for the first invalid value."""

    nodes: int
    ranks_per_node: int
    time: str
    name: str
    cpus_per_rank: int = 1
    gpus_per_rank: int = 0
    partition: str | None = None
    account: str | None = None
    warning: int = 60
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            least = {"gpus_per_rank": 0, "warning": MIN_WARNING}.get(field.name, 1)
            if isinstance(value, int) and not least <= value <= 65535:
                raise UserError(f"{option} {value}: expected a whole number from {least} to 65535")
            if field.name in ("name", "partition", "account") and value is not None and not re.fullmatch(_WORD, value):
                raise UserError(f"{option} {printable(value)}: expected letters, digits and . _ + @ , -")
        if self.ranks < 2:
            raise UserError("--nodes 1 --ranks-per-node 1: expected at least 2 ranks: a server and at least one worker")
        if self.seconds() <= self.warning:
            raise UserError(f"--time {self.time}: expected more than the {self.warning} seconds of --warning")
        for option in self.options:
            if not re.fullmatch(_OPTION, option):
                raise UserError(f"--sbatch {printable(option)}: expected one option without blanks, such as --qos=long")
            name = option.partition("=")[0]
            own = next((own for own in _OWN if own.startswith(name)), None)  # sbatch takes abbreviations
            if own:
                raise UserError(f"--sbatch {printable(option)}: {own} is set by psgc submit, see psgc submit --help")

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def seconds(self) -> int:
        """The time limit. SLURM reads 90 as 90 minutes, 90:00 as minutes:seconds, 1-12 as a day and 12 hours."""
        found = re.fullmatch(_TIME, self.time)
        if not found:
            form = "hours:minutes:seconds or days-hours:minutes:seconds"
            raise UserError(f"--time {printable(self.time)}: expected {form}")
        days, *parts = (int(part) if part else None for part in found.groups())
        units = [3600, 60, 1] if days is not None or parts[2] is not None else [60, 1, 0]
        return 86400 * (days or 0) + sum(unit * (part or 0) for unit, part in zip(units, parts, strict=True))

    def directives(self, log: str, array: str) -> list[str]:
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


def batch_script(
    program: Program,
    job: Job,
    points: Sequence[Sequence[str]],
    local_dir: str | None,
    data: Mapping[str, str],
    written_by: Sequence[str],
) -> str:
    """The text of the script. Raises UserError for an invalid local_dir.

    points: the overrides of each run of an array; data: the files that each node copies to `local_dir` first, by their
    YAML keys; the others: as in `submit`.
    """
    log = "%x-%A_%a.log" if points else "%x-%j.log"
    array = f"0-{len(points) - 1}" if points else ""
    lines = ["#!/bin/bash", f"# Written by: {' '.join(shlex.join(written_by).split())}"]
    lines += [f"#SBATCH {directive}" for directive in job.directives(log, array)]
    # the examples have a relative one, which is relative to where sbatch is called
    place = ("" if PROGRAM.is_absolute() else '"$PWD"/') + shlex.quote(str(PROGRAM.parent))
    lines += ["", f'export PATH={place}:"$PATH"']
    lines += ["export " + " ".join(f"{name}={job.cpus_per_rank}" for name in THREADS), ""]
    if points:
        lines += ["case $SLURM_ARRAY_TASK_ID in"]
        lines += [f"  {i}) run=({_settings(point)}) ;;" for i, point in enumerate(points)]
        lines += ["esac", ""]
    local = {key: f"$local-{key.replace('.', '-')}{_suffix(path)}" for key, path in data.items()}
    if local_dir is not None:
        if not re.fullmatch(_LOCAL, local_dir, re.ASCII):
            raise UserError(f"--local-dir {printable(local_dir)}: expected a path without blanks, such as $TMPDIR")
        lines += ["set -eu", f'local="{local_dir}/psgc-$SLURM_JOB_ID"']
        lines += [f'sbcast --force {shlex.quote(path)} "{local[key]}"' for key, path in data.items()]
        lines += [""]
    lines += ["trap '' USR1 # SLURM's warning is for psgc launch"]
    again = "--resume" if program.resume else "${SLURM_RESTART_COUNT:+--resume}"
    launch = ["exec psgc launch", shlex.quote(program.path), f"-n {job.ranks}", _settings(program.overrides)]
    launch += [f"--set \"{key}='{copy}'\"" for key, copy in local.items()]
    launch += ['"${run[@]}"' if points else "", f"--requeue {job.warning}", again]
    launch += [shlex.quote(option) for option in program.mpirun]
    launch += [f"-- {shlex.join(program.after)}"] if program.after else []
    return "\n".join([*lines, f"{' '.join(filter(None, launch))}\n"])


def _settings(overrides: Sequence[str]) -> str:
    return " ".join(f"--set {shlex.quote(override)}" for override in overrides)


def _suffix(path: str) -> str:
    suffix = Path(path).suffix  # says how the file is read
    return suffix if re.fullmatch("[.][A-Za-z0-9]+", suffix) else ""


def job_name(config_path: str) -> str:
    """The default name of a job: that of the YAML file or script, without what SLURM does not accept.

    >>> job_name("runs/my run.yaml")
    'my-run'
    """
    return re.sub("[^A-Za-z0-9._+@-]+", "-", Path(config_path).stem).lstrip("._+@-") or "psgc"


def submit(script: Path) -> str:
    """Submits a batch script. Returns the number of its job. Raises as `_client`."""
    said = _client(["sbatch", "--parsable", str(script)], f"SLURM refuses {printable(str(script))}")
    return said.strip().partition(";")[0]


def job_id(environ: Mapping[str, str]) -> str | None:
    """The job of this process: 12, in a job array 12_3, None outside of SLURM."""
    array = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return "_".join(map(str, array)) if all(array) else environ.get("SLURM_JOB_ID")


def requeue(job: str) -> bool:
    """Requeues this job unless it is no longer running. Returns whether it did. Raises as `_client`.

    (`scontrol requeue` would restart a cancelled job.)
    """
    failure = f"SLURM does not requeue job {job}"
    if _client(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], failure).strip() != "RUNNING":
        return False
    _client(["scontrol", "requeue", job], failure)
    return True


def _client(command: Sequence[str], failure: str) -> str:
    """The output of a SLURM command. Raises UserError for what SLURM refuses, RunFailed when SLURM does not work."""
    environ = {**os.environ, "LC_ALL": "C"}
    pipes: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        finished: subprocess.CompletedProcess[str] = subprocess.run(
            command, env=environ, timeout=CLIENT_SECONDS, **pipes
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found on the PATH, expected SLURM's commands") from None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}, expected a working SLURM") from None
    except subprocess.TimeoutExpired:
        raise RunFailed(f"SLURM: no answer to {command[0]} within {CLIENT_SECONDS:.0f} s; is slurmctld up?") from None
    if finished.returncode == 0:
        return finished.stdout
    reasons = [re.sub(_NOISE, "", line).strip() for line in finished.stderr.splitlines()]
    reason = "; ".join(dict.fromkeys(filter(None, reasons))) or f"{command[0]} exited with {finished.returncode}"
    if re.search(_OUT_OF_ORDER, reason):
        raise RunFailed(f"SLURM does not work: {printable(reason)}")
    raise UserError(f"{failure}: {printable(reason)}")
