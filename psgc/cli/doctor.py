"""`psgc doctor`: tests this machine, says what a run on it would survive, and how to launch it.

Whatever could hang or crash runs in its own process with a time limit, all at the same time.
"""

import os
import platform
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version

from psgc import __version__
from psgc.cli import Options, Parser, add_hosts, whole
from psgc.errors import UserError
from psgc.launching.mpirun import Mpirun, Placement, find_mpirun, launch_command
from psgc.launching.schedulers import usual
from psgc.machine import NETWORK, usable_cores
from psgc.terminal import say
from psgc.tools import findings
from psgc.tools.findings import Finding
from psgc.tools.timed_commands import running

LIMIT = 16.0  # seconds for everything, except killing what is late
MPIRUN_LIMIT = 3.0  # for each of the three commands that tell which MPI it is
FILES_LIMIT = 8.0
SLURM_LIMIT = 5.0  # its commands retry for many seconds when SLURM does not answer
GPU_LIMIT = 15.0  # importing CuPy from a network file system can take long
PROBE = [sys.executable, "-P", "-m", "psgc.tools.probe"]
PROBE_RANKS = 3  # a server, a worker that dies, and a worker that notices it
SHOW_TRANSPORT = {  # makes Open MPI and MPICH print which transport they have chosen
    "OMPI_MCA_pml_base_verbose": "10",
    "OMPI_MCA_btl_base_verbose": "5",
    "MPIR_CVAR_DEBUG_SUMMARY": "1",
}


def add_arguments(parser: Parser) -> None:
    add_hosts(parser, "test these hosts")
    text = "directory that runs will write to (default: runs)"
    parser.add_argument("output", nargs="?", default="runs", help=text)
    parser.add_argument("-n", type=whole, dest="ranks", metavar="RANKS", help="number of ranks of the planned run")


def run(options: Options) -> int:
    """Test this machine and print the findings, in less than 20 s. Returns 0 when training can run, else 1."""
    deadline = time.monotonic() + LIMIT
    environ = {name: value for name, value in os.environ.items() if name != "PSGC_TERMINAL"}
    ranks = options.ranks if options.ranks is not None else default_ranks(environ, usable_cores())
    placement = Placement(ranks, options.host, options.hostfile)
    say(f"psgc {__version__} on {socket.gethostname()}, Python {sys.version.split()[0]}")
    line, survived = "", False
    with (
        running([*PROBE, "gpu"], environ, GPU_LIMIT) as gpu,
        running([*PROBE, "files", options.output], environ, FILES_LIMIT) as files,
        running(["sinfo", "-h", "-o", "%P %a %D"], environ, SLURM_LIMIT) as partitions,
    ):
        try:
            mpirun = find_mpirun(environ, MPIRUN_LIMIT)
        except UserError as error:
            found = [Finding("problem", "mpirun", str(error))]
        else:
            command, additions = launch_command(placement, ["train", "run.yaml"], environ, mpirun=mpirun)
            line = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in additions.items()), shlex.join(command)])
            found, survived = _probe_mpi(mpirun, placement, environ, deadline)
            if not placement.may_be_several(environ):
                threads = {**additions, **environ}["OMP_NUM_THREADS"]
                found += findings.core_findings(ranks, usable_cores(), threads)
        files_tested, slurm = files(), partitions()
        found += findings.gpu_findings(gpu(), "PSGC_CUDA_AWARE=1" in line, bool(shutil.which("nvidia-smi")))
        found += [findings.slurm_finding(slurm, environ), findings.output_finding(options.output, files_tested)]
    _report(found)
    if any(finding.level == "problem" for finding in found):
        say()
        say("No run can start here until each problem is solved.")
        _tell(found)
        return 1
    launch = shlex.join(["psgc", "launch", "run.yaml", *placement.arguments()])
    say()
    say("What a run here survives")
    scheduled = slurm.code == 0 or usual() != "slurm"
    _report(findings.survival(survived, files_tested.found().get("kind") in NETWORK, scheduled, launch))
    say()
    say(f"Launch it with   {launch}")
    say(f"which runs       {line}")
    _tell(found)
    return 0


def _tell(found: Iterable[Finding]) -> None:
    """Versions, what carried messages, and what happened when a rank died, for people to pass on."""
    told = {finding.name: " ".join(finding.text.split()) for finding in found}
    if "MPI library" not in told:
        return
    say()
    say("To tell others what this network survives (docs/fast-networks.md), copy this")
    versions = f"mpi4py {version('mpi4py')}, Python {platform.python_version()}, Linux {platform.release()}"
    say(f"  psgc {__version__}, {versions}")
    for name in ("MPI library", "messages", "transport", "a dead rank"):
        if name in told:
            say(f"  {name}: {told[name]}")


def default_ranks(environ: Mapping[str, str], cores: int) -> int:
    """The default number of ranks: SLURM's tasks, else one for each core."""
    tasks = environ.get("SLURM_NTASKS", "")
    return max(int(tasks), 1) if tasks.isdigit() else cores


def _probe_mpi(
    mpirun: Mpirun, placement: Placement, environ: Mapping[str, str], deadline: float
) -> tuple[list[Finding], bool]:
    """The findings of a test job, with all ranks of the run when hosts are named; and whether it survived a death."""
    size = max(PROBE_RANKS, placement.ranks) if placement.hosts() else PROBE_RANKS
    placement = replace(placement, ranks=size)
    command, additions = launch_command(placement, ["ranks"], environ, mpirun=mpirun, module="psgc.tools.probe")
    with running(command, {**environ, **additions, **SHOW_TRANSPORT}, deadline - time.monotonic()) as job:
        result = job()
    found = [findings.mpirun_finding(mpirun), *findings.job_findings(mpirun, result, size)]
    found += findings.pace_findings(result.found().get("paces", []))
    return found, bool(result.found().get("survived"))


def _report(found: Iterable[Finding]) -> None:
    for finding in found:
        text = " ".join(finding.text.split())  # other programs' texts may have several lines
        say(f"  {finding.level:<7}  {finding.name:<16}  {text}")
