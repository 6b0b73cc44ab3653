"""A job's requests to its scheduler, its batch script, and the base class of schedulers: what differs between them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from psgc.errors import RunFailed, UserError
from psgc.launching.script import Program
from psgc.machine import THREADS
from psgc.yaml_source import printable

AGAIN = "PSGC_AGAIN"  # the first job, in the environment of a job that has run before or follows another one
MIN_WARNING = 15  # seconds, of which `psgc launch` reserves ten
_WORD = "[A-Za-z0-9][A-Za-z0-9._+@,-]*"  # needs no quotes; directives are not read by a shell
VALUE = r"[^\s\"'\\#]+"
_TIME = r"(?:([0-9]{1,5})-)?([0-9]{1,7})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?"  # days-first:second:third
CLIENT_SECONDS = 30.0  # clients retry for up to a minute when their scheduler does not answer
_OUT_OF_ORDER = (
    r"[Uu]nable to contact|authentication|[Mm]unge|timed out|temporarily|Zero Bytes|configuration file"  # SLURM
    r"|[Cc]annot connect|[Cc]onnection refused|LSF is down|LSF library call|lsf\.conf"
)
_NOISE = r"^\w+: (?:error|fatal): |Batch job submission failed: |^(?:sbatch|qsub|qstat): "


@dataclass(frozen=True, slots=True)
class Job:
    """A job's requests to its scheduler. Raises UserError for the first invalid value."""

    scheduler: "Scheduler"
    nodes: int
    ranks_per_node: int
    time: str  # the time limit, such as 2:00:00
    name: str
    cpus_per_rank: int = 1
    gpus_per_rank: int = 0
    partition: str | None = None
    account: str | None = None
    warning: int = 60  # seconds before the time limit at which the job is warned
    options: Sequence[str] = ()  # further options, as the scheduler writes them

    def __post_init__(self) -> None:
        for field in fields(self):
            value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            least = {"gpus_per_rank": 0, "warning": MIN_WARNING}.get(field.name, 1)
            if isinstance(value, int) and not least <= value <= 65535:
                raise UserError(f"{option} {value}: expected a whole number from {least} to 65535")
            if field.name in ("name", "partition", "account") and value is not None and not re.fullmatch(_WORD, value):
                raise UserError(f"{option} {printable(value)}: expected letters, digits and . _ + @ , -")
        if self.limit() <= self.warned():
            raise UserError(f"--time {self.time}: expected more than the {self.warned()} seconds of --warning")
        for option in self.options:
            self.scheduler.check(option)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def cpus_per_node(self) -> int:
        return self.ranks_per_node * self.cpus_per_rank

    @property
    def gpus_per_node(self) -> int:
        return self.ranks_per_node * self.gpus_per_rank

    def limit(self) -> int:
        """The time limit in seconds, as the scheduler rounds it."""
        return self.scheduler.rounded(self.seconds())

    def warned(self) -> int:
        """Seconds before the time limit at which the job is warned, as the scheduler rounds them."""
        return self.scheduler.rounded(self.warning)

    def seconds(self) -> int:
        """The time limit in seconds, read as SLURM does: 90 is 90 minutes, 90:00 minutes:seconds, 1-12 days-hours."""
        found = re.fullmatch(_TIME, self.time)
        if not found:
            form = "hours:minutes:seconds or days-hours:minutes:seconds"
            raise UserError(f"--time {printable(self.time)}: expected {form}")
        days, *parts = (int(part) if part else None for part in found.groups())
        units = [3600, 60, 1] if days is not None or parts[2] is not None else [60, 1, 0]
        return 86400 * (days or 0) + sum(unit * (part or 0) for unit, part in zip(units, parts, strict=True))


class Scheduler(ABC):
    """The differences between schedulers."""

    title: ClassVar[str]  # the name of the scheduler
    suffix: ClassVar[str]  # the suffix of its scripts
    prefix: ClassVar[str]  # the beginning of a directive
    commands: ClassVar[tuple[str, ...]]  # its commands; the first one submits
    index: ClassVar[str]  # the number of this run in a sweep, from 0, in shell
    own: ClassVar[tuple[str, ...]]  # options that the script sets, or that would contradict it
    form: ClassVar[str] = rf"-[A-Za-z_]+( {VALUE})?"  # a pattern for other options
    example: ClassVar[str]  # another option
    hosts: ClassVar[str] = '--host "$hosts"'  # arguments of `psgc launch`, in shell; see `_find_hosts`
    reads_stdin: ClassVar[bool] = False  # whether the command that submits reads the script from stdin

    @abstractmethod
    def directives(self, job: Job, num_runs: int) -> list[str]:
        """The directives of the script. num_runs: number of runs of a sweep; 0 without a sweep."""

    @abstractmethod
    def begin(self, job: Job, num_runs: int, script: Path) -> list[str]:
        """The first commands of the script."""

    def launch(self, job: Job) -> str:
        """The beginning of the last command, in shell."""
        return "exec psgc launch"

    def submit_command(self, script: Path, num_runs: int) -> list[str]:
        return [self.commands[0], str(script)]

    @abstractmethod
    def log(self, name: str, number: str, num_runs: int) -> str:
        """The log file of a job, or with a star of an array. number: the job's, or a shell variable with it.

        num_runs: as in `directives`
        """

    @abstractmethod
    def job_id(self, environ: Mapping[str, str]) -> str | None:
        """The job of this process; None outside of a job."""

    def first_job(self, environ: Mapping[str, str]) -> str:
        """The job that was submitted first, of those that run what this process's job runs."""
        return self.job_id(environ) or ""

    def has_run_before(self, environ: Mapping[str, str]) -> bool:
        """Whether the job of this process is started once more, or goes on after another one."""
        return bool(environ.get(AGAIN))

    @abstractmethod
    def requeue(self, job: str) -> str:
        """Requeue this job if it is still running; a cancelled job must not start again.

        Returns what was done, or an empty text. Raises as `client`.
        """

    def rounded(self, seconds: int) -> int:
        """The shortest time that the scheduler supports and that is not shorter."""
        return seconds

    def check(self, option: str) -> None:
        """Raises UserError unless the script may have this further option."""
        if not re.fullmatch(self.form, option):
            raise UserError(f"--option {printable(option)}: expected {self.commands[0]}'s, such as {self.example}")
        if own := next((own for own in self.own if self._is(own, option)), None):
            raise UserError(f"--option {printable(option)}: {own} is set by psgc submit, see psgc submit --help")

    def _is(self, own: str, option: str) -> bool:
        return option == own or option.startswith(own if " " in own else f"{own} ")

    def by_hand(self, script: Path, num_runs: int) -> str:
        """The command that submits the script, as text."""
        *command, last = map(shlex.quote, self.submit_command(script, num_runs))
        return " ".join([*command, *(["<"] if self.reads_stdin else []), last])

    def submit(self, script: Path, num_runs: int) -> str:
        """Submit a batch script. Returns the number of its job. Raises as `client`."""
        command = self.submit_command(script, num_runs)
        stdin = Path(command.pop()) if self.reads_stdin else None
        said = self.client(command, f"{self.title} refuses {printable(str(script))}", stdin)
        if not (number := re.search("[0-9]+", said)):
            raise RunFailed(f"{command[0]} named no job: {printable(said.strip())}")
        return number[0]

    def client(self, command: Sequence[str], failure: str, stdin: Path | None = None) -> str:
        """The output of a command. Raises UserError when the scheduler refuses it, RunFailed when it does not work."""
        environ = {**os.environ, "LC_ALL": "C"}
        with ExitStack() as files:
            source = subprocess.DEVNULL if stdin is None else files.enter_context(stdin.open("rb"))
            pipes: Any = {"stdin": source, "capture_output": True, "text": True, "errors": "replace"}
            try:
                finished: subprocess.CompletedProcess[str] = subprocess.run(
                    command, env=environ, timeout=CLIENT_SECONDS, **pipes
                )
            except FileNotFoundError:
                expected = f"expected {self.title}'s commands"
                raise UserError(f"{command[0]}: not found on the PATH, {expected}") from None
            except OSError as error:
                raise UserError(f"{command[0]}: {error.strerror}, expected a working {self.title}") from None
            except subprocess.TimeoutExpired:
                late = f"no answer to {command[0]} within {CLIENT_SECONDS:.0f} s; is its server up?"
                raise RunFailed(f"{self.title}: {late}") from None
        if finished.returncode == 0:
            return finished.stdout
        reasons = [re.sub(_NOISE, "", line).strip() for line in finished.stderr.splitlines()]
        reason = "; ".join(dict.fromkeys(filter(None, reasons))) or f"{command[0]} exited with {finished.returncode}"
        if re.search(_OUT_OF_ORDER, reason):
            raise RunFailed(f"{self.title} does not work: {printable(reason)}")
        raise UserError(f"{failure}: {printable(reason)}")

    def _append_to_log(self, job: Job, variable: str, number: str, num_runs: int) -> list[str]:
        """Commands that append the output to the log of this job, and set AGAIN if the job has run before.

        variable: with the job; number: its number, from that variable
        """
        log = self.log(job.name, number, num_runs)
        again = f'[ ! -e "$log" ] || export {AGAIN}="${{{AGAIN}:-${variable}}}" # it goes on with its run'
        return [f'log="{log}"', again, 'exec >> "$log" 2>&1']

    def _find_hosts(self, job: Job, variable: str) -> str:
        """A command that sets `hosts` for `psgc launch`, from a file that names each host once for each slot."""
        program = f"""!seen[$1]++ {{ printf "%s%s:{job.ranks_per_node}", sep, $1; sep = "," }}"""
        return f"""hosts=$(awk '{program}' "${variable}")"""


# the batch script of a run or of an array of runs

_BESIDE = Path(sys.executable).with_name("psgc")
PROGRAM = _BESIDE if _BESIDE.exists() else Path(shutil.which("psgc") or _BESIDE)  # pip install --user: on the PATH
_LOCAL = r"([A-Za-z0-9._/+@=,-]|\$\w+|\$\{\w+\})+"  # may contain a variable, so it is written in double quotes
_AWAITED = (
    "launch=$!",
    *(f"trap 'kill -{name} \"$launch\" 2> /dev/null || :' {name}" for name in ("HUP", "INT", "TERM", "USR1")),
    'while kill -0 "$launch" 2> /dev/null; do wait "$launch" || :; done # a signal ends a wait',
    'wait "$launch" # its exit code',
)  # the end of a script, after a command that runs in the background


def batch_script(
    program: Program,
    job: Job,
    points: Sequence[Sequence[str]],
    local_dir: str | None,
    data: Mapping[str, str],
    written_by: Sequence[str],
    script: Path,
) -> str:
    """The text of the script. Raises UserError for an invalid local_dir.

    points: the overrides of each run of an array; empty for a single run
    local_dir: a directory on each node's own disk, such as $TMPDIR, to copy the data to first
    data: the files that each node copies there, by their YAML keys
    written_by: the command to name in the script
    script: the path of the script
    """
    scheduler = job.scheduler
    lines = ["#!/bin/bash", f"# Written by: {' '.join(shlex.join(written_by).split())}"]
    lines += [f"{scheduler.prefix} {directive}" for directive in scheduler.directives(job, len(points))]
    lines += ["", *scheduler.begin(job, len(points), script)]
    # a relative path (in scripts/jobs) is relative to the folder in which the script is submitted
    place = ("" if PROGRAM.is_absolute() else '"$PWD"/') + shlex.quote(str(PROGRAM.parent))
    lines += [f'export PATH={place}:"$PATH"']
    lines += ["export " + " ".join(f"{name}={job.cpus_per_rank}" for name in THREADS), ""]
    if points:
        lines += [f"case {scheduler.index} in"]
        lines += [f"  {i}) run=({_settings(point)}) ;;" for i, point in enumerate(points)]
        lines += ["esac", ""]
    local = {key: f"$local-{key.replace('.', '-')}{_suffix(path)}" for key, path in data.items()}
    if local_dir is not None:
        if not re.fullmatch(_LOCAL, local_dir, re.ASCII):
            raise UserError(f"--local-dir {printable(local_dir)}: expected a path without blanks, such as $TMPDIR")
        lines += ["set -eu", f'local="{local_dir}/psgc-$SLURM_JOB_ID"']
        remove = "rm -f " + " ".join(f'"{copy}"' for copy in local.values())
        everywhere = f"srun --immediate=60 --nodes={job.nodes} --ntasks={job.nodes} --ntasks-per-node=1"
        lines += [f"trap '{everywhere} {remove} || {remove}' EXIT # a node may be lost, or the job be requeued"]
        lines += [f'sbcast --force {shlex.quote(path)} "{local[key]}"' for key, path in data.items()]
        lines += [""]
    launch = [scheduler.launch(job) if local_dir is None else "psgc launch"]
    launch += [shlex.quote(program.path), f"-n {job.ranks}", scheduler.hosts, _settings(program.overrides)]
    launch += [f"--set \"{key}='{copy}'\"" for key, copy in local.items()]
    launch += ['"${run[@]}"' if points else "", f"--requeue {job.warned()}"]
    launch += ["--resume"] if program.resume else []
    launch += [shlex.quote(option) for option in program.mpirun]
    launch += [f"-- {shlex.join(program.after)}"] if program.after else []
    end = [] if local_dir is None else _AWAITED  # to remove the copies then
    launch += ["&"] if end else []
    return "\n".join([*lines, " ".join(filter(None, launch)), *end, ""])


def _settings(overrides: Sequence[str]) -> str:
    return " ".join(f"--set {shlex.quote(override)}" for override in overrides)


def _suffix(path: str) -> str:
    suffix = Path(path).suffix  # the suffix decides how the file is read
    return suffix if re.fullmatch("[.][A-Za-z0-9]+", suffix) else ""


def job_name(config_path: str) -> str:
    """The default name of a job: the name of the YAML file or script, without characters that schedulers refuse.

    >>> job_name("runs/my run.yaml")
    'my-run'
    """
    return re.sub("[^A-Za-z0-9._+@-]+", "-", Path(config_path).stem).lstrip("._+@-") or "psgc"
