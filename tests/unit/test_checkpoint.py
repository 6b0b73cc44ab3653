"""Checkpoints: what is read is what was written or nothing, and writing disturbs nobody."""

import errno
import hashlib
import json
import os
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from psgc import checkpoints as module
from psgc.checkpoints import CheckpointStore, Content, load_newest, newest_first, step_of, write_file
from psgc.run import checkpoint as numpy_checkpoint
from psgc.run.checkpoint import Checkpoint, read
from tests.unit.small_disk import small_disk


def made(iteration=50, dtype="float64", **changes):
    values = {
        "iteration": iteration,
        "params": np.linspace(0, 1, 7, dtype=dtype),
        "optimizer": {"first": np.full(7, 0.1, dtype), "second": 0.0, "steps": 50},
        "estimates": {1: 0.1, 3: 1 / 3},
        "num_chunks": 12,
        "num_workers": 3,
        "seed": 5,
        "seconds": 1.5,
        "data": "80 rows",
        "config": "seed: 5\n",
        "version": "0.1.0",
    }
    return Checkpoint.model_construct(**values | changes)


def save(checkpoint, directory):
    return write_file(checkpoint.content(), directory)


def found_in(directory, capsys):
    """The newest checkpoint, and the lines about those that are newer."""
    found = load_newest(directory, read)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.endswith("; trying the one before it") for line in lines)
    return found, [line.removeprefix("psgc: ").removesuffix("; trying the one before it") for line in lines]


def named(path):
    """The file under the name of a checkpoint before iteration 2 with its checksum."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return path.rename(path.with_name(f"00000002-{digest}{path.suffix}"))


def names(directory):
    return sorted(os.listdir(directory))


def numbers(directory):
    """The first digits of each name, which are a checkpoint's iteration."""
    return [name[:8] for name in names(directory)]


def test_the_newest_is_found(tmp_path, capsys):
    assert load_newest(tmp_path / "nowhere", read) is None
    assert load_newest(tmp_path, read) is None
    for iteration in (100, 9, 200_000_000):
        save(made(iteration), tmp_path)
    (tmp_path / ".psgc-0.tmp").write_bytes(b"")
    (tmp_path / "00000400.safetensors").write_bytes(b"")
    found, complaints = found_in(tmp_path, capsys)
    assert (found.iteration, complaints) == (200_000_000, [])


def test_a_file_of_another_format_or_none_of_ours_is_not_used(tmp_path, monkeypatch, capsys):
    save(made(1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(numpy_checkpoint, "FORMAT", 99)
        newer = save(made(3), tmp_path)
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
    foreign = [named(tmp_path / "x.npz"), named(tmp_path / "x.safetensors")]
    found, (first, *others) = found_in(tmp_path, capsys)
    assert found.iteration == 1
    assert first == f"{newer}: written by a version of psgc whose checkpoints this version cannot read"
    kinds = ("KeyError", "AttributeError")
    assert {*others} == {
        f"{path}: not a checkpoint of psgc ({kind})" for path, kind in zip(foreign, kinds, strict=True)
    }


def test_whoever_has_safetensors_can_read_it(tmp_path):
    path = save(made(dtype="float32"), tmp_path)
    tensors = safetensors.numpy.load_file(path)
    assert tensors["params"].tolist() == np.linspace(0, 1, 7, dtype="float32").tolist()
    assert tensors["optimizer.first"].dtype == "float32"
    with safetensors.safe_open(path, "np") as file:
        about = json.loads(file.metadata()["psgc"])
    assert (about["iteration"], about["num_chunks"], about["config"]) == (50, 12, "seed: 5\n")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_those_that_were_archives_are_still_read_and_make_room(tmp_path, dtype):
    """For one release."""
    expected = made(2, dtype)
    about = {k: v for k, v in vars(expected).items() if k not in ("params", "optimizer")}
    text = json.dumps(about | {"format": 1, "optimizer": {"second": 0.0, "steps": 50}}).encode()
    arrays = {"params": expected.params, "optimizer.first": expected.optimizer["first"]}
    np.savez(tmp_path / "x.npz", about=np.frombuffer(text, np.uint8), **arrays)
    named(tmp_path / "x.npz")
    found = load_newest(tmp_path, read)
    np.testing.assert_equal(vars(found), vars(expected))
    assert found.params.dtype == dtype
    assert CheckpointStore(tmp_path, keep=1).save(made(3).content()) == ""
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"seconds": "long"}, "seconds: Input should be a valid number"),
        ({"seconds": float("nan")}, "seconds: Input should be a finite number"),
        ({"iteration": True}, "iteration: Input should be a valid integer"),
        ({"num_chunks": 0}, "num_chunks: Input should be greater than or equal to 1"),
        ({"estimates": {1: "quick"}}, "estimates.1: Input should be a valid number"),
        ({"estimates": {1: -1.0}}, "estimates.1: Input should be greater than or equal to 0"),
        ({"config": None}, "config: Input should be a valid string"),
        ({"version": ["\x1b[31m"]}, "version: Input should be a valid string"),
        (
            {"optimizer": {"\x1b[31m": [1]}},
            "optimizer.\\x1b[31m.is-instance[ndarray]: Input should be an instance of ndarray",
        ),
        ({"params": np.zeros(7, int), "optimizer": {}}, "ValueError"),
        ({"params": np.full(7, np.nan)}, "ValueError"),
        ({"optimizer": {"first": np.zeros(7, complex)}}, "SafetensorError"),
        ({"optimizer": {"first": np.zeros(8)}}, "ValueError"),
    ],
)
def test_a_right_checksum_on_wrong_types_is_not_used(tmp_path, capsys, changes, flaw):
    save(made(1), tmp_path)
    path = save(made(**changes), tmp_path)
    found, complaints = found_in(tmp_path, capsys)
    assert found.iteration == 1
    assert complaints == [f"{path}: not a checkpoint of psgc ({flaw})"]


def test_a_complaint_is_one_line_wherever_the_directory_lies(tmp_path, capsys):
    directory = tmp_path / "a\nb"
    directory.mkdir()
    save(made(1), directory)
    save(made(2), directory).write_bytes(b"")
    (complaint,) = found_in(directory, capsys)[1]
    assert complaint.startswith(f"{tmp_path}/a\\nb/00000002-")


# the store


def write(store, iteration, **changes):
    """Whether the checkpoint is on the disk."""
    store.write(made(iteration, **changes).content())
    return store.flush(20)


def fill(directory, *iterations):
    """Checkpoints of these iterations; the path of the last one."""
    return [save(made(iteration), directory) for iteration in iterations][-1]


@pytest.fixture
def gate(monkeypatch):
    """Holds the store's thread inside `write_file` until it is opened."""
    opened, inside = threading.Event(), threading.Event()

    def slow(content, directory):
        inside.set()
        assert opened.wait(20)
        return write_file(content, directory)

    monkeypatch.setattr(module, "write_file", slow)
    yield opened, inside
    opened.set()


def test_the_newest_that_waits_is_the_one_that_is_written(tmp_path, gate):
    opened, inside = gate
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    store.write(made(1).content())
    assert inside.wait(20)
    for iteration in (2, 3, 4):
        store.write(made(iteration).content())
    assert not store.flush(timeout=0.01)
    opened.set()
    assert store.flush(timeout=20)
    assert numbers(tmp_path / "checkpoints") == ["00000001", "00000004"]


def bytes_of(step, content):
    return Content(step, [content], {})


def test_a_checkpoint_takes_the_place_of_those_of_its_step_and_of_later_ones(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (5, 10, 20, 30):
        assert store.save(bytes_of(step, b"of a state")) == ""
    assert numbers(tmp_path) == ["00000010", "00000020", "00000030"]
    assert store.save(bytes_of(20, b"of another state")) == ""
    assert [path.read_bytes() for path in newest_first(tmp_path)] == [b"of another state", b"of a state"]


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
    for iteration in (1, 2, 3, 4):
        path = save(made(iteration), tmp_path)
        if iteration in (2, 4):
            path.write_bytes(b"damaged")
    (tmp_path / ".psgc-17.tmp").write_bytes(b"left by a process that was killed")
    (tmp_path / "notes.txt").write_text("not ours")
    store = CheckpointStore(tmp_path, keep=2)
    assert write(store, 5)
    assert numbers(tmp_path) == ["00000003", "00000005", "notes.tx"]
    for iteration in (6, 7):
        assert write(store, iteration)
    assert numbers(tmp_path) == ["00000006", "00000007", "notes.tx"]
    assert load_newest(tmp_path, read).iteration == 7


def test_what_is_no_file_keeps_no_other_from_being_removed(tmp_path):
    fill(tmp_path, 1, 2)
    (tmp_path / "00000003-0123456789abcdef.safetensors").mkdir()
    os.mkfifo(tmp_path / "00000004-0123456789abcdef.safetensors")
    store = CheckpointStore(tmp_path, keep=2)
    assert write(store, 5)
    assert numbers(tmp_path) == ["00000002", "00000003", "00000005"]


def test_a_full_disk_is_reported_once_and_leaves_no_half_file(tmp_path, monkeypatch, capfd):
    def full(file, name):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = CheckpointStore(tmp_path, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(module.NewFile, "keep_on_disk", full)
        for iteration in (1, 2):
            assert not write(store, iteration)
    assert names(tmp_path) == []
    assert write(store, 3)
    assert load_newest(tmp_path, read).iteration == 3
    assert capfd.readouterr().err == (
        f"psgc: no checkpoint of iteration 1: {tmp_path}: No space left on device; the run goes on\n"
    )


class SmallDisk:
    """Has room for so many checkpoints; `write_file` fails when it is full, as the real one does."""

    def __init__(self, monkeypatch, directory, room, number=errno.ENOSPC):
        self.directory, self.room, self.number = directory, room, number
        self.tried = []
        monkeypatch.setattr(module, "write_file", self)

    def __call__(self, content, directory):
        there = numbers(directory)
        self.tried.append(there)
        if len(there) >= self.room:
            raise OSError(self.number, os.strerror(self.number), str(directory))
        return write_file(content, directory)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_oldest_makes_room_and_only_as_many_as_must(tmp_path, monkeypatch, capfd, number):
    fill(tmp_path, 1, 2, 3)
    disk = SmallDisk(monkeypatch, tmp_path, room=2, number=number)
    store = CheckpointStore(tmp_path, keep=3)
    assert write(store, 4)
    assert numbers(tmp_path) == ["00000003", "00000004"]
    assert [len(there) for there in disk.tried] == [3, 2, 1]
    assert capfd.readouterr().err == ""


def test_the_newest_whole_one_stays_when_nothing_helps(tmp_path, monkeypatch, capfd):
    path = fill(tmp_path, 1, 2, 3)
    path.write_bytes(b"damaged")
    (tmp_path / ".psgc-17.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    disk = SmallDisk(monkeypatch, tmp_path, room=0)
    store = CheckpointStore(tmp_path, keep=3)
    assert not write(store, 4)
    assert store.no_room
    assert numbers(tmp_path) == ["00000002", "notes.tx"]
    assert len(disk.tried) == 4
    assert "no checkpoint of iteration 4: " in capfd.readouterr().err
    disk.room = 5
    assert write(store, 5)
    assert not store.no_room
    assert load_newest(tmp_path, read).iteration == 5


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EFBIG])
def test_what_room_does_not_help_against_removes_nothing(tmp_path, monkeypatch, number):
    fill(tmp_path, 1, 2)
    SmallDisk(monkeypatch, tmp_path, room=0, number=number)
    store = CheckpointStore(tmp_path, keep=3)
    assert not write(store, 4)
    assert not store.no_room
    assert numbers(tmp_path) == ["00000001", "00000002"]


def test_a_full_file_system(tmp_path, capfd):
    """Room for two checkpoints, and then for none."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        store, place = CheckpointStore(disk / "checkpoints", keep=3), disk / "checkpoints"
        for iteration in range(1, 6):
            assert write(store, iteration, params=np.zeros(50_000), optimizer={})
        assert numbers(place) == ["00000004", "00000005"]
        assert not write(store, 6, params=np.zeros(200_000), optimizer={})
        assert numbers(place) == ["00000005"]
        assert f"{place}: No space left on device; the run goes on" in capfd.readouterr().err
        assert load_newest(place, read).iteration == 5


def test_a_directory_that_is_a_link_is_neither_written_to_nor_cleared(tmp_path, capfd):
    (tmp_path / "elsewhere").mkdir()
    old = save(made(1), tmp_path / "elsewhere")
    (tmp_path / "checkpoints").symlink_to("elsewhere")
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    assert not write(store, 2)
    assert f"{tmp_path}/checkpoints: Is a link, not a directory; the run goes on" in capfd.readouterr().err
    assert names(tmp_path / "elsewhere") == [old.name]
