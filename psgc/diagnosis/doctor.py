"""`psgc doctor`: what this machine gives a run, what a run here will survive, and the line to launch it with.

It probes rather than believes: some ranks are started by the very line that `psgc launch` would use, exchange vectors,
and lose one of their number. Whatever could hang or crash runs in a process of its own, all of them at the same time
and each with a limit (`probe`, `ask`); `findings` says what their answers mean.
"""

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping

from psgc import __version__
from psgc.diagnosis.ask import Question
from psgc.diagnosis.findings import (
    Finding,
    core_findings,
    gpu_findings,
    job_findings,
    mpirun_finding,
    output_finding,
    slurm_finding,
    survival,
)
from psgc.errors import UserError
from psgc.launching.mpirun import ANYWHERE, Mpirun, Placement, find_mpirun, launch_command
from psgc.machine import NETWORK, THREADS, usable_cores
from psgc.terminal import say, shell_line

LIMIT = 16.0  # seconds for everything, but for killing what is late
MPIRUN_LIMIT = 3.0  # for each of three commands that say which MPI it is
FILES_LIMIT = 8.0
SLURM_LIMIT = 5.0  # its commands go on asking for many seconds when nobody answers
GPU_LIMIT = 15.0  # importing CuPy from a network file system can take long
PROBE = [sys.executable, "-P", "-m", "psgc.diagnosis.probe"]
PROBE_RANKS = 3  # a server, a worker that dies and one that sees it
TELL_TRANSPORT = {  # Open MPI's and MPICH's ways of saying which transport they have chosen
    "OMPI_MCA_pml_base_verbose": "10",
    "OMPI_MCA_btl_base_verbose": "5",
    "MPIR_CVAR_DEBUG_SUMMARY": "1",
}


def doctor(output: str = "runs", num_ranks: int | None = None, placement: Placement = ANYWHERE) -> int:
    """Probes this machine and prints what it found, in less than 20 s.

    output: the directory that runs will write to; num_ranks: of the run to come (default: SLURM's tasks, or as many
    workers as there are cores). Returns 0 when training can run at all, else 1.
    Raises UserError: fewer than two ranks, no such host file.
    """
    deadline = time.monotonic() + LIMIT
    environ = {name: value for name, value in os.environ.items() if name != "PSGC_TERMINAL"}
    ranks = num_ranks if num_ranks is not None else default_ranks(environ, usable_cores())
    say(f"psgc {__version__} on {socket.gethostname()}, Python {sys.version.split()[0]}")
    line, survived = "", False
    with (
        Question([*PROBE, "gpu"], environ, GPU_LIMIT) as gpu,
        Question([*PROBE, "files", output], environ, FILES_LIMIT) as files,
        Question(["sinfo", "--version"], environ, SLURM_LIMIT) as slurm,
        Question(["sinfo", "-h", "-o", "%P %a %D"], environ, SLURM_LIMIT) as partitions,
    ):
        try:
            mpirun = find_mpirun(environ, MPIRUN_LIMIT)
        except UserError as error:
            findings = [Finding("problem", "mpirun", str(error))]
        else:
            command, additions = launch_command(ranks, ["train", "run.yaml"], environ, placement, mpirun=mpirun)
            line = " ".join([*(f"{k}={shell_line([v])}" for k, v in additions.items()), shell_line(command)])
            findings, survived = _probe_mpi(mpirun, ranks, placement, environ, additions, deadline)
        shared, answers = files.answer().found().get("kind") in NETWORK, partitions.answer().code == 0
        findings += gpu_findings(gpu.answer(), "PSGC_CUDA_AWARE=1" in line, bool(shutil.which("nvidia-smi")))
        findings += [
            slurm_finding(slurm.answer(), partitions.answer(), environ),
            output_finding(output, files.answer()),
        ]
    _report(findings)
    if any(finding.level == "problem" for finding in findings):
        say()
        say("No run can start here until what is called a problem is solved.")
        return 1
    launch = shell_line(["psgc", "launch", "run.yaml", "-n", str(ranks), *placement.arguments()])
    say()
    say("What a run here survives")
    _report(survival(survived, shared, answers, launch))
    say()
    say(f"Launch it with   {launch}")
    say(f"which stands for {line}")
    return 0


def default_ranks(environ: Mapping[str, str], cores: int) -> int:
    """How many ranks to look after when nobody says: SLURM's tasks, else a worker for every core and the server."""
    tasks = environ.get("SLURM_NTASKS", "")
    return max(int(tasks), 2) if tasks.isdigit() else max(cores + 1, PROBE_RANKS)


def _probe_mpi(
    mpirun: Mpirun,
    num_ranks: int,
    placement: Placement,
    environ: Mapping[str, str],
    additions: Mapping[str, str],
    deadline: float,
) -> tuple[list[Finding], bool]:
    """Start a job as `psgc launch` would (with all its ranks where hosts are named, so that each gets some).

    Returns what that told, and whether the job survived the death of a rank.
    """
    share = {name: value for name, value in additions.items() if name in THREADS}  # of the run to come
    size = PROBE_RANKS if placement == ANYWHERE else max(PROBE_RANKS, num_ranks)
    command, more = launch_command(
        size, ["ranks"], {**environ, **share}, placement, mpirun=mpirun, module="psgc.diagnosis.probe"
    )
    with Question(command, {**environ, **share, **more, **TELL_TRANSPORT}, deadline - time.monotonic()) as job:
        answer = job.answer()
    findings = [mpirun_finding(mpirun), *job_findings(mpirun, "--with-ft" in command, answer, size)]
    told: list[dict[str, int | None]] = answer.found().get("ranks", [])
    here_alone = placement == ANYWHERE and environ.get("SLURM_JOB_NUM_NODES", "1") == "1"
    if told and here_alone:
        threads = max((threads for rank in told if (threads := rank["blas"])), default=None)
        findings += core_findings(num_ranks, usable_cores(), threads, environ.get("OMP_NUM_THREADS"))
    return findings, bool(answer.found().get("survived"))


def _report(findings: Iterable[Finding]) -> None:
    for finding in findings:
        text = " ".join(finding.text.split())  # what others say may be several lines
        say(f"  {finding.level:<7}  {finding.name:<16}  {text}")
