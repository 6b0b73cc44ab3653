"""Slow processors: groups of processes (Linux cgroups, version 1 or 2) that get a share of one core each."""

import os
from collections.abc import Mapping
from pathlib import Path

from remover import start_remover

from psgc.errors import UserError

ROOT = Path("/sys/fs/cgroup")
PERIOD = 25_000  # microseconds: in each the group may run for its share of them
SMALLEST = 1000  # microseconds, the least that Linux grants
REMOVE = 'rmdir "$1"/*/; rmdir "$1"'


class CpuQuotas:
    """Groups of these names, each with its share of one core, until the with block is left.

    A process joins by `join`. Raises UserError on entering, where this machine or user cannot have such groups.
    """

    def __init__(self, name: str, shares: Mapping[str, float], root: Path = ROOT) -> None:
        self._parent, self._quota = _parent_and_quota(root)
        self.folder = self._parent / name
        self._shares = shares

    def __enter__(self) -> "CpuQuotas":
        try:
            self.folder.mkdir()
        except OSError as error:
            raise UserError(f"no CPU quotas: {self.folder}: {error.strerror}") from None
        self._remover = start_remover(REMOVE, str(self.folder))
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remover.communicate(timeout=20)

    def _build(self) -> None:
        if (switch := self.folder / "cgroup.subtree_control").exists():
            switch.write_text("+cpu")
        for name, share in self._shares.items():
            (self.folder / name).mkdir()
            self.change(name, share)

    def change(self, name: str, share: float) -> None:
        """Give a group another share of one core."""
        for file, text in self._quota(share).items():
            (self.folder / name / file).write_text(text)


def has_quotas() -> bool:
    """Whether this machine and user can have CPU quotas."""
    try:
        with CpuQuotas(f"psgc-try-{os.getpid()}", {"any": 1.0}):
            return True
    except UserError:
        return False


def join(folder: str, name: str) -> None:
    """Put the calling process, with all its threads, into one of the groups in `folder`."""
    Path(folder, name, "cgroup.procs").write_text(str(os.getpid()))


def _parent_and_quota(root: Path):
    """Where groups can be made, and a function from a share of one core to the files that set it, by name.

    Raises UserError when no cgroup file system has the cpu controller.
    """
    if (root / "cpu/cpu.cfs_quota_us").exists():
        return root / "cpu", _version_1
    listed = root / "cgroup.subtree_control"
    if listed.exists() and "cpu" in listed.read_text().split():
        return root, _version_2
    raise UserError(f"no CPU quotas: no cpu controller in {root}")


def _version_1(share: float) -> dict[str, str]:
    return {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(_microseconds(share))}


def _version_2(share: float) -> dict[str, str]:
    return {"cpu.max": f"{_microseconds(share)} {PERIOD}"}


def _microseconds(share: float) -> int:
    return max(SMALLEST, round(share * PERIOD))
