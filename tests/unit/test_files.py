"""Files that a user names. What is not a file is never replaced by one: nothing here touches /dev."""

import os
import stat
import subprocess
import sys

import pytest

from psgc.record.files import write_output_text


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


def test_a_pipe_with_a_reader_is_written_to_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    with open(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        write_output_text(tmp_path / "link", "text")
        assert reader.read() == b"text"
    assert stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_without_a_reader_is_an_error_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        write_output_text(tmp_path / "fifo", "text")
    assert stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


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
