"""Full disks, without one: a limit on the size of files, and system calls that take less than they get."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Writes beyond so many bytes of any file fail (EFBIG), and those that reach there are short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class ShortWrites:
    """`os.write` that takes at most `most` bytes a call, and nothing once `room` is used up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, room: float = float("inf")) -> None:
        self.most, self.room = most, room
        self.error = errno.ENOSPC
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, content: Any) -> int:
        size = int(min(self.most, len(content), self.room))
        if not size:
            raise OSError(self.error, os.strerror(self.error))
        self.room -= size
        return self._write(descriptor, bytes(content[:size]))
