"""Files that a user names. Only regular ones are read or replaced: a pipe would be waited for, a device has no end.

Renaming a new file over `/dev/full` or `/dev/stdout` would, for root, take the device from the machine.
"""

import contextlib
import errno
import os
import stat
from typing import BinaryIO

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a block device"}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes. Raises OSError, also for what is no file, and never waits."""
    try:
        check_regular(path)
        return open(path, "rb")
    except ValueError:  # a NUL in the path
        raise OSError(errno.ENXIO, "Not a path") from None


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError unless `path` is a regular file or a link to one, saying what it is."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind != stat.S_IFREG:
        raise OSError(errno.ENXIO, f"Is {_KINDS.get(kind, 'something else')}, not a file")


def to_replace(path: str | os.PathLike[str]) -> str:
    """The file that a new one may replace, which need not be there: `path`, or where it leads to if it is a link.

    Raises OSError when something else than a regular file is there.
    """
    with contextlib.suppress(FileNotFoundError):
        check_regular(path)
    return os.path.realpath(path)
