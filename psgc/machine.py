"""The cores and the memory of this machine that a process may use, and the file system of a path."""

import os
import re
from pathlib import Path, PurePath

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # limits of BLAS libraries
NETWORK = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "glusterfs", "afs", "panfs", "orangefs", "pvfs2",
    "wekafs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.beegfs", "fuse.juicefs", "dvs", "9p", "virtiofs",
)  # fmt: skip
FLEETING = ("tmpfs", "ramfs", "overlay", "aufs", "squashfs")  # lost when the machine or the container restarts


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it is bound to, limited by the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return cores if quota is None else max(1, min(cores, round(quota)))


def local_ranks() -> int:
    """How many ranks mpirun has started on this machine: 1 without it, one for each core where it gives no number."""
    ranks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get("MPI_LOCALNRANKS") or "1"
    return max(1, int(ranks)) if ranks.isdigit() else os.cpu_count() or 1


def limit_threads() -> None:
    """Limit BLAS to this rank's share of the cores. (It uses all by default, and reads this when it is loaded.)"""
    share = (os.cpu_count() or 1) // local_ranks()
    share = max(1, min(share, len(os.sched_getaffinity(0))))  # SLURM and mpirun may have bound this rank to fewer cores
    for name in THREADS:
        os.environ.setdefault(name, str(share))


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that are free for programs, at most those of this container, and of swap.

    None where the system does not say.
    """
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        amounts = {words[0]: 1024 * int(words[1]) for words in lines if words[2:] == ["kB"]}
        available, swap = amounts["MemAvailable:"], amounts.get("SwapFree:", 0)
    except (OSError, ValueError, LookupError):
        return None
    limits = [limit for group in _groups("memory", cgroups) if (limit := _memory_of(group)) is not None]
    return min([available, *limits]) + swap


def _memory_of(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
        try:
            return int((group / name).read_text())
        except (OSError, ValueError):  # no such file; "max"
            continue
    return None


def _quota(cgroups: Path) -> float | None:
    """The CPU quota of the control groups of this process, in cores. None without a limit."""
    return min((quota for quota in map(_quota_of, _groups("cpu", cgroups)) if quota is not None), default=None)


def _groups(controller: str, cgroups: Path) -> list[Path]:
    """The control groups that limit this process in this, its own and those above."""
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


def _quota_of(group: Path) -> float | None:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):  # version 2 has both in one file
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            return float(quota) / float(period) if float(quota) > 0 else None
        except (OSError, ValueError):  # no such file; "max"
            continue
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
