"""Only regular files are read or replaced: a pipe would block, and a device has no end.

Renaming a new file over `/dev/full` or `/dev/stdout` would, for root, remove the device from the machine.
"""

import errno
import os
import stat
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a link",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes. Raises OSError, also for a pipe or a device."""
    try:
        check_regular(os.stat(path).st_mode)
        return open(path, "rb")
    except ValueError:  # a NUL in the path
        raise OSError(errno.ENXIO, "Not a path") from None


def check_regular(mode: int) -> None:
    """Raises OSError unless `mode`, of `os.stat` or `os.lstat`, is that of a regular file, saying what it is."""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind != stat.S_IFREG:
        raise OSError(errno.ENXIO, f"Is {_KINDS.get(kind, 'something else')}, not a file")
