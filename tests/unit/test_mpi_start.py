"""How MPI starts, and what ends a start that waits for a dead rank."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from psgc import mpi_start
from psgc.mpi_start import GRACE, Beside, daemon_above, ranks_of
from psgc.run import launched

STARTS = """
import signal, time, psgc.mpi_start as r
from types import SimpleNamespace
r.TIMEOUT, r.FIRST_WORD = 2.5, 0.4
r.MPI = SimpleNamespace(Init_thread=time.sleep)
r.start_mpi({0})
print(*signal.getitimer(signal.ITIMER_REAL))
"""


@pytest.mark.parametrize("seconds", [0, 30])
def test_mpi_that_waits_for_a_dead_rank_when_it_starts_ends_the_process(seconds):
    environ = os.environ | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    command = [sys.executable, "-c", STARTS.format(seconds)]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20)
    if not seconds:
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0.0 0.0\n", "")
        return
    assert ended.returncode == -signal.SIGALRM
    why = "a rank that has died or cannot start, or a host that cannot be reached, keeps it waiting"
    assert ended.stderr.splitlines() == [
        f"waiting for MPI to start on all ranks for 0 s: {why}",
        f"waiting for MPI to start on all ranks for 1 s: {why}",
        f"psgc: MPI has not started on all ranks within 2.5 s: {why}",
    ]


def test_ranks_on_standby_are_known_by_the_same_variable():
    assert mpi_start.STANDBY == launched.STANDBY


BOTH = {0: 4, 1: 5}  # number on the host -> rank


def test_all_are_there():
    beside = Beside(0, 2)
    assert [beside.gone(BOTH, now) for now in (0.0, 10.0, 100.0)] == ["", "", ""]


def test_who_is_gone_for_a_while_is_named_and_only_while_it_is():
    beside = Beside(0, 2)
    assert [beside.gone(BOTH, 10.0), beside.gone({0: 4}, 10.1), beside.gone(BOTH, 10.2 + GRACE)] == ["", "", ""]
    assert [beside.gone({0: 4}, 20.0), beside.gone({0: 4}, 20.0 + 2 * GRACE)] == ["", "rank 5"]


def test_who_was_never_seen_is_a_rank():
    beside = Beside(0, 2)
    assert [beside.gone({0: 4}, 0.0), beside.gone({0: 4}, GRACE)] == ["", "a rank (number 2 of 2)"]


def test_only_one_acts_unless_it_does_not():
    """Its own watcher may not have begun."""
    first, second = Beside(1, 3), Beside(2, 3)
    living = {1: 1, 2: 2}
    assert [it.gone(living, 0.0) for it in (first, second)] == ["", ""]
    assert [it.gone(living, 1.5 * GRACE) for it in (first, second)] == ["a rank (number 1 of 3)", ""]
    assert second.gone(living, 2.5 * GRACE) == "a rank (number 1 of 3)"


def test_where_nobody_can_be_seen_nobody_is_missed():
    beside = Beside(0, 2)
    assert [beside.gone({}, now) for now in (0.0, 10.0, 100.0)] == ["", "", ""]


def test_the_ranks_beside_are_the_living_children_with_a_rank():
    command = [sys.executable, "-c", "input()"]
    variables = {"OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | variables) as child,
        subprocess.Popen(command, stdin=subprocess.PIPE) as other,
    ):
        for process in (child, other):
            assert process.stdin is not None
        assert ranks_of(os.getpid()) == {3: 7}
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its parent has not taken note
        assert ranks_of(os.getpid()) == {}


def test_the_daemon_is_found_through_scripts_around_a_rank(monkeypatch):
    """Each rank has its own script, which knows no other rank."""
    assert daemon_above(os.getpid()) == 0
    monkeypatch.setattr(mpi_start, "DAEMONS", [Path("/proc/self/comm").read_text().strip()])
    script = "read line; exit"
    with subprocess.Popen(["sh", "-c", f"sh -c '{script}'; true"], stdin=subprocess.PIPE) as around:
        end = time.monotonic() + 10
        children = Path(f"/proc/{around.pid}/task/{around.pid}/children")
        while not (inner := children.read_text().split()) and time.monotonic() < end:
            time.sleep(0.01)
        found = daemon_above(int(inner[0]))
        around.communicate(b"x")
    assert found == os.getpid()
