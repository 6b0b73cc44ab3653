"""What the transport does when ranks die, under real mpirun: see inside_transport_faults.py."""

import re
import tempfile
from pathlib import Path

import pytest

from tests.ranks.mpirun import mpirun, run
from tests.ranks.prepared import prepared

ROOT = Path(__file__).parents[2]


def case(ranks, *arguments, living, code=0, env=None):
    """Run a case to its end: who lives is content, nothing is left behind, mpirun's exit code is the server's."""
    inside = ["-m", "tests.ranks.inside_transport_faults", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        finished = run(
            mpirun(ranks, inside, True, prepared()), ROOT, timeout=60, env={"CONTENT": folder, **(env or {})}
        )
        assert sorted(int(path.name) for path in Path(folder).iterdir()) == sorted(living), finished.said
    assert code is None or finished.returncode == code, finished.said
    assert not finished.orphans
    return finished


def test_two_deaths_are_noticed_by_everybody_at_once():
    for _ in range(3):  # on a machine that is too busy
        finished = case(5, "idle", "1", "3", living=[0, 2, 4])
        killed = max(float(when) for when in re.findall(r"killed ([\d.]+)", finished.stdout))
        noticed = sorted(float(when) for when in re.findall(r"noticed ([\d.]+)", finished.stdout))
        if noticed[0] - killed < 0.25:  # 6 to 15 ms on an idle machine
            return
    pytest.fail(finished.said)


faults = pytest.mark.faults


def test_nothing_of_the_living_is_lost_or_doubled_or_overtaken_however_far_mpi_can_count():
    case(4, "traffic", living=[0, 1, 3], env={"LARGEST": "3000"})


@faults
def test_everybody_sends_everybody_blocks_and_keeps_what_it_needs():
    case(4, "blocks", living=[0, 1, 2, 3])


def test_blocks_of_the_living_arrive_when_a_rank_dies_with_blocks_under_way():
    case(4, "blocks", "2", living=[0, 1, 3])


def test_without_the_server_another_rank_serves_and_nothing_of_before_comes_any_more():
    assert case(4, "another_serves", living=[0, 2, 3], code=3).seconds < 30


@pytest.mark.parametrize(("when", "victim"), [pytest.param("broadcast", 0, marks=faults), ("late", 1)])
def test_a_death_while_setting_up_is_the_same_error_everywhere(when, victim):
    case(5, "setup", when, str(victim), living={0, 1, 2, 3, 4} - {victim}, code=1 if victim else 0)


@pytest.mark.parametrize("how", ["thinks", pytest.param("leaves", marks=faults)])
def test_a_rank_that_does_not_come_ends_the_run_while_setting_up(how):
    finished = case(4, "missing", how, "2", living=[0, 1, 3], code=1)
    assert how != "thinks" or re.search(r"waiting for rank 2 for \d s, thinking\n", finished.stderr), finished.said


def test_a_stopped_rank_is_forgotten_and_remembered():
    case(3, "stopped", living=[0, 1, 2])


def test_a_stopped_rank_is_killed_and_the_exit_code_is_the_servers():
    case(3, "killed", living=[0, 1], code=3)
