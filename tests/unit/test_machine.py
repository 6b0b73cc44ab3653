import os
from pathlib import Path

import pytest

from psgc.machine import available_memory, carried, fabrics, mount_of, open_fabrics, usable_cores


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def cgroup(monkeypatch, text):
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: text if str(path) == "/proc/self/cgroup" else read(path))


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 16), ("250000 100000", 2), ("1000 100000", 1)])
def test_a_quota_of_a_container(tmp_path, monkeypatch, quota, expected):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/cpu.max").write_text(quota)
    (tmp_path / "a/b/cpu.max").write_text("1200000 100000")
    cgroup(monkeypatch, "0::/a/b\n")
    assert usable_cores(tmp_path) == min(expected, 12)


@pytest.mark.usefixtures("cores")
def test_a_quota_of_version_1(tmp_path, monkeypatch):
    (tmp_path / "cpu/a").mkdir(parents=True)
    for name, value in (("cpu.cfs_quota_us", 300_000), ("cpu.cfs_period_us", 100_000)):
        (tmp_path / "cpu/a" / name).write_text(f"{value}\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    cgroup(monkeypatch, "5:memory:/x\n4:cpu,cpuacct:/a\n0::/\n")
    assert usable_cores(tmp_path) == 3


@pytest.mark.usefixtures("cores")
def test_no_quota(tmp_path, monkeypatch):
    cgroup(monkeypatch, "0::/nowhere\n")
    assert usable_cores(tmp_path) == 16


MEMINFO = """\
MemTotal:       24731708 kB
MemFree:        21918972 kB
MemAvailable:    1000000 kB
SwapFree:              5 kB
HugePages_Total:       0
"""


@pytest.fixture
def meminfo(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    return tmp_path / "meminfo"


@pytest.mark.parametrize(("limit", "expected"), [("max", 1_024_000_000), ("4096", 4096), (str(10**12), 1_024_000_000)])
def test_memory_of_a_container(tmp_path, monkeypatch, meminfo, limit, expected):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/memory.max").write_text(f"{limit}\n")
    (tmp_path / "a/b/memory.max").write_text("max\n")
    cgroup(monkeypatch, "0::/a/b\n")
    assert available_memory(meminfo, tmp_path) == expected + 5120


def test_memory_of_a_container_of_version_1(tmp_path, monkeypatch, meminfo):
    (tmp_path / "memory/x").mkdir(parents=True)
    (tmp_path / "memory/x/memory.limit_in_bytes").write_text("8192\n")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    cgroup(monkeypatch, "5:memory:/x\n4:cpu,cpuacct:/a\n0::/\n")
    assert available_memory(meminfo, tmp_path) == 8192 + 5120


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable: much kB\n"])
def test_a_system_that_does_not_say_how_much_memory_is_left(tmp_path, meminfo, text):
    meminfo.write_text(text)
    assert available_memory(meminfo, tmp_path) is None
    assert available_memory(tmp_path / "none") is None


MOUNTS = """\
27 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 27 0:40 / /scratch rw shared:1 - tmpfs none rw
31 27 0:41 / /scratch rw shared:2 master:1 - lustre 10.0.0.1@tcp:/fs rw
32 27 0:42 / /my\\040runs rw - nfs4 server:/runs rw
33 27 0:43 / /home rw - autofs auto rw
34 33 0:44 / /home/me rw - nfs server:/me rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/tmp/runs", ("/", "ext4")),
        ("/scratch/a", ("/scratch", "lustre")),  # what was mounted last covers what was there
        ("/scratchy/a", ("/", "ext4")),
        ("/my runs", ("/my runs", "nfs4")),
        ("/home/me/a", ("/home/me", "nfs")),
        ("/home/you", ("/home", "autofs")),
    ],
)
def test_the_mount_of_a_path(path, expected):
    assert mount_of(path, MOUNTS) == expected
    assert mount_of(path, "") == ("/", "unknown")


def test_devices_of_fast_networks_that_are_there_and_that_are_open(tmp_path):
    for name in ("infiniband/mlx5_1", "infiniband/mlx5_0", "cxi/cxi0", "net/eth0"):
        (tmp_path / "class" / name).mkdir(parents=True)
    assert fabrics(tmp_path / "class") == ["cxi0", "mlx5_0", "mlx5_1"]
    assert fabrics(tmp_path / "none") == []
    (tmp_path / "fd").mkdir()
    files = ("/dev/null", "/dev/infiniband/uverbs1", "/dev/infiniband/uverbs1", "/dev/cxi0", "/dev/infiniband/rdma_cm")
    for number, file in enumerate(files):
        (tmp_path / "fd" / str(number)).symlink_to(file)
    assert open_fabrics(tmp_path / "fd") == ["cxi0", "uverbs1"]


@pytest.mark.parametrize(
    ("hosts", "there", "opened", "said"),
    [
        (1, [], [], ""),
        (2, [], [], " over TCP"),
        (2, ["mlx5_0"], [], " over TCP, mlx5_0 unused"),
        (1, ["mlx5_0"], [], ""),
        (2, ["mlx5_0"], ["uverbs0"], " with uverbs0 open"),
    ],
)
def test_what_carries_messages_as_far_as_it_is_known(monkeypatch, hosts, there, opened, said):
    monkeypatch.setattr("psgc.machine.fabrics", lambda: there)
    monkeypatch.setattr("psgc.machine.open_fabrics", lambda: opened)
    assert carried(hosts) == said
