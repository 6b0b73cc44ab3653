"""Files that are whole or not there at all: written to a temporary name beside them, then renamed."""

import os
import stat
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO

from psgc.regular_files import to_replace


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Have `write` fill a temporary file, then give it its name.

    Only a regular file, or nothing, is replaced; where `path` is a link, what it leads to. Pipes, terminals, /dev/null
    and wherever stdout goes are written to as they are. Raises OSError, also for anything else (a directory, a disk).
    """
    if _is_stream(path):
        content = BytesIO()
        write(content)
        _write_straight(path, content.getvalue())
        return
    target = Path(to_replace(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file."""
    write_whole(path, lambda stream: stream.write(text.encode()))


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
