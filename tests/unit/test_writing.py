"""Files that psgc writes: whole or not there at all, nobody's link is followed, and what does not fit is not lost."""

import errno
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from psgc import disk
from psgc.disk import GrowingFile, make_directory, write_text, write_whole
from psgc.record.files import write_output_text
from tests.unit.full_disk import ShortWrites, no_file_longer_than


def test_a_file_is_written_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "größer\n")
    assert (tmp_path / "a.txt").read_bytes() == "größer\n".encode()
    write_whole(tmp_path / "a.txt", lambda stream: stream.write(b"new"))
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there_before(tmp_path, error):
    def write(stream):
        stream.write(b"half of")
        stream.flush()
        raise error

    with pytest.raises(type(error)):
        write_whole(tmp_path / "new", write)
    assert os.listdir(tmp_path) == []
    write_text(tmp_path / "old", "whole")
    with pytest.raises(type(error)):
        write_whole(tmp_path / "old", write)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "whole"


def test_a_file_that_survives_a_crash_is_on_the_disk_before_and_after_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    write_whole(tmp_path / "a", lambda stream: stream.write(b"a"), on_disk=True)
    unnamed, directory = synced
    assert os.path.dirname(unnamed) == directory == str(tmp_path)
    assert not os.path.exists(unnamed)
    assert (tmp_path / "a").read_bytes() == b"a"


@pytest.fixture
def victim(tmp_path):
    """A file outside the directory `run`, to which somebody has linked."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "precious"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


@pytest.mark.parametrize("target", ["../precious", "/nowhere", "/proc/self/fd/1", "."])
@pytest.mark.parametrize("make", [lambda path: write_text(path, "new"), lambda path: GrowingFile(path, b"new")])
def test_a_link_is_refused_wherever_it_leads(victim, tmp_path, target, make):
    link = tmp_path / "run/summary.json"
    link.symlink_to(target)
    with pytest.raises(OSError, match="Is a link, not a file") as caught:
        make(link)
    assert caught.value.filename == str(link)
    assert os.readlink(link) == target
    assert os.listdir(tmp_path / "run") == ["summary.json"]


def test_a_link_that_comes_while_the_file_is_written_is_refused(victim, tmp_path):
    path = tmp_path / "run/summary.json"
    with pytest.raises(OSError, match="Is a link"):
        write_whole(path, lambda stream: path.symlink_to(victim))
    assert os.listdir(tmp_path / "run") == ["summary.json"]


def test_no_link_under_the_name_of_the_unfinished_file_is_followed(victim, tmp_path, monkeypatch):
    monkeypatch.setattr(disk.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / "run/.psgc-guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "run/summary.json", "new")


def test_a_directory_that_is_swapped_for_a_link_is_not_written_to(victim, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/report").symlink_to("../elsewhere")
    with pytest.raises(OSError, match="run/report is a link, not a directory"):
        write_text(tmp_path / "run/report/index.html", "new")
    with pytest.raises(OSError, match="Is a link, not a directory"):
        make_directory(tmp_path / "run/report")
    assert os.listdir(tmp_path / "elsewhere") == []
    for _ in range(2):
        make_directory(tmp_path / "run/made")
    for path in (victim, victim / "report"):
        with pytest.raises(OSError, match="Not a directory") as caught:
            make_directory(path)
        assert caught.value.filename == str(path)


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    (os.mkdir if kind == "directory" else os.mkfifo)(tmp_path / "a")
    with pytest.raises(OSError, match=f"Is a {kind}"):
        write_text(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == ["a"]


def test_permissions_stay_as_they_are_also_while_it_is_written(tmp_path):
    def mode_of(path):
        return stat.S_IMODE(path.stat().st_mode)

    def write(stream):
        stream.write(b"secret")
        seen.extend(mode_of(path) for path in tmp_path.glob(".psgc-*"))

    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "")
        assert mode_of(tmp_path / "new") == 0o640
        for mode in (0o600, 0o644, 0o664):  # narrower than the umask, and wider
            seen = []
            (tmp_path / "new").chmod(mode)
            write_whole(tmp_path / "new", write)
            assert (seen, mode_of(tmp_path / "new")) == ([mode], mode)
            GrowingFile(tmp_path / "new", b"").close()
            assert mode_of(tmp_path / "new") == mode
    finally:
        os.umask(before)


# what does not fit


def test_an_array_that_does_not_fit_is_an_error_that_says_why(tmp_path):
    """NumPy would write past Python, and then say only how many entries it has written."""
    with no_file_longer_than(1000), pytest.raises(OSError, match="File too large") as caught:
        write_whole(tmp_path / "params.npy", lambda stream: np.save(stream, np.zeros(1000)))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "params.npy"))
    assert os.listdir(tmp_path) == []


def test_short_writes_go_on_until_all_is_there(tmp_path, monkeypatch):
    file = GrowingFile(tmp_path / "a", b"head\n")
    ShortWrites(monkeypatch, most=3)
    file.write(b"0123456789")
    file.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"head\n0123456789abc"
    file.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_did_not_fit_follows_when_there_is_room(tmp_path, monkeypatch, number):
    file = GrowingFile(tmp_path / "a", b"head\n")
    disk = ShortWrites(monkeypatch, most=3, room=4)
    disk.error = number
    for content in (b"0123456789", b"abc"):
        with pytest.raises(OSError) as caught:
            file.write(content)
        assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == b"head\n0123"
    disk.room = 100
    file.write()
    assert (tmp_path / "a").read_bytes() == b"head\n0123456789abc"
    file.close()
    file.close()


# files that a user names: what is not a file is never replaced by one, and nothing here touches /dev


def test_a_file_is_written_also_in_a_directory_that_is_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_output_text(tmp_path / "link" / "a.txt", "größer")
    assert (tmp_path / "real/a.txt").read_text() == "größer"
    assert os.listdir(tmp_path / "real") == ["a.txt"]


def test_what_a_link_leads_to_is_not_replaced(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    for name, target in (("link", "a.txt"), ("dangling", "b.txt")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(OSError, match="Is a link, not a file") as caught:
            write_output_text(tmp_path / name, "new")
        assert caught.value.filename == str(tmp_path / name)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "dangling", "link"]


def test_a_pipe_is_written_to_when_it_has_a_reader_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        write_output_text(tmp_path / "fifo", "text")
    (tmp_path / "link").symlink_to("fifo")
    with open(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        write_output_text(tmp_path / "link", "text")
        assert reader.read() == b"text"
    assert stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("into", ["a file", "a pipe"])
def test_what_goes_where_stdout_goes_follows_what_was_printed(tmp_path, into):
    """As `--json /dev/stdout` does; the link is one of ours, so that a failure harms nobody."""
    link, out = tmp_path / "stdout", tmp_path / "out"
    link.symlink_to("/proc/self/fd/1")
    program = (
        "import sys; from pathlib import Path; from psgc.record.files import write_output_text;"
        "print('printed'); write_output_text(Path(sys.argv[1]), 'written\\n'); print('more')"
    )
    command = ["env", "-u", "PYTHONUNBUFFERED", sys.executable, "-c", program, str(link)]
    if into == "a file":
        with out.open("wb") as stream:
            subprocess.run(command, stdout=stream, check=True, timeout=60)
        text = out.read_text()
    else:
        text = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60, text=True).stdout
    assert text == "printed\nwritten\nmore\n"
    assert link.is_symlink()
