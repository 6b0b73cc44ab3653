"""Files that a user names on the command line: also pipes, terminals, /dev/null, and wherever stdout goes."""

import os
import stat
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO

from psgc.writing import naming, write_whole


def write_output(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Have `write` fill the file `path`, which is whole or not there at all; what is no file is written to as it is.

    Raises OSError with the path: it cannot be written, or it is a link to a file, a directory, a socket or a disk.
    """
    with naming(path):
        if _is_stream(path):
            content = BytesIO()
            write(content)
            _write_straight(path, content.getvalue())
        else:
            write_whole(path.parent.resolve() / path.name, write)


def write_output_text(path: Path, text: str) -> None:
    """The same for a text."""
    write_output(path, lambda stream: stream.write(text.encode()))


def _is_stream(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or _is_stdout(path)


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:  # closed
        return False


def _write_straight(path: Path, content: bytes) -> None:
    if _is_stdout(path):
        sys.stdout.flush()
        descriptor = os.dup(1)
    else:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)  # a pipe without a reader is an error
        os.set_blocking(descriptor, True)
    with open(descriptor, "wb") as stream:
        stream.write(content)
