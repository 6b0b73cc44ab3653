"""When `psgc launch` starts a run again: the decision, and what it looks at."""

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from psgc.config.faults import Restore
from psgc.errors import UserError
from psgc.launching.hosts import slots_of
from psgc.launching.mpirun import Placement
from psgc.launching.outcome import RunDirectory
from psgc.launching.restores import HOUR, Restores
from psgc.launching.restoring import Watch
from psgc.run.launched import ANSWER, READY, UNDO, Found
from tests.unit.fake_mpirun import RUN

# the decision

TWO_FOR_TEN = Restore(lost=2, after=10.0, per_hour=2)


def due(restores, now, ranks=5):
    return restores.due(TWO_FOR_TEN, ranks, now)


def test_each_of_so_many_workers_has_to_be_gone_for_so_long():
    restores = Restores()
    restores.lacks({1}, 0.0)
    restores.lacks({1, 3}, 4.0)
    assert due(restores, 13.9) == []
    assert due(restores, 14.0) == [1, 3]


def test_a_worker_that_came_back_is_gone_anew():
    restores = Restores()
    restores.lacks({1, 3}, 0.0)
    restores.lacks({3}, 9.0)
    restores.lacks({1, 3}, 9.5)
    assert due(restores, 11.0) == []
    assert due(restores, 19.5) == [1, 3]


def test_one_new_rank_is_enough_and_does_not_count_as_a_lost_one():
    restores = Restores()
    restores.lacks({1, 5}, 0.0)
    assert due(restores, 10.0) == [5]
    assert due(restores, 10.0, ranks=6) == [1, 5]


def test_a_run_is_started_again_so_often_in_any_hour():
    restores = Restores()
    for begun in (0.0, 100.0):
        assert restores.may_begin(TWO_FOR_TEN, begun)
        restores.begins(begun)
    assert not restores.may_begin(TWO_FOR_TEN, HOUR - 0.1)
    assert restores.may_begin(TWO_FOR_TEN, HOUR)
    restores.begins(HOUR)
    assert not restores.may_begin(TWO_FOR_TEN, HOUR + 99.9)


def test_after_starts_that_have_failed_the_next_one_waits_longer_up_to_the_usual_time_between_two():
    restores, waits = Restores(), []
    for _ in range(10):
        restores.lacks({1, 3}, 0.0)
        waits.append(next(wait for wait in range(4000) if due(restores, wait)))
        restores.tries()
        restores.fails()
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 1800, 1800]
    restores.begins(0.0)
    restores.lacks({1, 3}, 0.0)
    assert due(restores, 10.0) == [1, 3]


def test_nobody_is_missed_when_the_run_begins_again():
    restores = Restores()
    restores.lacks({1, 3}, 0.0)
    restores.begins(10.0)
    restores.lacks({1, 3}, 10.0)
    assert due(restores, 19.0) == []


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


# what it looks at

LOST = "iteration,worker,host,event,reason\n5,{},n1,lost,its process died\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With the directory `out` of an earlier run, which has lost worker 1."""
    monkeypatch.chdir(tmp_path)
    Path("out/checkpoints").mkdir(parents=True)
    Path("out/config.yaml").write_text(RUN)
    Path("out/lost.csv").write_text(LOST.format(1))
    Path("hosts").write_text("a slots=3\n")
    return tmp_path


class Answers:
    """hosts: those that do not answer; mute: those that never do; begun: those that were asked as the run began."""

    def __init__(self, *hosts, mute=()):
        self.hosts, self.mute, self.begun = set(hosts), set(mute), set()

    def begin(self, hosts):
        self.begun |= set(hosts)

    def unreached(self, hosts):
        return self.mute & set(hosts) & self.begun

    def silent(self, hosts):
        return self.hosts & set(hosts)

    def all_answer(self, hosts):
        return not self.silent(hosts)


class Ranks:
    """That were started."""

    has_ended = False

    def kill(self):
        self.has_ended = True


def is_ready(_, file):
    """Ranks are started, and ready at once."""
    if file is not None:
        file.touch()
    return Ranks()


def watch(refuses=lambda _: None, needs_checkpoint=False, hostfile=None):
    """Of a run of three ranks that has not begun."""
    found = Watch(Placement(3, hostfile=hostfile), is_ready, refuses, needs_checkpoint, Answers())
    found.begin(RunDirectory(Path("out"), resumed=False))
    return found


def begins(restore="{lost: 1, after: 0.1}", more=""):
    """The run writes its settings, with the user's variables expanded."""
    Path("new").write_text(f"{RUN}initial: a$b.npy\nfaults: {{restore: {restore}}}\n{more}")
    os.replace("new", "out/config.yaml")


def is_asked(watched):
    """Whether the run is asked to end within 0.4 s, or longer where looks take long."""
    for _ in range(40):
        if watched.look():
            break
        time.sleep(0.01)
    return watched.is_asked


def test_what_an_earlier_run_has_left_is_not_looked_at(folder):
    watched = watch()
    assert not is_asked(watched)
    Path("out/lost.csv").unlink()
    begins()
    assert not is_asked(watched)


@pytest.mark.parametrize(("code", "ends"), [(2, False), (2, True), (143, False)])
def test_a_second_launch_leaves_the_files_of_the_run_that_has_the_directory(folder, code, ends):
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


def test_without_the_key_a_run_is_left_alone(folder):
    watched = watch()
    begins("null")
    assert not is_asked(watched)


def test_a_run_that_lacks_a_worker_is_asked_to_end_in_one_line(folder, capsys):
    watched = watch()
    begins()
    Path("out/lost.csv").write_text(LOST.format(2))
    assert is_asked(watched)
    assert watched.look()
    line = "psgc launch: worker 2 gone for 0.1 s: the run starts again from here, with 3 ranks (faults.restore)\n"
    assert capsys.readouterr().err == line


def test_a_run_that_is_over_is_not_started_again(folder):
    """Its loggers may still send."""
    watched = watch()
    begins()
    Path("out/lost.csv").write_text(LOST.format(2))
    Path("out/summary.json").write_text('{"status": "done"}')
    assert not is_asked(watched)
    assert not Path("out/.ready").exists()


def test_ranks_that_wait_for_a_run_that_is_over_are_ended(folder):
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


def test_where_each_of_three_processes_is_a_worker_the_third_one_is_missed_and_a_fourth_slot_is_new(folder, capsys):
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


def test_a_worker_that_is_back_is_not_missed(folder):
    watched = watch()
    begins()
    Path("out/lost.csv").write_text(LOST.format(2) + "7,2,,returned,\n8,1,n1,wrong,chunk 3\n")
    assert not is_asked(watched)


def test_the_run_goes_on_when_its_workers_are_back_before_the_new_ranks_are_ready(folder, capsys):
    def start(_, file):
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


def test_a_run_that_may_leave_no_checkpoint_at_its_end_needs_one(folder):
    watched = watch(needs_checkpoint=True)
    begins()
    assert not is_asked(watched)
    Path("out/checkpoints/00000004.safetensors").touch()
    assert is_asked(watched)


def test_more_slots_than_at_the_start_give_more_ranks(folder, capsys):
    Path("out/lost.csv").unlink()
    watched = watch(hostfile="hosts")
    begins()
    assert not is_asked(watched)
    Path("hosts").write_text("a slots=3\nb slots=2\n")
    assert is_asked(watched)
    assert watched.placement == Placement(5, hostfile="hosts")
    line = "psgc launch: hosts has more slots: the run starts again from here, with 5 ranks (faults.restore)\n"
    assert capsys.readouterr().err == line


def test_a_run_that_cannot_have_more_ranks_keeps_its_own(folder, capsys):
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

    def __call__(self, placement, file):
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
def test_ranks_that_do_not_start_leave_the_run_as_it_is_and_do_not_count_as_a_start(folder, capsys, failure, why):
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


def test_without_a_host_the_run_goes_on_on_those_that_are_left_until_it_answers(folder, capsys):
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


def test_where_ssh_reaches_no_host_nobody_knows_which_one_is_gone(folder, capsys):
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


def test_a_host_that_ssh_has_never_reached_is_not_waited_for(folder, capsys):
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


def test_ranks_that_wait_are_ended_before_others_start(folder):
    """Otherwise both would have the directory."""
    made = []

    def start(_, file):
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


def test_a_script_that_can_no_longer_start_ends_the_run_as_usual(folder, capsys):
    def start(*_):
        raise UserError("train.py:3: not valid Python")

    watched = Watch(Placement(5, host="a:3,b:2"), start, lambda _: None, False, Answers("b"))
    watched.begin(RunDirectory(Path("out"), resumed=False))
    begins("{after: 0.05}")
    watched.look()
    Path("out/checkpoints/00000004.safetensors").touch()
    assert watched.take_next(0) is None
    assert capsys.readouterr().err.endswith("psgc launch: the run cannot start again: train.py:3: not valid Python\n")


def test_that_it_was_too_often_is_said_once(folder, capsys):
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


# scripts with several runs


def begins_in(name, restore):
    """The next run of the script begins in this directory."""
    (out := Path(name).absolute()).mkdir(exist_ok=True)
    Path("new").write_text(Found.now(out).text())
    os.replace("new", Path("answers", ANSWER))
    Path("new").write_text(f"{RUN}dedicated_server: true\nfaults: {{restore: {restore}}}\n")
    os.replace("new", out / "config.yaml")


@pytest.fixture
def script(folder):
    """The watch of a script of three ranks, and the ranks that it has started."""
    started = []

    def start(_, file):
        started.append(is_ready(_, file))
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


def test_a_run_that_begins_right_before_hosts_are_lost_starts_again_by_its_own_settings(folder):
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
    begins_in("first", "{after: 0.01}")
    Path("first/lost.csv").write_text(LOST.format(1))
    assert is_asked(watched)
    Path("first/summary.json").write_text('{"status": "interrupted"}')
    (again,) = started
    assert watched.take_next(138) is again
    Path("answers", ANSWER).unlink()
    watched.begin(RunDirectory(Path("answers").absolute(), resumed=False, of_script=True))
    Path("first/lost.csv").unlink()
    begins_in("first", "{after: 0.01}")
    watched.look()
    Path("first/restores.csv").touch()
    begins_in("second", "{after: 0.01}")
    watched.look()
    capsys.readouterr()
    assert watched.take_next(137) is None
    assert (started, capsys.readouterr().err) == ([again], "")


def test_a_run_that_follows_it_may_end_before_it_has_said_its_settings(script, capsys):
    watched, started = script
    begins_in("first", "{after: 0.01}")
    Path("first/lost.csv").write_text(LOST.format(1))
    assert is_asked(watched)
    Path("first/summary.json").write_text('{"status": "interrupted"}')
    assert watched.take_next(138) is started[0]
    Path("answers", ANSWER).unlink()
    watched.begin(RunDirectory(Path("answers").absolute(), resumed=False, of_script=True))
    Path("first/restores.csv").touch()
    Path("second").mkdir()
    Path("answers", ANSWER).write_text(Found.now(Path("second").absolute()).text())
    capsys.readouterr()
    assert watched.take_next(137) is None
    assert (len(started), capsys.readouterr().err) == (1, "")


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
    for name in ("first", "second", "third"):
        begins_in(name, "{after: 0.01, per_hour: 1}")
        Path(name, "lost.csv").write_text(LOST.format(1))
        assert is_asked(watched) == (name == "first")
        if name == "first":
            Path("first/summary.json").write_text('{"status": "interrupted"}')
            assert watched.take_next(138) is started[0]
            Path("answers", ANSWER).unlink()
            watched.begin(RunDirectory(Path("answers").absolute(), resumed=False, of_script=True))
    assert (len(started), capsys.readouterr().err.count("1 times in the last hour")) == (1, 2)
