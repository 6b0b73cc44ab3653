"""The cores and the memory of this machine that a process may use, and the file system of a path."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # limits of BLAS libraries
NETWORK = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "glusterfs", "afs", "panfs", "orangefs", "pvfs2",
    "wekafs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.beegfs", "fuse.juicefs", "dvs", "9p", "virtiofs",
)  # fmt: skip
FLEETING = ("tmpfs", "ramfs", "overlay", "aufs", "squashfs")  # lost when the machine or the container restarts


def fabrics(classes: Path = Path("/sys/class")) -> list[str]:
    """The devices of fast networks in this machine: InfiniBand, RoCE, Omni-Path and EFA, or Slingshot (cxi)."""
    return sorted(device.name for kind in ("infiniband", "cxi") for device in classes.glob(f"{kind}/*"))


def open_fabrics(files: Path = Path("/proc/self/fd")) -> list[str]:
    """The devices of fast networks that this process has opened, such as uverbs0. MPI has opened those that it uses."""
    opened = set()
    for file in files.glob("*"):
        with suppress(OSError):
            name = os.readlink(file)
            if re.match(r"/dev/(infiniband/uverbs|cxi|hfi1)", name):
                opened.add(PurePath(name).name)
    return sorted(opened)


def carried(hosts: int) -> str:
    """What carries messages between `hosts` hosts, as far as known. Without an open device of a fast network, TCP."""
    if opened := open_fabrics():
        return f" with {', '.join(opened)} open"
    unused = f", {', '.join(found)} unused" if (found := fabrics()) else ""
    return f" over TCP{unused}" if hosts > 1 else ""


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it is bound to, limited by the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0))
    files = (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])  # version 2 has both in one file
    found = [numbers for group in _groups("cpu", cgroups) if (numbers := _said(group, *files))]
    quota = min((allowed / period for allowed, period in found if allowed > 0), default=cores)
    return max(1, min(cores, round(quota)))


def limit_threads() -> None:
    """Limit BLAS to this rank's share of the cores. BLAS uses all by default, and reads the limit when it is loaded."""
    of_job = os.environ.get("SLURM_CPUS_ON_NODE", "")  # SLURM may share a node among jobs
    cores = int(of_job) if of_job.isdigit() else os.cpu_count() or 1
    ranks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get("MPI_LOCALNRANKS") or "1"
    here = max(1, int(ranks)) if ranks.isdigit() else cores  # ranks on this machine
    bound = len(os.sched_getaffinity(0))  # SLURM and mpirun may have bound this rank to fewer cores
    share = max(1, min(cores // here, bound))
    for name in THREADS:
        os.environ.setdefault(name, str(share))


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory and swap that programs of this container can still use; None if the system does not say."""
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        amounts = {words[0]: 1024 * int(words[1]) for words in lines if words[2:] == ["kB"]}
        available, swap = amounts["MemAvailable:"], amounts.get("SwapFree:", 0)
    except (OSError, ValueError, LookupError):
        return None
    files = (["memory.max"], ["memory.limit_in_bytes"])  # versions 2 and 1
    limits = [int(limit[0]) for group in _groups("memory", cgroups) if (limit := _said(group, *files))]
    return min([available, *limits]) + swap


def _groups(controller: str, cgroups: Path) -> list[Path]:
    """The control groups of this controller that limit this process: its own, and the groups above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):  # version 1 has a tree for each controller
            continue
        root = cgroups / controller if controllers else cgroups
        group = root / path.lstrip("/")
        found += [place for place in (group, *group.parents) if place.is_relative_to(root)]
    return found


def _said(group: Path, *choices: Sequence[str]) -> list[float] | None:
    """The numbers in the first of these choices of files that a control group has; None if there is no limit."""
    for names in choices:
        with suppress(OSError, ValueError):  # no such file; "max"
            return [float(word) for word in " ".join((group / name).read_text() for name in names).split()]
    return None


def mount_of(path: str, mountinfo: str) -> tuple[str, str]:
    """Mount point and type of the file system of a path, which must be absolute and without links.

    mountinfo: the text of /proc/self/mountinfo.

    >>> mount_of("/home/me/runs", "1 1 0:1 / / rw - ext4 /dev/a rw\\n2 1 0:2 / /home rw,x shared:1 - nfs4 server:/h rw")
    ('/home', 'nfs4')
    """
    found = ("/", "unknown")
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        if PurePath(path).is_relative_to(place) and len(place) >= len(found[0]):  # a later mount hides an earlier one
            found = (place, after.split()[0])
    return found
