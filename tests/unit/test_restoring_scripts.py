"""When `psgc launch` starts a script with several runs again."""

import os
import time
from pathlib import Path

import pytest

from psgc.launching.mpirun import Placement
from psgc.launching.outcome import RunDirectory
from psgc.launching.restoring import Watch
from psgc.record.csv_files import RESTORED
from psgc.run.launched import ANSWER, READY, Found
from tests.unit.fake_mpirun import RUN
from tests.unit.watched import LOST, Answers, is_asked, is_ready


def begins_in(name, restore):
    """The next run of the script begins in this directory."""
    (out := Path(name).absolute()).mkdir(exist_ok=True)
    Path("new").write_text(Found.now(out).text())
    os.replace("new", Path("answers", ANSWER))
    Path("new").write_text(f"{RUN}dedicated_server: true\nfaults: {{restore: {restore}}}\n")
    os.replace("new", out / "config.yaml")


def is_restored(watched, started, restore="{after: 0.01}", name="first"):
    """This run loses worker 1, and the ranks that `psgc launch` has started go on with it."""
    begins_in(name, restore)
    Path(name, "lost.csv").write_text(LOST.format(1))
    assert is_asked(watched)
    Path(name, "summary.json").write_text('{"status": "interrupted"}')
    assert watched.take_next(138) is started[0]
    Path("answers", ANSWER).unlink()
    watched.begin(RunDirectory(Path("answers").absolute(), resumed=False, of_script=True))


@pytest.fixture
def script(run_before):
    """The watch of a script of three ranks, and the ranks that it has started, which have `told`."""
    started = []

    def start(_, file, told):
        started.append(is_ready(_, file))
        started[-1].told = told[RESTORED]
        return started[-1]

    Path("answers").mkdir()
    watched = Watch(Placement(3), start, lambda _: None, False, Answers())
    watched.begin(RunDirectory(Path("answers").absolute(), resumed=False, of_script=True))
    return watched, started


@pytest.mark.parametrize(
    ("first", "second", "restored"),
    [
        ("null", "{after: 0.05}", True),
        ("{after: 0.05}", "null", False),
        ("{after: 100}", "{after: 0.05}", True),
        ("{after: 0.05}", "{after: 100}", False),
    ],
)
def test_each_run_of_a_script_is_watched_by_its_own_settings(script, first, second, restored):
    watched, _ = script
    begins_in("first", first)
    assert not is_asked(watched)
    Path("first/summary.json").write_text('{"status": "done"}')
    watched.look()
    begins_in("second", second)
    watched.look()
    Path("second/lost.csv").write_text(LOST.format(1))
    assert is_asked(watched) == restored


def test_what_one_run_of_a_script_lacks_the_next_one_does_not_lack(script):
    watched, started = script
    begins_in("first", "{after: 0.2}")
    Path("first/lost.csv").write_text(LOST.format(1))
    watched.look()
    time.sleep(0.25)
    begins_in("second", "{after: 0.2}")
    Path("second/lost.csv").write_text(LOST.format(1))
    watched.look()
    assert not started, "worker 1 is gone anew"
    begins_in("third", "{after: 0.01}")
    assert not is_asked(watched)
    assert not started


def test_new_ranks_for_a_run_that_is_over_are_ended_also_when_the_next_one_has_begun(script):
    watched, started = script
    begins_in("first", "{after: 0.01}")
    Path("first/lost.csv").write_text(LOST.format(1))
    watched.look()
    time.sleep(0.02)
    watched.look()
    (waiting,) = started
    begins_in("second", "{after: 0.01}")
    assert not is_asked(watched)
    assert (started, waiting.has_ended) == ([waiting], True)
    assert not Path("first", READY).exists()


def test_a_run_that_begins_right_before_hosts_are_lost_starts_again_by_its_own_settings(run_before):
    watched = Watch(Placement(5, host="a:3,b:2"), is_ready, lambda _: None, False, Answers("b"))
    Path("answers").mkdir()
    watched.begin(RunDirectory(Path("answers").absolute(), resumed=False, of_script=True))
    begins_in("first", "null")
    watched.look()
    begins_in("second", "{after: 0.05}")
    Path("second/checkpoints").mkdir()
    Path("second/checkpoints/00000004.safetensors").touch()
    assert watched.take_next(0) is not None
    assert watched.placement == Placement(3, host="a:3")


def test_a_run_that_follows_the_one_that_was_started_again_is_not_taken_for_it(script, capsys):
    """It has made steps, and no row of restores.csv says so."""
    watched, started = script
    is_restored(watched, started)
    Path("first/lost.csv").unlink()
    begins_in("first", "{after: 0.01}")
    watched.look()
    Path("first/restores.csv").touch()
    begins_in("second", "{after: 0.01}")
    watched.look()
    capsys.readouterr()
    assert watched.take_next(137) is None
    assert (len(started), capsys.readouterr().err) == (1, "")


def test_a_run_that_follows_it_may_end_before_it_has_said_its_settings(script, capsys):
    watched, started = script
    is_restored(watched, started)
    Path("first/restores.csv").touch()
    Path("second").mkdir()
    Path("answers", ANSWER).write_text(Found.now(Path("second").absolute()).text())
    capsys.readouterr()
    assert watched.take_next(137) is None
    assert (len(started), capsys.readouterr().err) == (1, "")


def test_ranks_that_end_in_a_run_before_the_one_that_goes_on_are_started_again_for_that(script):
    """The script has passed over the first run, or was about to."""
    watched, started = script
    begins_in("first", "null")
    is_restored(watched, started, name="second")
    assert started[0].told == f"3 {Path('second').absolute()}"
    Path("answers", ANSWER).write_text(Found.now(Path("first").absolute()).text())
    assert watched.take_next(213) is started[1]
    assert started[1].told == started[0].told


def test_new_slots_are_for_all_runs_of_a_script(script):
    watched, started = script
    Path("hosts").write_text("a slots=3\n")
    watched = Watch(Placement(3, hostfile="hosts"), watched.start, lambda _: None, False, Answers())
    watched.begin(RunDirectory(Path("answers").absolute(), resumed=False, of_script=True))
    begins_in("first", "{after: 0.2}")
    watched.look()
    Path("hosts").write_text("a slots=5\n")
    watched.look()
    time.sleep(0.25)
    begins_in("second", "{after: 0.2}")
    watched.look()
    assert len(started) == 1
    watched.close()


def test_that_it_was_too_often_is_said_for_each_run(script, capsys):
    watched, started = script
    is_restored(watched, started, "{after: 0.01, per_hour: 1}")
    for name in ("second", "third"):
        begins_in(name, "{after: 0.01, per_hour: 1}")
        Path(name, "lost.csv").write_text(LOST.format(1))
        assert not is_asked(watched)
    assert (len(started), capsys.readouterr().err.count("1 times in the last hour")) == (1, 2)
