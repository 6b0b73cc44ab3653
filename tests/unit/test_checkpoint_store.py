"""The store of checkpoints: one line of history, the newest whole ones stay, and writing disturbs nobody."""

import errno
import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from psgc import checkpoints as module
from psgc.checkpoints import CheckpointStore, Content, load_newest, load_same, newest_first, step_of, write_file


def bytes_of(step, content=b"of a state"):
    return Content(step, [content], {})


def write(store, step):
    """Whether the checkpoint is on the disk."""
    store.write(bytes_of(step))
    return store.flush(20)


def fill(directory, *steps):
    """Checkpoints of these steps; the path of the last one."""
    return [write_file(bytes_of(step), directory) for step in steps][-1]


def names(directory):
    return sorted(os.listdir(directory))


def numbers(directory):
    """The first digits of each name, which are a checkpoint's step."""
    return [name[:8] for name in names(directory)]


def newest_step(directory):
    return load_newest(directory, step_of)


def test_the_newest_that_waits_is_the_one_that_is_written(tmp_path, monkeypatch):
    opened, inside = threading.Event(), threading.Event()

    def slow(content, directory):
        inside.set()
        assert opened.wait(20)
        return write_file(content, directory)

    monkeypatch.setattr(module, "write_file", slow)
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    store.write(bytes_of(1))
    assert inside.wait(20)
    for iteration in (2, 3, 4):
        store.write(bytes_of(iteration))
    assert not store.flush(timeout=0.01)
    opened.set()
    assert store.flush(timeout=20)
    assert numbers(tmp_path / "checkpoints") == ["00000001", "00000004"]


def test_a_checkpoint_takes_the_place_of_those_of_its_step_and_of_later_ones(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (5, 10, 20, 30):
        assert store.save(bytes_of(step)) == ""
    assert numbers(tmp_path) == ["00000010", "00000020", "00000030"]
    assert store.save(bytes_of(20, b"of another state")) == ""
    assert [path.read_bytes() for path in newest_first(tmp_path)] == [b"of another state", b"of a state"]


def test_later_steps_are_given_up_if_there_is_a_whole_checkpoint_from_before(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    assert store.give_up_after(7) is None
    assert write(store, 8)
    assert store.give_up_after(7) is None
    for step in (10, 20, 30):
        assert write(store, step)
    next(tmp_path.glob("00000020*")).write_bytes(b"damaged")
    damaged = CheckpointStore(tmp_path, keep=5)
    assert damaged.give_up_after(25) == 10
    assert write(damaged, 26)
    assert numbers(tmp_path) == ["00000008", "00000010", "00000020"]
    assert write(damaged, 25)
    assert "00000025" in numbers(tmp_path)


def test_a_checkpoint_that_is_just_being_written_is_given_up_only_if_an_older_one_stays(tmp_path, monkeypatch):
    """With `keep: 1` it replaces the older one."""
    inside, real = threading.Event(), write_file

    def slow(content, directory):
        inside.set()
        threading.Event().wait(0.2)
        return real(content, directory)

    fill(tmp_path, 10)
    monkeypatch.setattr(module, "write_file", slow)
    for keep, left in ((2, 10), (1, None)):
        store = CheckpointStore(tmp_path, keep)
        inside.clear()
        store.write(bytes_of(20))
        assert inside.wait(20)
        assert (store.give_up_after(15), newest_step(tmp_path)) == (left, left or 20)


def test_what_a_slow_disk_takes_after_it_was_given_up_does_not_stay(tmp_path, monkeypatch):
    """Nor does it replace the older one."""
    opened, inside, real = threading.Event(), threading.Event(), write_file

    def slow(content, directory):
        inside.set()
        assert opened.wait(20)
        return real(content, directory)

    fill(tmp_path, 10)
    monkeypatch.setattr(module, "write_file", slow)
    store = CheckpointStore(tmp_path, keep=1)
    store.write(bytes_of(20))
    assert inside.wait(20)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore.flush, "__defaults__", (0.01,))
        assert store.give_up_after(15) == 10
    opened.set()
    assert store.flush(20)
    assert numbers(tmp_path) == ["00000010"]


def test_a_file_that_another_thread_removes_meanwhile_is_left_out(tmp_path, monkeypatch):
    path = fill(tmp_path, 10)
    gone = path.with_name(path.name.replace("10-", "11-"))
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([path, gone]))
    assert newest_first(tmp_path) == [path]


class Killed(BaseException):
    """The process ends: nothing is written any more."""


@pytest.mark.parametrize("end", range(7))
def test_a_process_that_is_killed_while_it_writes_leaves_a_checkpoint(tmp_path, monkeypatch, end):
    """It goes back from step 30 to step 20, and is killed at each of its calls of the operating system."""
    for step in (10, 20, 30):
        write_file(bytes_of(step, b"old"), tmp_path)
    calls = []

    def killed_at(owner, name):
        real = getattr(owner, name)

        def call(*arguments, **others):
            calls.append(name)
            if len(calls) > end:
                raise Killed
            return real(*arguments, **others)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        killed_at(owner, name)
    with pytest.raises(Killed) if end < 6 else nullcontext():
        CheckpointStore(tmp_path, keep=1).save(bytes_of(20, b"new"))
    found = load_newest(tmp_path, lambda path: (step_of(path), path.read_bytes()))
    assert found == ((30, b"old") if end < 4 else (20, b"new"))
    assert calls[:3] == ["fsync", "replace", "fsync"][: end + 1]
    assert end < 6 or numbers(tmp_path) == ["00000020"]


def test_the_newest_whole_ones_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        path = fill(tmp_path, step)
        if step in (2, 4):
            path.write_bytes(b"damaged")
    (tmp_path / ".psgc-17.tmp").write_bytes(b"left by a process that was killed")
    (tmp_path / "notes.txt").write_text("not ours")
    store = CheckpointStore(tmp_path, keep=2)
    assert write(store, 5)
    assert numbers(tmp_path) == ["00000003", "00000005", "notes.tx"]
    for iteration in (6, 7):
        assert write(store, iteration)
    assert numbers(tmp_path) == ["00000006", "00000007", "notes.tx"]
    assert newest_step(tmp_path) == 7


def test_another_rank_takes_only_the_file_that_rank_0_has(tmp_path):
    path = fill(tmp_path, 1)
    assert load_same(path, step_of) == 1
    path.write_bytes(b"damaged")
    assert load_same(path, step_of) is None
    path.unlink()
    assert load_same(path, step_of) is None


def test_what_is_no_file_keeps_no_other_from_being_removed(tmp_path):
    fill(tmp_path, 1, 2)
    (tmp_path / "00000003-0123456789abcdef.safetensors").mkdir()
    os.mkfifo(tmp_path / "00000004-0123456789abcdef.safetensors")
    store = CheckpointStore(tmp_path, keep=2)
    assert write(store, 5)
    assert numbers(tmp_path) == ["00000002", "00000003", "00000005"]


class SmallDisk:
    """Has room for so many checkpoints; `write_file` fails when it is full, as the real one does."""

    def __init__(self, monkeypatch, directory, room, number=errno.ENOSPC):
        self.directory, self.room, self.number = directory, room, number
        self.tried = []
        monkeypatch.setattr(module, "write_file", self)

    def __call__(self, content, directory):
        there = numbers(directory)
        self.tried.append(len(there))
        if len(there) >= self.room:
            raise OSError(self.number, os.strerror(self.number), str(directory))
        return write_file(content, directory)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_oldest_makes_room_and_only_as_many_as_must(tmp_path, monkeypatch, capfd, number):
    fill(tmp_path, 1, 2, 3)
    disk = SmallDisk(monkeypatch, tmp_path, room=2, number=number)
    assert write(CheckpointStore(tmp_path, keep=3), 4)
    assert (numbers(tmp_path), disk.tried) == (["00000003", "00000004"], [3, 2, 1])
    assert capfd.readouterr().err == ""


def test_the_newest_whole_one_stays_when_nothing_helps(tmp_path, monkeypatch, capfd):
    """That is said once."""
    fill(tmp_path, 1, 2, 3).write_bytes(b"damaged")
    (tmp_path / ".psgc-17.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    disk = SmallDisk(monkeypatch, tmp_path, room=0)
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in (4, 5):
        assert not write(store, iteration)
        assert store.no_room
        assert numbers(tmp_path) == ["00000002", "notes.tx"]
    assert disk.tried == [5, 4, 3, 2, 2]
    line = f": {tmp_path}: No space left on device; the run goes on\n"
    assert capfd.readouterr().err == f"psgc: no checkpoint of iteration 4{line}"
    disk.room = 5
    assert write(store, 6)
    assert not store.no_room
    assert newest_step(tmp_path) == 6
    disk.room = 0
    assert not write(store, 7)
    assert capfd.readouterr().err == f"psgc: no checkpoint of iteration 7{line}"


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EFBIG])
def test_what_room_does_not_help_against_removes_nothing(tmp_path, monkeypatch, number):
    fill(tmp_path, 1, 2)
    SmallDisk(monkeypatch, tmp_path, room=0, number=number)
    store = CheckpointStore(tmp_path, keep=3)
    assert not write(store, 4)
    assert (store.no_room, numbers(tmp_path)) == (False, ["00000001", "00000002"])


def test_a_directory_that_is_a_link_is_neither_written_to_nor_cleared(tmp_path, capfd):
    (tmp_path / "elsewhere").mkdir()
    old = fill(tmp_path / "elsewhere", 1)
    (tmp_path / "checkpoints").symlink_to("elsewhere")
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    assert not write(store, 2)
    assert f"{tmp_path}/checkpoints: Is a link, not a directory; the run goes on" in capfd.readouterr().err
    assert names(tmp_path / "elsewhere") == [old.name]
