"""SLURM, PBS and LSF: what a batch script says to them, and the commands to submit it and to requeue this job.

The script has `psgc launch` run over all nodes of the job, since what these schedulers start themselves has no fault
tolerance.
"""

import os
import re
import shlex
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from psgc.errors import RunFailed, UserError
from psgc.yaml_source import printable

MIN_WARNING = 15  # seconds, of which `psgc launch` reserves ten
AGAIN, RUN, SCRIPT = "PSGC_AGAIN", "PSGC_RUN", "PSGC_SCRIPT"  # variables of a PBS job, see Pbs.requeue
_WORD = "[A-Za-z0-9][A-Za-z0-9._+@,-]*"  # needs no quotes in a directive, which no shell reads
_VALUE = r"[^\s\"'\\#]+"
_TIME = r"(?:([0-9]{1,5})-)?([0-9]{1,7})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?"  # days-first:second:third
CLIENT_SECONDS = 30.0  # clients retry for up to a minute where their scheduler does not answer
_OUT_OF_ORDER = (
    r"[Uu]nable to contact|authentication|[Mm]unge|timed out|temporarily|Zero Bytes|configuration file"  # SLURM
    r"|[Cc]annot connect|[Cc]onnection refused|LSF is down|LSF library call|lsf\.conf"
)
_NOISE = r"^\w+: (?:error|fatal): |Batch job submission failed: |^(?:sbatch|qsub|qstat): "


@dataclass(frozen=True, slots=True)
class Job:
    """What a job asks of its scheduler; warning: in seconds; options: more of the scheduler's own, as it writes them.

    Raises UserError for the first invalid value.
    """

    scheduler: "Scheduler"
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
        """The time limit in seconds, as long as the scheduler takes it."""
        return self.scheduler.rounded(self.seconds())

    def warned(self) -> int:
        """How long before its time limit the job is told, in seconds."""
        return self.scheduler.rounded(self.warning)

    def seconds(self) -> int:
        """The time limit. 90 are 90 minutes, 90:00 is minutes:seconds, 1-12 a day and 12 hours, as SLURM reads it."""
        found = re.fullmatch(_TIME, self.time)
        if not found:
            form = "hours:minutes:seconds or days-hours:minutes:seconds"
            raise UserError(f"--time {printable(self.time)}: expected {form}")
        days, *parts = (int(part) if part else None for part in found.groups())
        units = [3600, 60, 1] if days is not None or parts[2] is not None else [60, 1, 0]
        return 86400 * (days or 0) + sum(unit * (part or 0) for unit, part in zip(units, parts, strict=True))


class Scheduler(ABC):
    """What differs between schedulers.

    title: its name for people; suffix: of its scripts; prefix: of its directives; commands: of which the first submits.
    index: the number of this run in a sweep, from 0, in shell; resume: --resume when the job has run before, in shell.
    own: options that the script sets, or that would contradict it; form, example: of other ones.
    """

    title: ClassVar[str]
    suffix: ClassVar[str]
    prefix: ClassVar[str]
    commands: ClassVar[tuple[str, ...]]
    index: ClassVar[str]
    resume: ClassVar[str] = "${again:+--resume}"
    own: ClassVar[tuple[str, ...]]
    form: ClassVar[str] = rf"-[A-Za-z_]+( {_VALUE})?"
    example: ClassVar[str]
    reads_stdin: ClassVar[bool] = False

    @abstractmethod
    def directives(self, job: Job, num_runs: int) -> list[str]:
        """The directives; num_runs: of a sweep, 0 for none."""

    @abstractmethod
    def begin(self, job: Job, num_runs: int, script: Path) -> list[str]:
        """The first commands of the script."""

    @abstractmethod
    def launch(self, job: Job) -> tuple[str, list[str]]:
        """What the last command begins with, and arguments of `psgc launch`, in shell."""

    def submit_command(self, script: Path, num_runs: int) -> list[str]:
        return [self.commands[0], str(script)]

    @abstractmethod
    def log(self, name: str, number: str, is_array: bool) -> str:
        """The log of a job, of an array with a star; also in shell, with its variables."""

    @abstractmethod
    def job_id(self, environ: Mapping[str, str]) -> str | None:
        """The job of this process, None outside of one."""

    @abstractmethod
    def requeue(self, job: str) -> str:
        """Requeues this job unless it is no longer running. Returns what it did, or nothing. Raises as `client`.

        (Otherwise a cancelled job would start again.)
        """

    def rounded(self, seconds: int) -> int:
        """A time that the scheduler knows, not shorter."""
        return seconds

    def check(self, option: str) -> None:
        """Raises UserError unless a script can have this option as well."""
        if not re.fullmatch(self.form, option):
            raise UserError(f"--option {printable(option)}: expected {self.commands[0]}'s, such as {self.example}")
        if own := next((own for own in self.own if self._is(own, option)), None):
            raise UserError(f"--option {printable(option)}: {own} is set by psgc submit, see psgc submit --help")

    def _is(self, own: str, option: str) -> bool:
        return option == own or option.startswith(own if " " in own else f"{own} ")

    def by_hand(self, script: Path, num_runs: int) -> str:
        """The command that submits the script, for people."""
        *command, last = map(shlex.quote, self.submit_command(script, num_runs))
        return " ".join([*command, *(["<"] if self.reads_stdin else []), last])

    def submit(self, script: Path, num_runs: int) -> str:
        """Submits a batch script. Returns the number of its job. Raises as `client`."""
        command = self.submit_command(script, num_runs)
        stdin = Path(command.pop()) if self.reads_stdin else None
        said = self.client(command, f"{self.title} refuses {printable(str(script))}", stdin)
        if not (number := re.search("[0-9]+", said)):
            raise RunFailed(f"{command[0]} named no job: {printable(said.strip())}")
        return number[0]

    def client(self, command: Sequence[str], failure: str, stdin: Path | None = None) -> str:
        """The output of a command. Raises UserError for what the scheduler refuses, RunFailed when it does not work."""
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

    def _append_to_log(self, job: Job, variable: str, num_runs: int) -> list[str]:
        """Commands: the output goes on in the log of this job, which is there when the job has begun before."""
        log = self.log(job.name, variable, num_runs > 0)
        return [f'log="{log}"', '[ ! -e "$log" ] || again=1', 'exec >> "$log" 2>&1']

    def _find_hosts(self, job: Job, variable: str) -> str:
        """A command: the hosts in a file that names them once for each slot, as `psgc launch` takes them."""
        program = f"""!seen[$1]++ {{ printf "%s%s:{job.ranks_per_node}", sep, $1; sep = "," }}"""
        return f"""hosts=$(awk '{program}' "${variable}")"""


class Slurm(Scheduler):
    """SLURM tells the script of its time limit, and starts it anew when it has lost a node."""

    title, suffix, prefix, commands = "SLURM", ".sbatch", "#SBATCH", ("sbatch",)
    index, resume = "$SLURM_ARRAY_TASK_ID", "${SLURM_RESTART_COUNT:+--resume}"
    own = (
        "--job-name", "--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node", "--time",
        "--partition", "--account", "--array", "--output", "--signal", "--open-mode", "--requeue", "--no-requeue",
    )  # fmt: skip
    form, example = rf"--[a-z][a-z-]*(={_VALUE})?", "--qos=long"

    def _is(self, own: str, option: str) -> bool:
        return own.startswith(option.partition("=")[0])  # sbatch takes abbreviations

    def directives(self, job: Job, num_runs: int) -> list[str]:
        optional = {
            "--gpus-per-node": job.gpus_per_node,
            "--partition": job.partition,
            "--account": job.account,
            "--array": f"0-{num_runs - 1}" if num_runs else "",
        }
        return [
            f"--job-name={job.name}",
            f"--nodes={job.nodes}",
            f"--ntasks-per-node={job.ranks_per_node}",
            f"--cpus-per-task={job.cpus_per_rank}",
            f"--time={job.time}",
            *(f"{option}={value}" for option, value in optional.items() if value),
            f"--output={self.log('%x', '%A' if num_runs else '%j', num_runs > 0).replace('*', '%a')}",
            "--open-mode=append",
            f"--signal=B:USR1@{job.warning}",
            "--requeue",
            *job.options,
        ]

    def begin(self, job: Job, num_runs: int, script: Path) -> list[str]:
        return ["trap '' USR1 # SLURM's warning is for psgc launch"]

    def launch(self, job: Job) -> tuple[str, list[str]]:
        return "exec psgc launch", []

    def log(self, name: str, number: str, is_array: bool) -> str:
        return f"{name}-{number}{'_*' if is_array else ''}.log"

    def job_id(self, environ: Mapping[str, str]) -> str | None:
        array = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        return "_".join(map(str, array)) if all(array) else environ.get("SLURM_JOB_ID")

    def requeue(self, job: str) -> str:
        failure = f"SLURM does not requeue job {job}"
        if self.client(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], failure).strip() != "RUNNING":
            return ""
        self.client(["scontrol", "requeue", job], failure)
        return f"job {job} is requeued"


class Pbs(Scheduler):
    """PBS Professional and OpenPBS give no warning, and let only operators requeue a job.

    So the script counts the time itself, and a job submits the next one, which runs the same script.
    """

    title, suffix, prefix, commands = "PBS", ".pbs", "#PBS", ("qsub", "pbsnodes")  # Grid Engine has no pbsnodes
    index = f"${{{RUN}:-$PBS_ARRAY_INDEX}}"
    own = ("-N", "-l select", "-l walltime", "-q", "-A", "-J", "-j", "-o", "-e", "-r", "-S", "-v")
    example = "'-l place=scatter:excl'"

    def directives(self, job: Job, num_runs: int) -> list[str]:
        gpus = f":ngpus={job.gpus_per_node}" if job.gpus_per_node else ""
        minutes, seconds = divmod(job.seconds(), 60)
        placed = any(option.startswith("-l place=") for option in job.options)
        return [
            f"-N {job.name}",
            f"-l select={job.nodes}:ncpus={job.cpus_per_node}:mpiprocs={job.ranks_per_node}{gpus}",
            *([] if placed else ["-l place=scatter"]),
            f"-l walltime={minutes // 60}:{minutes % 60:02}:{seconds:02}",
            *([f"-q {job.partition}"] if job.partition else []),
            *([f"-A {job.account}"] if job.account else []),
            "-S /bin/bash",
            "-j oe",
            "-o /dev/null",
            "-r y",
            *job.options,
        ]

    def begin(self, job: Job, num_runs: int, script: Path) -> list[str]:
        return [
            'cd "$PBS_O_WORKDIR" || exit 2',
            f"again=${{{AGAIN}-}}",
            *self._append_to_log(job, "${PBS_JOBID%%.*}", num_runs),
            f"export {SCRIPT}={shlex.quote(str(script))} # the job that goes on runs it again",
            self._find_hosts(job, "PBS_NODEFILE"),
        ]

    def launch(self, job: Job) -> tuple[str, list[str]]:
        warn = f"timeout --foreground --preserve-status --signal=USR1 {job.limit() - job.warned()}"
        return f"exec {warn} psgc launch", ['--host "$hosts"']

    def submit_command(self, script: Path, num_runs: int) -> list[str]:
        # not in the script, which a job submits for its own run alone; an array has at least two jobs
        runs = ["-J", f"0-{num_runs - 1}"] if num_runs > 1 else ["-v", f"{RUN}=0"] if num_runs else []
        return [self.commands[0], *runs, str(script)]

    def log(self, name: str, number: str, is_array: bool) -> str:
        element = "[*]" if is_array and "$" not in number else ""  # PBS_JOBID has the index already
        return f"{name}-{number}{element}.log"

    def job_id(self, environ: Mapping[str, str]) -> str | None:
        return environ.get("PBS_JOBID")

    def requeue(self, job: str) -> str:
        failure = f"PBS does not submit the job that goes on after job {job}"
        if not re.search(r"job_state = R\b", self.client(["qstat", "-f", job], failure)):
            return ""
        script, run = os.environ.get(SCRIPT, ""), os.environ.get(RUN) or os.environ.get("PBS_ARRAY_INDEX")
        if not script:
            raise UserError(f"{failure}: {SCRIPT} does not name its script, as those of psgc submit do")
        variables = f"{AGAIN}=1" + (f",{RUN}={run}" if run else "")
        return f"job {self.client(['qsub', '-v', variables, script], failure).strip()} follows job {job}"


class Lsf(Scheduler):
    """LSF sends a signal before the time limit, and reruns the job when it has lost its first host."""

    title, suffix, prefix, commands = "LSF", ".lsf", "#BSUB", ("bsub",)
    index = "$((LSB_JOBINDEX - 1))"
    own = (
        "-J", "-n", "-R span", "-W", "-gpu", "-q", "-P", "-o", "-oo", "-e", "-eo", "-r", "-rn", "-wa", "-wt",
    )  # fmt: skip
    example = "'-R rusage[mem=8GB]'"
    reads_stdin = True

    def rounded(self, seconds: int) -> int:
        return -(-seconds // 60) * 60

    def directives(self, job: Job, num_runs: int) -> list[str]:
        minutes = job.limit() // 60
        return [
            f'-J "{job.name}[1-{num_runs}]"' if num_runs else f"-J {job.name}",
            f"-n {job.nodes * job.cpus_per_node}",
            f'-R "span[ptile={job.cpus_per_node}]"',
            f"-W {minutes // 60}:{minutes % 60:02}",
            *([f'-gpu "num={job.gpus_per_node}"'] if job.gpus_per_node else []),
            *([f"-q {job.partition}"] if job.partition else []),
            *([f"-P {job.account}"] if job.account else []),
            "-o /dev/null",
            "-r",
            "-wa USR1",
            f"-wt {job.warned() // 60}",
            *job.options,
        ]

    def begin(self, job: Job, num_runs: int, script: Path) -> list[str]:
        return [
            "again=",
            *self._append_to_log(job, "${LSB_JOBID}", num_runs),
            "trap '' USR1 # LSF's warning is for psgc launch",
            self._find_hosts(job, "LSB_DJOB_HOSTFILE"),
        ]

    def launch(self, job: Job) -> tuple[str, list[str]]:
        return "exec psgc launch", ['--host "$hosts"']

    def log(self, name: str, number: str, is_array: bool) -> str:
        element = "" if not is_array else "_$LSB_JOBINDEX" if "$" in number else "_*"
        return f"{name}-{number}{element}.log"

    def job_id(self, environ: Mapping[str, str]) -> str | None:
        job, index = environ.get("LSB_JOBID"), environ.get("LSB_JOBINDEX", "0")
        return f"{job}[{index}]" if job and index != "0" else job

    def requeue(self, job: str) -> str:
        failure = f"LSF does not requeue job {job}"
        if self.client(["bjobs", "-noheader", "-o", "stat", job], failure).strip() != "RUN":
            return ""
        self.client(["brequeue", job], failure)
        return f"job {job} is requeued"


SCHEDULERS: dict[str, Scheduler] = {"slurm": Slurm(), "pbs": Pbs(), "lsf": Lsf()}


def usual() -> str:
    """The name of the scheduler whose commands are on the PATH, slurm where there is none."""
    found = (name for name, known in SCHEDULERS.items() if all(map(shutil.which, known.commands)))
    return next(found, "slurm")


def this_job(environ: Mapping[str, str]) -> tuple[Scheduler, str] | None:
    """The job that this process is in, and its scheduler; None outside of one."""
    jobs = ((known, known.job_id(environ)) for known in SCHEDULERS.values())
    return next(((known, job) for known, job in jobs if job), None)
