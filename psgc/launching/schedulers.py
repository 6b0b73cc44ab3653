"""SLURM, PBS and LSF: the parts of a batch script, and the commands to submit it and to requeue this job.

The script runs `psgc launch` over all nodes of the job, because ranks that these schedulers start themselves have no
fault tolerance.
"""

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from psgc.errors import UserError
from psgc.launching.scheduler import AGAIN, VALUE, Job, Scheduler

RUN, SCRIPT = "PSGC_RUN", "PSGC_SCRIPT"  # variables of a PBS job, see Pbs.requeue


class Slurm(Scheduler):
    """SLURM warns the script before its time limit, and restarts it when it has lost a node."""

    title, suffix, prefix, commands = "SLURM", ".sbatch", "#SBATCH", ("sbatch",)
    index = "$SLURM_ARRAY_TASK_ID"
    own = (
        "--job-name", "--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node", "--time",
        "--partition", "--account", "--array", "--output", "--signal", "--open-mode", "--requeue", "--no-requeue",
    )  # fmt: skip
    form, example = rf"--[a-z][a-z-]*(={VALUE})?", "--qos=long"
    hosts = ""  # mpirun asks SLURM

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
            f"--output={self.log('%x', '%A' if num_runs else '%j', num_runs).replace('*', '%a')}",
            "--open-mode=append",
            f"--signal=B:USR1@{job.warning}",
            "--requeue",
            *job.options,
        ]

    def begin(self, job: Job, num_runs: int, script: Path) -> list[str]:
        return ["trap '' USR1 # SLURM's warning is for psgc launch"]

    def log(self, name: str, number: str, num_runs: int) -> str:
        return f"{name}-{number}{'_*' if num_runs else ''}.log"

    def job_id(self, environ: Mapping[str, str]) -> str | None:
        array = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        return "_".join(map(str, array)) if all(array) else environ.get("SLURM_JOB_ID")

    def has_run_before(self, environ: Mapping[str, str]) -> bool:
        return bool(environ.get("SLURM_RESTART_COUNT"))

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
    own = ("-N", "-l select", "-l walltime", "-q", "-A", "-J", "-j", "-o", "-e", "-r", "-S", "-v", "-W tolerate")
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
            "-W tolerate_node_failures=all",  # else PBS ends the job when it has lost any node
            *job.options,
        ]

    def begin(self, job: Job, num_runs: int, script: Path) -> list[str]:
        return [
            f"export {SCRIPT}={shlex.quote(str(script))} # the job that goes on runs it again",
            f'! grep -qs -- {SCRIPT} "$0" || {SCRIPT}=$0 # or PBS\'s copy of it: another one may have its name by then',
            'cd "$PBS_O_WORKDIR" || exit 2',
            *self._append_to_log(job, "PBS_JOBID", "${PBS_JOBID%%.*}", num_runs),
            self._find_hosts(job, "PBS_NODEFILE"),
        ]

    def launch(self, job: Job) -> str:
        warn = f"timeout --foreground --preserve-status --signal=USR1 {job.limit() - job.warned()}"
        return f"exec {warn} psgc launch"

    def submit_command(self, script: Path, num_runs: int) -> list[str]:
        # not in the script, which a job submits for its own run alone; an array has at least two jobs
        runs = ["-J", f"0-{num_runs - 1}"] if num_runs > 1 else ["-v", f"{RUN}=0"] if num_runs else []
        return [self.commands[0], *runs, str(script)]

    def log(self, name: str, number: str, num_runs: int) -> str:
        element = "[*]" if num_runs > 1 and "$" not in number else ""  # PBS_JOBID has the index already
        return f"{name}-{number}{element}.log"

    def job_id(self, environ: Mapping[str, str]) -> str | None:
        return environ.get("PBS_JOBID")

    def first_job(self, environ: Mapping[str, str]) -> str:
        return environ.get(AGAIN) or super().first_job(environ)

    def requeue(self, job: str) -> str:
        failure = f"PBS does not submit the job that goes on after job {job}"
        if not re.search(r"job_state = R\b", self.client(["qstat", "-f", job], failure)):
            return ""
        script, run = os.environ.get(SCRIPT, ""), os.environ.get(RUN) or os.environ.get("PBS_ARRAY_INDEX")
        if not script:
            raise UserError(f"{failure}: {SCRIPT} does not name its script, as those of psgc submit do")
        variables = f"{AGAIN}={self.first_job(os.environ) or job}" + (f",{RUN}={run}" if run else "")
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
            *self._append_to_log(job, "LSB_JOBID", "${LSB_JOBID}", num_runs),
            "trap '' USR1 # LSF's warning is for psgc launch",
            self._find_hosts(job, "LSB_DJOB_HOSTFILE"),
        ]

    def log(self, name: str, number: str, num_runs: int) -> str:
        element = "" if not num_runs else "_$LSB_JOBINDEX" if "$" in number else "_*"
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
    """The name of the scheduler whose commands are on the PATH; slurm if there is none."""
    found = (name for name, known in SCHEDULERS.items() if all(map(shutil.which, known.commands)))
    return next(found, "slurm")


def this_job(environ: Mapping[str, str]) -> tuple[Scheduler, str] | None:
    """The scheduler and the number of this process's job; None outside of a job."""
    jobs = ((known, known.job_id(environ)) for known in SCHEDULERS.values())
    return next(((known, job) for known, job in jobs if job), None)
