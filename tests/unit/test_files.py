"""Files that are whole or not there at all. What is not a file is never replaced by one: nothing here touches /dev."""

import os
import socket
import stat
import subprocess
import sys

import pytest

from psgc.reporting.files import write_text, write_whole


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


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write(stream):
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"

    write_whole(path, write)
    assert path.read_text() == "new"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "a.txt", "")


def test_a_link_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    for name, target in (("link", "real/a.txt"), ("dangling", "real/b.txt")):
        (tmp_path / name).symlink_to(target)
        write_text(tmp_path / name, "new")
        assert os.readlink(tmp_path / name) == target
        assert (tmp_path / target).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "real")) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_pipe_with_a_reader_is_written_to_and_stays_a_pipe(tmp_path, through_a_link):
    fifo = path = tmp_path / "fifo"
    os.mkfifo(fifo)
    if through_a_link:
        path = tmp_path / "link"
        path.symlink_to("fifo")
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        write_text(path, "text")
        assert reader.read() == b"text"
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert path.is_symlink() == through_a_link
    assert len(os.listdir(tmp_path)) == 1 + through_a_link


def test_a_pipe_without_a_reader_is_an_error_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        write_text(tmp_path / "fifo", "text")
    assert stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_socket_or_a_directory_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="Is a socket, not a file"):
            write_text(tmp_path / "socket", "text")
    assert stat.S_ISSOCK((tmp_path / "socket").lstat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "socket"]


@pytest.mark.parametrize("into", ["a file", "a pipe"])
def test_what_goes_where_stdout_goes_follows_what_was_printed(tmp_path, into):
    """As `--json /dev/stdout` does; the link is one of ours, so that a failure harms nobody."""
    link, out = tmp_path / "stdout", tmp_path / "out"
    link.symlink_to("/proc/self/fd/1")
    program = (
        "import sys; from pathlib import Path; from psgc.reporting.files import write_text;"
        "print('printed'); write_text(Path(sys.argv[1]), 'written\\n'); print('more')"
    )
    command = [sys.executable, "-c", program, str(link)]
    if into == "a file":
        with out.open("wb") as stream:
            subprocess.run(command, stdout=stream, check=True, timeout=60)
        text = out.read_text()
    else:
        text = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60, text=True).stdout
    assert text == "printed\nwritten\nmore\n"
    assert link.is_symlink()
