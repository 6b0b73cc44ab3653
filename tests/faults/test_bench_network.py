"""The smallest runs of scripts/bench_network.py, and that nothing is left of them."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from cpu_quotas import ROOT, CpuQuotas
from hosts import Hosts, impossible, wait_until
from network_runs import PROGRAMS, Situation, measure

from psgc.errors import UserError

sys.path.pop(0)
pytestmark = pytest.mark.faults
SCRIPT = str(Path(__file__).parents[2] / "scripts/bench_network.py")


@pytest.fixture(autouse=True, scope="module")
def _can_be() -> None:
    if reason := impossible():
        pytest.skip(reason)
    try:
        with CpuQuotas(f"psgc-test-{os.getpid()}", {}):
            pass
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the folders of hosts come to lie: other tests may have hosts at the same time."""
    with tempfile.TemporaryDirectory(prefix="b") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


def left() -> set[Path]:
    """The groups, and the folders of hosts, that there are."""
    groups = {path for pattern in ("psgc-*", "cpu/psgc-*") for path in ROOT.glob(pattern)}
    return groups | set(Path(tempfile.gettempdir()).glob("psgc-hosts-*"))


@pytest.mark.parametrize("program", ["mpi4py", "combined-2", "allreduce-1"])
def test_a_run_with_a_slow_link_and_a_slow_processor(program: str) -> None:
    before = left()
    slow = Situation("", computes=True, slow_link=True, slow_processor=True, workers=2)
    measured = measure(PROGRAMS[program], slow, 1000, 2)
    assert 0 < measured.seconds < 10
    assert measured.busiest >= measured.mean > 4000  # a vector at least
    assert left() <= before


def test_a_run_on_one_host_says_nothing_of_links() -> None:
    measured = measure(PROGRAMS["allreduce-2"], Situation("", hosts=1, workers=2), 1000, 2)
    assert 0 < measured.seconds < 10
    assert (measured.busiest, measured.mean) == (0, 0)


def test_a_link_has_its_rate() -> None:
    """1 MB beyond what may go at once takes 0.2 s at 40 Mbit/s."""
    receive = (
        "import socket; c, _ = socket.create_server(('', 5000)).accept()\nwhile c.recv(65536): pass\nc.sendall(b'.')"
    )
    send = (
        "import socket, time; c = socket.create_connection(('b', 5000)); began = time.monotonic(); "
        "c.sendall(bytes(1_524_288)); c.shutdown(1); c.recv(1); print(time.monotonic() - began)"
    )
    with Hosts("a", "b") as hosts:
        hosts.limit("a", 40)
        program = [sys.executable, "-c"]
        with subprocess.Popen(hosts.command("b", [*program, receive])):
            listening = hosts.command("b", ["sh", "-c", "ss -ltn | grep -q :5000"])
            wait_until(lambda: subprocess.run(listening, timeout=10).returncode == 0)
            done = subprocess.run(hosts.command("a", [*program, send]), capture_output=True, text=True, timeout=20)
        assert 0.15 < float(done.stdout) < 5
        carried = hosts.link_bytes()
        assert carried["a"] == pytest.approx(1_524_288, rel=0.1)
        assert carried["b"] == pytest.approx(carried["a"], rel=0.1)


def test_a_process_in_a_group_has_its_share_of_a_core() -> None:
    spin = "import sys, time; from cpu_quotas import join; join(*sys.argv[1:])\nwhile time.thread_time() < 0.2: pass"
    with CpuQuotas(f"psgc-test-{os.getpid()}", {"slow": 0.1}) as quotas:
        began = time.monotonic()
        command = [sys.executable, "-c", spin, str(quotas.folder), "slow"]
        subprocess.run(command, check=True, timeout=30, cwd=Path(SCRIPT).parent)
        assert time.monotonic() - began > 1
    assert not quotas.folder.exists()


def interruptible() -> None:
    """For a process: Ctrl-C ends it, even if these tests are a shell's job in the background, which ignores that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_however_it_ends(number: int) -> None:
    before = left()
    options = ["--dims", "1000", "--situations", "processor", "--iterations", "100000"]
    with subprocess.Popen(
        [sys.executable, SCRIPT, *options], cwd=tempfile.gettempdir(), start_new_session=True, preexec_fn=interruptible
    ) as bench:
        try:
            wait_until(lambda: bench.poll() is not None or any(started(bench.pid)))
            assert bench.poll() is None
            made = left() - before
            assert len(made) >= 2  # the groups, and the folder
            os.kill(bench.pid, number)
            code = bench.wait(30)
        finally:
            bench.kill()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not any(started(bench.pid)) and not any(path.exists() for path in made))


def started(bench: int) -> list[int]:
    """The processes that have joined the groups of this run."""
    found = []
    for pattern in (f"psgc-bench-{bench}/*/cgroup.procs", f"cpu/psgc-bench-{bench}/*/cgroup.procs"):
        for file in ROOT.glob(pattern):
            with contextlib.suppress(OSError):  # the group may be removed meanwhile
                found += [int(pid) for pid in file.read_text().split()]
    return found
