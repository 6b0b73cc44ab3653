"""When `psgc launch` starts a run again: what it looks at."""

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from psgc.errors import UserError
from psgc.launching.hosts import slots_of
from psgc.launching.mpirun import Placement
from psgc.launching.outcome import RunDirectory
from psgc.launching.restoring import Watch
from psgc.run.launched import READY, UNDO
from tests.unit.watched import LOST, Answers, Ranks, begins, is_asked, is_ready, watch


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("a slots=4\nb  slots = 2 max_slots=8\n", 6),
        ("a max_slots=8 slots=4\nb max-slots=9  # slots=7\n", 5),
        ("# all of them\na:3\n\n  b\nc # two cores\n", 5),
        ("10.0.0.1 slots=2\nnode-7.example.org:2\n", 4),
        (None, 0),
    ],
)
def test_a_host_file_says_how_many_ranks_there_can_be(tmp_path, text, slots):
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    assert sum(slots_of(Placement(2, hostfile=str(path))).values()) == slots


def test_what_an_earlier_run_has_left_is_not_looked_at(run_before):
    watched = watch()
    assert not is_asked(watched)
    Path("out/lost.csv").unlink()
    begins()
    assert not is_asked(watched)


@pytest.mark.parametrize(("code", "ends"), [(2, False), (2, True), (143, False)])
def test_a_second_launch_leaves_the_files_of_the_run_that_has_the_directory(run_before, code, ends):
    """Its own run was refused, or stopped before; meanwhile that run may end to undo a step."""
    files = [Path("out", name) for name in (READY, UNDO)]
    for file in files:
        file.touch()
    second = watch()
    if ends:
        Path("out/summary.json").write_text('{"status": "interrupted"}')
    assert second.take_next(code) is None
    second.close()
    assert all(file.exists() for file in files)


def test_without_the_key_a_run_is_left_alone(run_before):
    watched = watch()
    begins("null")
    assert not is_asked(watched)


def test_a_run_that_lacks_a_worker_is_asked_to_end_in_one_line(run_before, capsys):
    watched = watch()
    begins()
    Path("out/lost.csv").write_text(LOST.format(2))
    assert is_asked(watched)
    assert watched.look()
    line = "psgc launch: worker 2 gone for 0.1 s: the run starts again from here, with 3 ranks (faults.restore)\n"
    assert capsys.readouterr().err == line


def test_a_run_that_is_over_is_not_started_again(run_before):
    """Its loggers may still send."""
    watched = watch()
    begins()
    Path("out/lost.csv").write_text(LOST.format(2))
    Path("out/summary.json").write_text('{"status": "done"}')
    assert not is_asked(watched)
    assert not Path("out/.ready").exists()


def test_ranks_that_wait_for_a_run_that_is_over_are_ended(run_before):
    """Its program may work on: told to end, it would be killed."""
    made = []
    watched = Watch(Placement(3), lambda *_: made.append(Ranks()) or made[0], lambda _: None, False, Answers())
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins()
    Path("out/lost.csv").write_text(LOST.format(2))
    assert not is_asked(watched)
    assert not made[0].has_ended
    Path("out/summary.json").write_text('{"status": "done"}')
    Path("out", READY).touch()
    assert not is_asked(watched)
    assert made[0].has_ended


def test_where_each_of_three_processes_is_a_worker_the_third_one_is_missed_and_a_fourth_slot_is_new(run_before, capsys):
    watched = watch(hostfile="hosts")
    begins(more="dedicated_server: false\n")
    Path("out/lost.csv").write_text(LOST.format(3))
    assert is_asked(watched)
    assert "worker 3 gone for 0.1 s: the run starts again from here, with 3 ranks" in capsys.readouterr().err
    watched = watch(hostfile="hosts")
    begins(more="dedicated_server: false\n")
    Path("hosts").write_text("a slots=4\n")
    assert is_asked(watched)
    assert watched.placement.ranks == 4


def test_a_worker_that_is_back_is_not_missed(run_before):
    watched = watch()
    begins()
    Path("out/lost.csv").write_text(LOST.format(2) + "7,2,,returned,\n8,1,n1,wrong,chunk 3\n")
    assert not is_asked(watched)


def test_the_run_goes_on_when_its_workers_are_back_before_the_new_ranks_are_ready(run_before, capsys):
    def start(_, file, told):
        files.append(file)
        return Ranks()

    files = []
    watched = Watch(Placement(4), start, lambda _: None, False, Answers())
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins("{lost: 2, after: 0.05, per_hour: 1}")
    two = LOST.format(2) + "5,3,n1,lost,its process died\n"
    Path("out/lost.csv").write_text(two)
    assert not is_asked(watched)
    (file,) = files
    Path("new").write_text(two + "7,3,,returned,\n")
    os.replace("new", "out/lost.csv")
    file.touch()
    assert not is_asked(watched)
    assert (
        capsys.readouterr().err
        == "psgc launch: worker 3 came back before the new ranks were ready: the run goes on as it is\n"
    )
    assert not file.exists()
    Path("new").write_text(two)
    os.replace("new", "out/lost.csv")
    assert not is_asked(watched)
    files[-1].touch()
    assert is_asked(watched)


def test_a_run_that_may_leave_no_checkpoint_at_its_end_needs_one(run_before):
    watched = watch(needs_checkpoint=True)
    begins()
    assert not is_asked(watched)
    Path("out/checkpoints/00000004.safetensors").touch()
    assert is_asked(watched)


def test_more_slots_than_at_the_start_give_more_ranks(run_before, capsys):
    Path("out/lost.csv").unlink()
    watched = watch(hostfile="hosts")
    begins()
    assert not is_asked(watched)
    Path("hosts").write_text("a slots=3\nb slots=2\n")
    assert is_asked(watched)
    assert watched.placement == Placement(5, hostfile="hosts")
    line = "psgc launch: hosts has more slots: the run starts again from here, with 5 ranks (faults.restore)\n"
    assert capsys.readouterr().err == line


def test_a_run_that_cannot_have_more_ranks_keeps_its_own(run_before, capsys):
    def refuses(ranks):
        raise UserError(f"the file is for 2 workers, not {ranks - 1}")

    Path("out/lost.csv").unlink()
    watched = watch(refuses, hostfile="hosts")
    begins()
    watched.look()
    Path("hosts").write_text("a slots=4\n")
    assert not is_asked(watched)
    expected = "psgc launch: hosts has 4 slots, but the run keeps its ranks: the file is for 2 workers, not 3\n"
    assert capsys.readouterr().err == expected


class Starts:
    """Starts ranks as `is_ready`, but not until `failing` is empty: each entry is an error, or None for dead ranks."""

    def __init__(self, *failing):
        self.failing, self.at = [*failing], []

    def __call__(self, placement, file, told):
        self.at.append(time.monotonic())
        if not self.failing:
            return is_ready(placement, file)
        if error := self.failing.pop(0):
            raise error
        ranks = Ranks()
        ranks.has_ended = True
        return ranks


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (None, "the run goes on, since 3 ranks did not start"),
        (UserError("--hostfile h: no such file"), "the run goes on: --hostfile h: no such file"),
    ],
)
def test_ranks_that_do_not_start_leave_the_run_as_it_is_and_do_not_count_as_a_start(run_before, capsys, failure, why):
    """They are tried again after twice as long, then after twice as long as that, and a line says why once."""
    start = Starts(failure, failure, failure)
    watched = Watch(Placement(3), start, lambda _: None, False, Answers())
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins("{after: 0.01, per_hour: 1}")
    assert is_asked(watched)
    assert len(start.at) == 4
    waits = zip((0.02, 0.04, 0.08), pairwise(start.at), strict=True)
    assert all(later - before >= wait for wait, (before, later) in waits)
    line = f"psgc launch: worker 1 gone for 0.01 s; {why}"
    assert capsys.readouterr().err.splitlines()[:-1] == [line]


def test_without_a_host_the_run_goes_on_on_those_that_are_left_until_it_answers(run_before, capsys):
    whole, answers = Placement(5, host="a:3,b:2"), Answers("b")
    watched = Watch(whole, is_ready, lambda _: None, False, answers)
    Path("out/lost.csv").unlink()
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins("{after: 0.05}")
    watched.look()
    assert watched.take_next(0) is None, "there is no checkpoint yet"
    Path("out/checkpoints/00000004.safetensors").touch()
    assert watched.take_next(1) is None, "the run has failed"
    assert watched.take_next(0) is not None
    assert watched.placement == Placement(3, host="a:3")
    watched.begin(RunDirectory(Path("out"), resumed=True))
    begins("{after: 0.05}")
    assert not is_asked(watched)
    answers.hosts.clear()
    assert is_asked(watched)
    assert watched.placement == whole
    assert [line.partition(": the run")[0] for line in capsys.readouterr().err.splitlines()] == [
        "psgc launch: no answer from b",
        "psgc launch: all hosts answer",
    ]


def test_where_ssh_reaches_no_host_nobody_knows_which_one_is_gone(run_before, capsys):
    """The run is for the scheduler to start again."""
    started = []
    watched = Watch(
        Placement(5, host="a:1,b:2,c:2"), lambda *_: started.append(1), lambda _: None, False, Answers(mute="bc")
    )
    Path("out/lost.csv").unlink()
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins()
    watched.look()
    Path("out/checkpoints/00000004.safetensors").touch()
    assert watched.take_next(0) is None
    assert started == []
    why = "ssh does not reach b, c, so nobody knows which hosts are gone"
    line = f"psgc launch: {why}: the run does not start again on the others (faults.restore)\n"
    assert capsys.readouterr().err == line


def test_a_host_that_ssh_has_never_reached_is_not_waited_for(run_before, capsys):
    """Where another host is known to be gone, the run goes on without both."""
    answers = Answers("c", mute="b")
    watched = Watch(Placement(5, host="a:2,b:1,c:2"), is_ready, lambda _: None, False, answers)
    Path("out/lost.csv").unlink()
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins("{after: 0.05}")
    watched.look()
    Path("out/checkpoints/00000004.safetensors").touch()
    assert watched.take_next(0) is not None
    assert watched.placement == Placement(2, host="a:2")
    watched.begin(RunDirectory(Path("out"), resumed=True))
    begins("{after: 0.05}")
    answers.hosts.clear()
    assert not is_asked(watched)
    assert "no answer from b, c: the run starts again, with 2 ranks" in capsys.readouterr().err


def test_ranks_that_wait_are_ended_before_others_start(run_before):
    """Otherwise both would have the directory."""
    made = []

    def start(_, file, told):
        made.append(is_ready(_, file))
        return made[-1]

    watched = Watch(Placement(5, host="a:3,b:2"), start, lambda _: None, False, Answers())
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins("{after: 0.05}")
    Path("out/lost.csv").write_text(LOST.format(2))
    Path("out/checkpoints/00000004.safetensors").touch()
    assert is_asked(watched)
    assert watched.take_next(137) is made[1]
    assert made[0].has_ended
    assert not Path("out", READY).exists()


def test_a_script_that_can_no_longer_start_ends_the_run_as_usual(run_before, capsys):
    def start(*_):
        raise UserError("train.py:3: not valid Python")

    watched = Watch(Placement(5, host="a:3,b:2"), start, lambda _: None, False, Answers("b"))
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins("{after: 0.05}")
    watched.look()
    Path("out/checkpoints/00000004.safetensors").touch()
    assert watched.take_next(0) is None
    assert capsys.readouterr().err.endswith("psgc launch: the run cannot start again: train.py:3: not valid Python\n")


def test_that_it_was_too_often_is_said_once(run_before, capsys):
    watched = watch()
    begins("{after: 0.01, per_hour: 1}")
    assert is_asked(watched)
    Path("out/summary.json").write_text('{"status": "interrupted"}')
    assert watched.take_next(138) is not None
    watched.begin(RunDirectory(Path("out"), resumed=True))
    assert not Path("out", READY).exists(), "the ranks go on"
    begins("{after: 0.01, per_hour: 1}")
    assert not is_asked(watched)
    too_often = "the run goes on, since it was started again 1 times in the last hour (faults.restore.per_hour)"
    assert capsys.readouterr().err.splitlines()[1:] == [f"psgc launch: worker 1 gone for 0.01 s; {too_often}"]
