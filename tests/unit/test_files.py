"""Files that are whole or not there at all."""

import os

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
