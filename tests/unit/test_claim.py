"""Who has a run directory: one run at a time, whatever happened to the one before, and where its files go."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from psgc.errors import RunFailed, UserError
from psgc.launching.outcome import RunDirectory
from psgc.record.loggers import OPEN
from psgc.run import claim as module
from psgc.run.claim import LOCK, Claim
from psgc.run.launched import JOB, JOBS, READY, UNDO, jobs_of

HOLD = """
import sys
from pathlib import Path
from psgc.run.claim import Claim
claim = Claim(Path(sys.argv[1]))
claim.make_room(resuming=False)
Path(sys.argv[1], "iterations.csv").write_text("")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """Where tests are, with less patience."""
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("PATIENCE", 0.1), ("WATCHED", 0.4), ("TOUCHED", 0.02)):
        monkeypatch.setattr(module, name, seconds)


@contextmanager
def another_process():
    """A run of another process that has `out`."""
    command = [sys.executable, "-c", HOLD, "out"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@contextmanager
def claimed(directory="out", resuming=False, record="rows\n"):
    """A run in this process; it leaves its record, as every run does."""
    claim = Claim(Path(directory))
    try:
        claim.make_room(resuming)
        Path(directory, "iterations.csv").write_text(record)
        yield
    finally:
        claim.release()


def refusal(directory="out", claim=None):
    """Why a run cannot have the directory."""
    with pytest.raises(UserError, match=r"^output: ") as caught:
        (claim or Claim(Path(directory))).make_room(resuming=False)
    return str(caught.value)


def holder():
    """Who has `out`, as its lock says."""
    about = json.loads(Path("out", LOCK).read_text())
    return about["host"], about["pid"]


def test_the_second_run_is_refused_before_it_touches_anything():
    with another_process() as process:
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        Path("link").symlink_to("out")
        for name in ("out", "link"):
            with pytest.raises(UserError) as caught:
                Claim(Path(name))
            assert str(caught.value) == (
                f"output: {name}: another run uses it (process {process.pid} on {socket.gethostname()}); "
                "wait for its end, or give another directory"
            )
        Path("link").unlink()
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
        assert os.listdir() == ["out"]


def test_who_takes_over_from_a_dead_rank_0_of_another_host_has_the_directory_at_once(monkeypatch, capsys):
    with another_process() as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        about = json.loads(Path("out", LOCK).read_text())
        Path("out", LOCK).write_text(json.dumps({**about, "boot": "of another host"}))
        successor = Claim(Path("out"), term=4)
        successor.make_room(resuming=True)
        successor.check()
        assert holder() == (socket.gethostname(), os.getpid())
        assert "waiting" not in capsys.readouterr().err
        successor.release()


def test_nobody_takes_over_from_a_rank_0_that_lives():
    """It has been cut off from the others."""
    with another_process(), pytest.raises(UserError, match="another run uses it"):
        Claim(Path("out"), term=4)


def test_a_rank_0_whose_claim_was_taken_over_may_not_write_and_leaves_the_claim_to_the_other_one():
    claim = Claim(Path("out"))
    claim.make_room(resuming=False)
    claim.check()
    lock = Path("out", LOCK)
    other = {"host": "h2", "pid": 4711, "boot": "b", "term": 4}
    lock.write_text(json.dumps(other))
    with pytest.raises(RunFailed, match=r"^process 4711 on h2 has taken over as the server, which"):
        claim.check()
    claim.release()
    assert json.loads(lock.read_text()) == other


@pytest.mark.parametrize("resuming", [True, False])
def test_after_a_kill_it_is_free_at_once(resuming):
    with another_process() as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert Path("out", LOCK).exists()
        with claimed(resuming=resuming):
            assert holder() == (socket.gethostname(), os.getpid())
    assert sorted(os.listdir()) == (["out"] if resuming else ["out", "out.1"])
    assert not [*Path().rglob(LOCK)]


def test_after_a_kill_it_is_free_though_a_child_of_the_dead_process_goes_on():
    """As the processes of a model's own pool do."""
    fork = "import os, time\nif os.fork() == 0:\n    time.sleep(20)\nelse:\n    os.kill(os.getpid(), 9)\n"
    held = HOLD.replace('print("held", flush=True)\nsys.stdin.read()\n', fork)
    assert held != HOLD
    with subprocess.Popen([sys.executable, "-c", held, "out"], start_new_session=True) as process:
        try:
            assert process.wait(20) == -signal.SIGKILL
            with claimed(resuming=True):
                assert holder() == (socket.gethostname(), os.getpid())
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_of_two_that_begin_together_one_is_refused():
    """Both find no directory, and then both want to make it."""
    first, second = Claim(Path("out")), Claim(Path("out"))
    first.make_room(resuming=False)
    for _ in range(2):
        assert "another run uses it" in refusal(claim=second)
        Path("out/iterations.csv").write_text("")
    assert os.listdir() == ["out"]
    for claim in (first, second):
        claim.release()


def test_a_lock_that_was_moved_with_its_directory_is_not_the_directorys(monkeypatch):
    """It was opened just before the one who had it renamed the directory, and is free now."""
    with claimed():
        pass
    flock, moved = fcntl.flock, []

    def flock_late(descriptor, how):
        if not moved:
            moved.append(Path("out").rename("out.1"))
            Path("out").mkdir()
        flock(descriptor, how)

    monkeypatch.setattr(module.fcntl, "flock", flock_late)
    with claimed(resuming=True), Path("out", LOCK).open() as stream, pytest.raises(BlockingIOError):
        flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


# other hosts


def of_another_host(lock='{"host": "n17", "pid": 4711, "boot": "another"}'):
    Path("out").mkdir()
    Path("out/iterations.csv").write_text("rows\n")
    Path("out", LOCK).write_text(lock)


def test_a_run_of_another_host_that_still_goes_is_noticed_without_a_lock(capsys):
    of_another_host()
    over = threading.Event()

    def touch():
        while not over.wait(0.02):
            os.utime(Path("out", LOCK))

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        assert "another run uses it (process 4711 on n17)" in refusal()
    finally:
        over.set()
        toucher.join()
    assert "run.lock names process 4711 on n17; waiting 0.4 s to see whether it still runs" in capsys.readouterr().err


@contextmanager
def lock_of_another_host():
    """A process of this host that has the lock of `out`, in place of one of another host: the file says so."""
    with another_process() as process:
        about = json.loads(Path("out", LOCK).read_text())
        Path("out", LOCK).write_text(json.dumps({**about, "host": "n17", "pid": 4711, "boot": "another"}))
        yield process


@pytest.mark.parametrize("term", [0, 4])
def test_a_lock_that_stays_though_its_host_has_lost_its_power_is_passed_over(capsys, term):
    """As on NFS. Here its process is stopped: so it has the lock, and does not touch the file."""
    with lock_of_another_host() as process:
        process.send_signal(signal.SIGSTOP)
        claim = Claim(Path("out"), term)
        claim.make_room(resuming=True)
        claim.check()
        assert holder() == (socket.gethostname(), os.getpid())
        assert "names process 4711 on n17; waiting 0.4 s to see" in capsys.readouterr().err
        process.kill()
        process.wait()  # now the lock is free, which nobody has
        for later in (0, term + 1):
            with pytest.raises(UserError, match=f"another run uses it .process {os.getpid()} on"):
                Claim(Path("out"), later)
        claim.check()
        claim.release()


@pytest.mark.parametrize("term", [0, 4])
def test_a_process_that_has_passed_over_a_lock_and_died_does_not_keep_its_own_host_out(term):
    """The lock of the host that has lost its power is still there."""
    with lock_of_another_host() as process:
        process.send_signal(signal.SIGSTOP)
        about = {"host": socket.gethostname(), "pid": 4712, "boot": module._boot(), "locked": False}
        Path("out", LOCK).write_text(json.dumps(about))
        claim = Claim(Path("out"), term)
        assert holder() == (socket.gethostname(), os.getpid())
        claim.release()


@pytest.mark.parametrize("term", [0, 4])
def test_a_lock_of_another_host_whose_process_lives_is_not_passed_over(monkeypatch, term):
    monkeypatch.setattr(module, "WATCHED", 4.0)  # that process touches the file every two seconds
    with lock_of_another_host(), pytest.raises(UserError, match=r"another run uses it \(process 4711 on n17\)"):
        Claim(Path("out"), term)


def test_a_file_server_that_does_not_answer_for_long_counts_as_one_look(monkeypatch):
    """Its clients go on only afterwards: one of them is the process that touches the file."""
    of_another_host()
    looks, last_touched = [], module.last_touched

    def slow(directory):
        looks.append(directory)
        if len(looks) == 2:
            module.time.sleep(0.5)
        if len(looks) == 5:
            os.utime(Path("out", LOCK))
        return last_touched(directory)

    monkeypatch.setattr(module, "last_touched", slow)
    assert "another run uses it (process 4711 on n17)" in refusal()


def test_a_run_of_another_host_that_ends_while_it_is_watched_leaves_its_directory(monkeypatch):
    of_another_host()
    threading.Timer(0.1, Path("out", LOCK).unlink).start()
    with claimed(resuming=True):
        assert holder() == (socket.gethostname(), os.getpid())


def test_a_run_of_another_host_that_is_over_is_not_waited_for_longer():
    of_another_host()
    with claimed(resuming=True):
        assert holder() == (socket.gethostname(), os.getpid())


def test_without_locks_in_the_file_system_the_signs_of_life_count(monkeypatch):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", none)
    with claimed():
        assert "another run uses it" in refusal()
    with claimed():
        pass


# what lies where the lock belongs


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"host": 1}', '{"host": "\\u001b[31m", "pid": 1, "boot": 2}', "[" * 900]
)
def test_a_lock_that_says_nothing_is_free_when_it_is_not_locked(content):
    of_another_host(content)
    with claimed():
        pass


@pytest.mark.parametrize(
    "make",
    [lambda path: path.symlink_to("../precious"), os.mkfifo, lambda path: os.link("precious", path), Path.mkdir],
    ids=["link", "pipe", "hard link", "directory"],
)
def test_what_is_no_file_of_ours_is_left_alone(make):
    of_another_host()
    Path("precious").write_text("precious")
    (path := Path("out", LOCK)).unlink()
    make(path)
    assert str(path) in refusal()
    assert Path("precious").read_text() == "precious"


# making room


@pytest.mark.parametrize("name", [UNDO, READY, OPEN])
@pytest.mark.parametrize(("term", "remains"), [(0, False), (1, True)])
def test_what_a_run_has_left_for_psgc_launch_is_of_that_run_and_no_later_one(name, term, remains):
    with claimed():
        pass
    wish = Path("out", name)
    wish.touch()
    claim = Claim(Path("out"), term)
    claim.make_room(resuming=True)
    claim.release()
    assert wish.exists() == remains


@pytest.mark.parametrize(("term", "remains"), [(0, False), (1, True)])
def test_a_half_checkpoint_of_a_killed_run_is_not_taken_for_one_of_the_next_run(term, remains):
    (checkpoints := Path("out/checkpoints")).mkdir(parents=True)
    Path("out/iterations.csv").touch()
    whole, half = checkpoints / "00000050-0123456789abcdef.safetensors", checkpoints / ".psgc-0123.tmp"
    for path in (whole, half):
        path.touch()
    left = RunDirectory(Path("out"), resumed=True)
    claim = Claim(Path("out"), term)
    assert left.is_writing()
    claim.make_room(resuming=True)
    assert (left.is_writing(), half.exists(), whole.exists()) == (remains, remains, True)
    claim.release()


def test_where_a_link_to_checkpoints_leads_nothing_is_removed():
    (other := Path("other")).mkdir()
    (half := other / ".psgc-0123.tmp").touch()
    Path("out").mkdir()
    Path("out/iterations.csv").touch()
    Path("out/checkpoints").symlink_to(other.absolute())
    with claimed(resuming=True):
        assert half.exists()


def test_the_run_names_the_jobs_that_have_begun_it_or_gone_on_with_it(monkeypatch):
    jobs, named = Path("out/.jobs"), []
    for job, resuming in (("12", False), ("12", True), ("13[1].server", True), (None, True), ("14", False)):
        monkeypatch.delenv("PSGC_JOB", raising=False)
        if job is not None:
            monkeypatch.setenv("PSGC_JOB", job)
        with claimed(resuming=resuming):
            named.append(jobs.read_text().split())
    assert named == [["12"], ["12"], *2 * [["12", "13[1].server"]], ["14"]]
    claim = Claim(Path("out"), term=1)
    monkeypatch.setenv("PSGC_JOB", "15")
    claim.make_room(resuming=True)
    claim.release()
    assert jobs.read_text().split() == ["14"], "who takes over is of the same job"


def test_a_job_that_was_killed_as_it_began_its_run_may_begin_it_again(monkeypatch):
    monkeypatch.setenv("PSGC_JOB", "12")
    claim = Claim(Path("out"))
    claim.make_room(resuming=False)
    claim.release()
    with claimed():
        pass
    assert os.listdir() == ["out"]


def test_earlier_runs_are_kept_under_a_number():
    for run in range(4):
        with claimed("runs/out", record=str(run)):
            pass
    assert sorted(os.listdir("runs")) == ["out", "out.1", "out.2", "out.3"]
    names = ("out.1", "out.2", "out.3", "out")
    assert [Path("runs", name, "iterations.csv").read_text() for name in names] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("job", ["", "12"])
def test_a_linked_directory_stays_a_link_and_earlier_runs_stay_where_it_leads(monkeypatch, job):
    if job:
        monkeypatch.setenv(JOB, job)
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(Path("scratch/me/mine").absolute())
    for run in range(2):
        with claimed("runs/mine", record=str(run)):
            pass
    assert (os.listdir("runs"), Path("runs/mine").is_symlink()) == (["mine"], True)
    assert sorted(os.listdir("scratch/me")) == ["mine", "mine.1"]
    names = ("scratch/me/mine.1", "scratch/me/mine", "runs/mine")
    assert [Path(name, "iterations.csv").read_text() for name in names] == ["0", "1", "1"]
    assert not [*Path("scratch").rglob(LOCK)]
    assert jobs_of(Path("scratch/me/mine")) == ((job,) if job else ())


def test_where_the_target_of_a_link_cannot_be_moved_the_link_is(monkeypatch, capsys):
    """A mount point, for example."""
    Path("scratch").mkdir()
    Path("mine").symlink_to("scratch")
    rename = Path.rename

    def refusing(path, to):
        if path.name == "scratch":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refusing)
    for run in range(2):
        with claimed("mine", record=str(run)):
            pass
    place = Path.cwd()
    line = f"psgc: {place}/scratch cannot be renamed (Device or resource busy): the run is in {place}/mine\n"
    assert capsys.readouterr().err == line
    names = ("scratch", "mine.1", "mine")
    assert [Path(name, "iterations.csv").read_text() for name in names] == ["0", "0", "1"]
    assert not [*Path().rglob(LOCK)]


def test_a_run_of_no_job_does_not_become_that_of_a_job_which_was_ended_before_it_began(monkeypatch):
    Path("out").mkdir()
    Path("out", JOBS).write_text("12\n")
    with claimed("out", record="by hand"):
        pass
    assert jobs_of(Path("out")) == ()


@pytest.mark.parametrize("output", ["out", "a/b/out", ".", "killed"])
def test_an_empty_directory_or_none_becomes_the_runs(output):
    if output == "out":
        Path("out").mkdir()
    if output == "killed":  # before it had written anything
        Path("killed").mkdir()
        Path("killed", LOCK).write_text('{"host": "with.a.long.name.example.org", "pid": 4711}' + 99 * "?")
        Path("killed/.psgc-0123.tmp").write_text("half")
    with claimed(output):
        assert json.loads(Path(output, LOCK).read_text())["pid"] == os.getpid()
    assert len(os.listdir()) == 1
    if output == ".":  # it is not renamed under our feet
        assert "give the run its own directory" in refusal(".")


@pytest.mark.parametrize("output", ["data", "."])
def test_other_files_are_neither_moved_nor_joined(output):
    Path("data").mkdir()
    Path("data/train.npz").write_bytes(b"precious")
    text = "holds other files, which stay where they are; give the run its own directory"
    assert refusal(output) == f"output: {output}: {text}"
    assert (os.listdir(), os.listdir("data")) == (["data"], ["train.npz"])


def test_an_output_that_cannot_be_written_is_one_line(monkeypatch):
    needed = "expected a directory that can be written"
    Path("file").write_text("")
    assert refusal("file") == f"output: file: File exists; {needed}"
    assert "Not a directory" in refusal("file/out")
    assert "File name too long" in refusal("x" * 300)
    Path("locked").mkdir()
    monkeypatch.setattr(os, "open", Mock(side_effect=PermissionError(errno.EACCES, os.strerror(errno.EACCES))))
    assert refusal("locked") == f"output: locked/run.lock: Permission denied; {needed}"
