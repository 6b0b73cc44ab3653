"""Checkpoints: what is read is what was written or nothing, and writing disturbs nobody."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from psgc.disk import UNNAMED
from psgc.server import checkpoint as module
from psgc.server.checkpoint import Checkpoint, CheckpointWriter, load, load_newest, save
from tests.unit.small_disk import small_disk

NO_NUMBERS = "damaged, or of another version of psgc: an array of"


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


def names(directory):
    return sorted(os.listdir(directory))


def numbers(directory):
    """The first digits of each name, which are a checkpoint's iteration."""
    return [name[:8] for name in names(directory)]


def test_the_newest_is_found(tmp_path):
    assert load_newest(tmp_path / "nowhere") == (None, [])
    assert load_newest(tmp_path) == (None, [])
    for iteration in (100, 9, 200_000_000):
        save(made(iteration), tmp_path)
    (tmp_path / ".psgc-0.tmp").write_bytes(b"")
    (tmp_path / "00000400.npz").write_bytes(b"")
    found, complaints = load_newest(tmp_path)
    assert (found.iteration, complaints) == (200_000_000, [])


def test_a_file_of_another_format_or_none_of_ours_is_not_used(tmp_path, monkeypatch):
    save(made(1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 99)
        newer = save(made(3), tmp_path)
    foreign = tmp_path / "x.npz"
    np.savez(foreign, a=np.zeros(3))
    digest = module.hashlib.sha256(foreign.read_bytes()).hexdigest()[:16]
    foreign.rename(tmp_path / f"00000002-{digest}.npz")
    found, complaints = load_newest(tmp_path)
    assert found.iteration == 1
    assert complaints == [
        f"{newer}: written by a version of psgc whose checkpoints this version cannot read",
        f"{tmp_path}/00000002-{digest}.npz: not a checkpoint of psgc (KeyError)",
    ]


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
        ({"optimizer": {"first": np.zeros(7, complex)}}, f"{NO_NUMBERS} complex128 where plain numbers belong"),
        ({"optimizer": {"first": np.zeros(8)}}, "ValueError"),
    ],
)
def test_a_right_checksum_on_wrong_types_is_not_used(tmp_path, changes, flaw):
    save(made(1), tmp_path)
    path = save(made(**changes), tmp_path)
    found, complaints = load_newest(tmp_path)
    assert found.iteration == 1
    assert complaints == [f"{path}: not a checkpoint of psgc ({flaw})"]


def test_a_complaint_is_one_line_wherever_the_directory_lies(tmp_path):
    directory = tmp_path / "a\nb"
    directory.mkdir()
    save(made(1), directory)
    save(made(2), directory).write_bytes(b"")
    (complaint,) = load_newest(directory)[1]
    assert complaint.startswith(f"{tmp_path}/a\\nb/00000002-")


def test_nothing_in_a_checkpoint_is_compressed(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, about=np.zeros(10_000_000, np.uint8), params=np.zeros(3))
    digest = module.hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with pytest.raises(ValueError, match="it is compressed"):
        load(path.rename(tmp_path / f"00000002-{digest}.npz"))


def test_the_file_and_its_name_are_on_the_disk_before_it_is_called_written(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(module.os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")))
    path = save(made(), tmp_path)
    unnamed, directory = events
    assert Path(unnamed).match(str(tmp_path / UNNAMED))
    assert directory == str(tmp_path)
    assert path.exists()


# the writer


def write(writer, iteration, **changes):
    """Whether the checkpoint is on the disk."""
    writer.write(made(iteration, **changes))
    return writer.flush(20)


def fill(directory, *iterations):
    """Checkpoints of these iterations; the path of the last one."""
    return [save(made(iteration), directory) for iteration in iterations][-1]


@pytest.fixture
def gate(monkeypatch):
    """Holds the writer's thread inside `save` until it is opened."""
    opened, inside = threading.Event(), threading.Event()

    def slow(checkpoint, directory):
        inside.set()
        assert opened.wait(20)
        return save(checkpoint, directory)

    monkeypatch.setattr(module, "save", slow)
    yield opened, inside
    opened.set()


def test_the_newest_that_waits_is_the_one_that_is_written(tmp_path, gate):
    opened, inside = gate
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=3)
    writer.write(made(1))
    assert inside.wait(20)
    for iteration in (2, 3, 4):
        writer.write(made(iteration))
    assert not writer.flush(timeout=0.01)
    opened.set()
    assert writer.flush(timeout=20)
    assert numbers(tmp_path / "checkpoints") == ["00000001", "00000004"]


def test_the_newest_whole_ones_are_kept(tmp_path):
    for iteration in (1, 2, 3, 4):
        path = save(made(iteration), tmp_path)
        if iteration in (2, 4):
            path.write_bytes(b"damaged")
    (tmp_path / ".psgc-17.tmp").write_bytes(b"left by a process that was killed")
    (tmp_path / "notes.txt").write_text("not ours")
    writer = CheckpointWriter(tmp_path, keep=2)
    assert write(writer, 5)
    assert numbers(tmp_path) == ["00000003", "00000005", "notes.tx"]
    for iteration in (6, 7):
        assert write(writer, iteration)
    assert numbers(tmp_path) == ["00000006", "00000007", "notes.tx"]
    assert load_newest(tmp_path)[0].iteration == 7


def test_what_is_no_file_keeps_no_other_from_being_removed(tmp_path):
    fill(tmp_path, 1, 2)
    (tmp_path / "00000003-0123456789abcdef.npz").mkdir()
    os.mkfifo(tmp_path / "00000004-0123456789abcdef.npz")
    writer = CheckpointWriter(tmp_path, keep=2)
    assert write(writer, 5)
    assert numbers(tmp_path) == ["00000002", "00000003", "00000005"]


def test_a_full_disk_is_reported_once_and_leaves_no_half_file(tmp_path, monkeypatch, capfd):
    def full(stream, **arrays):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(tmp_path, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(module.np, "savez", full)
        for iteration in (1, 2):
            assert not write(writer, iteration)
    assert names(tmp_path) == []
    assert write(writer, 3)
    assert load_newest(tmp_path)[0].iteration == 3
    assert capfd.readouterr().err == (
        f"psgc: no checkpoint of iteration 1: {tmp_path}: No space left on device; the run goes on\n"
    )


class SmallDisk:
    """Has room for so many checkpoints; `save` fails when it is full, as the real one does."""

    def __init__(self, monkeypatch, directory, room, number=errno.ENOSPC):
        self.directory, self.room, self.number = directory, room, number
        self.tried = []
        monkeypatch.setattr(module, "save", self)

    def __call__(self, checkpoint, directory):
        there = numbers(directory)
        self.tried.append(there)
        if len(there) >= self.room:
            raise OSError(self.number, os.strerror(self.number), str(directory))
        return save(checkpoint, directory)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_oldest_makes_room_and_only_as_many_as_must(tmp_path, monkeypatch, capfd, number):
    fill(tmp_path, 1, 2, 3)
    disk = SmallDisk(monkeypatch, tmp_path, room=2, number=number)
    writer = CheckpointWriter(tmp_path, keep=3)
    assert write(writer, 4)
    assert numbers(tmp_path) == ["00000003", "00000004"]
    assert [len(there) for there in disk.tried] == [3, 2, 1]
    assert capfd.readouterr().err == ""


def test_the_newest_whole_one_stays_when_nothing_helps(tmp_path, monkeypatch, capfd):
    path = fill(tmp_path, 1, 2, 3)
    path.write_bytes(b"damaged")
    (tmp_path / ".psgc-17.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    disk = SmallDisk(monkeypatch, tmp_path, room=0)
    writer = CheckpointWriter(tmp_path, keep=3)
    assert not write(writer, 4)
    assert writer.no_room
    assert numbers(tmp_path) == ["00000002", "notes.tx"]
    assert len(disk.tried) == 4
    assert "no checkpoint of iteration 4: " in capfd.readouterr().err
    disk.room = 5
    assert write(writer, 5)
    assert not writer.no_room
    assert load_newest(tmp_path)[0].iteration == 5


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EFBIG])
def test_what_room_does_not_help_against_removes_nothing(tmp_path, monkeypatch, number):
    fill(tmp_path, 1, 2)
    SmallDisk(monkeypatch, tmp_path, room=0, number=number)
    writer = CheckpointWriter(tmp_path, keep=3)
    assert not write(writer, 4)
    assert not writer.no_room
    assert numbers(tmp_path) == ["00000001", "00000002"]


def test_a_full_file_system(tmp_path, capfd):
    """Room for two checkpoints, and then for none."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        writer, place = CheckpointWriter(disk / "checkpoints", keep=3), disk / "checkpoints"
        for iteration in range(1, 6):
            assert write(writer, iteration, params=np.zeros(50_000), optimizer={})
        assert numbers(place) == ["00000004", "00000005"]
        assert not write(writer, 6, params=np.zeros(200_000), optimizer={})
        assert numbers(place) == ["00000005"]
        assert f"{place}: No space left on device; the run goes on" in capfd.readouterr().err
        assert load_newest(place)[0].iteration == 5


def test_a_directory_that_is_a_link_is_neither_written_to_nor_cleared(tmp_path, capfd):
    (tmp_path / "elsewhere").mkdir()
    old = save(made(1), tmp_path / "elsewhere")
    (tmp_path / "checkpoints").symlink_to("elsewhere")
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=1)
    assert not write(writer, 2)
    assert f"{tmp_path}/checkpoints: Is a link, not a directory; the run goes on" in capfd.readouterr().err
    assert names(tmp_path / "elsewhere") == [old.name]
