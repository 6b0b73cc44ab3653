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

import pytest

from psgc.errors import UserError
from psgc.run import claim as module
from psgc.run.claim import LOCK, Claim

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
def impatient(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    monkeypatch.setattr(module, "WATCHED", 0.4)
    monkeypatch.setattr(module, "TOUCHED", 0.02)


@contextmanager
def another_process(directory):
    """A run of another process that has `directory`."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@contextmanager
def claimed(directory, resuming=False, record=True):
    """A run in this process; it leaves its record, as every run does."""
    claim = Claim(directory)
    try:
        claim.make_room(resuming)
        if record:
            (directory / "iterations.csv").write_text("rows\n")
        yield claim
    finally:
        claim.release()


def refusal(act):
    with pytest.raises(UserError) as caught:
        act()
    text = str(caught.value)
    assert text.startswith("output: ")
    return text


def test_the_second_run_is_refused_before_it_touches_anything(tmp_path):
    directory = tmp_path / "out"
    with another_process(directory) as process:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert refusal(lambda: Claim(directory)) == (
            f"output: {directory}: another run uses it (process {process.pid} on {socket.gethostname()}); "
            "wait for its end, or give another directory"
        )
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("resuming", [True, False])
def test_after_a_kill_it_is_free_at_once(tmp_path, resuming):
    with another_process(tmp_path / "out") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / "out" / LOCK).exists()
        with claimed(tmp_path / "out", resuming):
            about = json.loads((tmp_path / "out" / LOCK).read_text())
            assert (about["host"], about["pid"]) == (socket.gethostname(), os.getpid())
    assert sorted(os.listdir(tmp_path)) == (["out"] if resuming else ["out", "out.1"])
    assert not [*tmp_path.rglob(LOCK)]


def test_through_a_link_it_is_the_same_directory(tmp_path):
    (tmp_path / "link").symlink_to("out")
    with claimed(tmp_path / "out"):
        assert "another run uses it" in refusal(lambda: Claim(tmp_path / "link"))


def test_of_two_that_begin_together_one_is_refused(tmp_path):
    """Both find no directory, and then both want to make it."""
    first, second = Claim(tmp_path / "out"), Claim(tmp_path / "out")
    with released(first, second):
        first.make_room(resuming=False)
        assert "another run uses it" in refusal(lambda: second.make_room(resuming=False))
        (tmp_path / "out/iterations.csv").write_text("")
        assert "another run uses it" in refusal(lambda: second.make_room(resuming=False))
        assert os.listdir(tmp_path) == ["out"]


@contextmanager
def released(*claims):
    try:
        yield
    finally:
        for claim in claims:
            claim.release()


def test_a_lock_that_was_moved_with_its_directory_is_not_the_directorys(tmp_path, monkeypatch):
    """It was opened just before the one who had it renamed the directory, and is free now."""
    with claimed(tmp_path / "out"):
        pass
    flock, moved = fcntl.flock, []

    def flock_late(descriptor, how):
        if not moved:
            moved.append((tmp_path / "out").rename(tmp_path / "out.1"))
            (tmp_path / "out").mkdir()
        flock(descriptor, how)

    monkeypatch.setattr(module.fcntl, "flock", flock_late)
    with claimed(tmp_path / "out", resuming=True):
        monkeypatch.undo()
        with (tmp_path / "out" / LOCK).open() as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


# other hosts


def of_another_host(directory):
    directory.mkdir()
    (directory / "iterations.csv").write_text("rows\n")
    (directory / LOCK).write_text(json.dumps({"host": "n17", "pid": 4711, "boot": "another"}))


def test_a_run_of_another_host_that_still_goes_is_noticed_without_a_lock(tmp_path, capsys):
    of_another_host(tmp_path / "out")
    over = threading.Event()

    def touch():
        while not over.wait(0.02):
            os.utime(tmp_path / "out" / LOCK)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        assert "another run uses it (process 4711 on n17)" in refusal(lambda: Claim(tmp_path / "out"))
    finally:
        over.set()
        toucher.join()
    assert "run.lock names process 4711 on n17; waiting 0.4 s to see whether it still runs" in capsys.readouterr().err


def test_a_run_of_another_host_that_is_over_is_not_waited_for_longer(tmp_path):
    of_another_host(tmp_path / "out")
    with claimed(tmp_path / "out", resuming=True):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == os.getpid()


def test_without_locks_in_the_file_system_the_signs_of_life_count(tmp_path, monkeypatch):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", none)
    with claimed(tmp_path / "out"):
        assert "another run uses it" in refusal(lambda: Claim(tmp_path / "out"))
    with claimed(tmp_path / "out"):
        pass


# what lies where the lock belongs


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"host": 1}', '{"host": "\\u001b[31m", "pid": 1, "boot": 2}', "[" * 900]
)
def test_a_lock_that_says_nothing_is_free_when_it_is_not_locked(tmp_path, content):
    of_another_host(tmp_path / "out")
    (tmp_path / "out" / LOCK).write_text(content)
    with claimed(tmp_path / "out"):
        pass


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link", "directory"])
def test_what_is_no_file_of_ours_is_left_alone(tmp_path, kind):
    directory, precious = tmp_path / "out", tmp_path / "precious"
    of_another_host(directory)
    precious.write_text("precious")
    (path := directory / LOCK).unlink()
    match kind:
        case "link":
            path.symlink_to(precious)
        case "pipe":
            os.mkfifo(path)
        case "hard link":
            os.link(precious, path)
        case "directory":
            path.mkdir()
    assert str(path) in refusal(lambda: Claim(directory))
    assert precious.read_text() == "precious"


# making room


def test_earlier_runs_are_kept_under_a_number(tmp_path):
    for run in range(4):
        with claimed(tmp_path / "runs/out"):
            (tmp_path / "runs/out/iterations.csv").write_text(str(run))
    assert sorted(os.listdir(tmp_path / "runs")) == ["out", "out.1", "out.2", "out.3"]
    names = ("out.1", "out.2", "out.3", "out")
    assert [(tmp_path / "runs" / name / "iterations.csv").read_text() for name in names] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("output", ["out", "a/b/out", ".", "killed"])
def test_an_empty_directory_or_none_becomes_the_runs(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    if output == "out":
        Path("out").mkdir()
    if output == "killed":  # before it had written anything
        Path("killed").mkdir()
        Path("killed", LOCK).write_text("")
        Path("killed/.psgc-0123.tmp").write_text("half")
    with claimed(Path(output)):
        assert Path(output, LOCK).exists()
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("output", ["data", "."])
def test_other_files_are_neither_moved_nor_joined(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/train.npz").write_bytes(b"precious")
    text = refusal(lambda: Claim(Path(output)).make_room(resuming=False))
    assert text.startswith(f"output: {output}: holds other files, which stay where they are; give the run its own")
    assert os.listdir(tmp_path) == ["data"]
    assert os.listdir("data") == ["train.npz"]


def test_the_current_directory_is_not_renamed_under_our_feet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with claimed(Path(".")):
        pass
    claim = Claim(Path("."))
    with released(claim):
        assert "give the run its own directory" in refusal(lambda: claim.make_room(resuming=False))


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(output):
        return refusal(lambda: Claim(Path(output)).make_room(resuming=False))

    Path("file").write_text("")
    assert refused("file") == "output: file: File exists; a directory that can be written is needed"
    assert "Not a directory" in refused("file/out")
    assert "File name too long" in refused("x" * 300)
    Path("locked").mkdir()
    monkeypatch.setattr(os, "open", lambda *_: raise_denied())
    assert refused("locked") == "output: locked/run.lock: Permission denied; a directory that can be written is needed"


def raise_denied():
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
