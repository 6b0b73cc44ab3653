"""The run directory belongs to one run at a time: its lock, and where an earlier run of the same name goes.

`run.lock` names the process that has the directory, and is locked (flock) until that process ends, however it ends.
On some network file systems such a lock does not reach other hosts. So the holder also touches the file every few
seconds; a file that names another host and is not locked is watched first.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psgc.errors import UserError
from psgc.regular_files import check_regular
from psgc.reporting.records import unwritable
from psgc.terminal import say
from psgc.writing import UNNAMED, naming

LOCK = "run.lock"
TOUCHED = 2.0  # seconds between two touches of the file
WATCHED = 7.0  # seconds without a touch after which the run of another host is over
PATIENCE = 1.0  # seconds that a killed process has to be gone
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without flock


class Claim:
    """A run's claim on its directory, until `release` or the end of the process.

    The directory of an earlier run is locked at once: nothing in it changes from now on. What is not there, or is no
    run directory, is left alone until `make_room`. Raises UserError: another run has it, or it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock: _Lock | None = None
        with _one_line(directory):
            if any((directory / name).exists() for name in ("iterations.csv", "checkpoints")):
                self._lock = _Lock(directory)

    def make_room(self, going_on: bool) -> None:
        """Have the directory there and locked. going_on: the run goes on with what is in it; otherwise it is empty.

        An earlier run is kept under a number; other files are never moved. Raises UserError.
        """
        directory = self._directory
        with _one_line(directory):
            while True:
                if directory.exists() and not directory.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                directory.mkdir(parents=True, exist_ok=True)
                if not os.access(directory, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                if not going_on and not _is_empty(directory):
                    _check_earlier_run(directory)
                if self._lock is None:
                    self._lock = _Lock(directory)
                if going_on or _is_empty(directory):
                    return
                _check_earlier_run(directory)  # locked now, so it is no other run's that has just begun
                self._lock.release(_under_a_number(directory))
                self._lock = None

    def release(self) -> None:
        """The run is over."""
        if self._lock is not None:
            self._lock.release(self._directory)
            self._lock = None


def _is_empty(directory: Path) -> bool:
    return all(path.match(LOCK) or path.match(UNNAMED) for path in directory.iterdir())


def _check_earlier_run(directory: Path) -> None:
    if not directory.name or not (directory / "iterations.csv").exists():
        raise UserError(
            f"output: {directory}: holds other files, which stay where they are; give the run its own directory"
        )


def _under_a_number(directory: Path) -> Path:
    """Rename an earlier run; where it is now."""
    number = 1
    while directory.with_name(f"{directory.name}.{number}").exists():
        number += 1
    return directory.rename(directory.with_name(f"{directory.name}.{number}"))


@contextmanager
def _one_line(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(directory, error) from None


class _Lock:
    """The lock in `directory`. Raises UserError when another process has it, and OSError."""

    def __init__(self, directory: Path) -> None:
        with naming(directory / LOCK):
            self._descriptor, certain = _lock(directory)
            try:
                holder = _holder(self._descriptor)
                if holder and not (certain and holder["boot"] == _boot()) and _lives(directory, holder):
                    raise _taken(directory, holder)
                os.ftruncate(self._descriptor, 0)
                about = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}
                os.pwrite(self._descriptor, json.dumps(about).encode(), 0)
            except BaseException:
                os.close(self._descriptor)
                raise
        self._released = threading.Event()
        self._toucher = threading.Thread(target=self._touch, name="psgc-lock", daemon=True)
        self._toucher.start()

    def release(self, directory: Path) -> None:
        """Remove the file, which lies in `directory` now."""
        self._released.set()
        self._toucher.join()
        with contextlib.suppress(OSError):
            os.unlink(directory / LOCK)
        os.close(self._descriptor)

    def _touch(self) -> None:
        while not self._released.wait(TOUCHED):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


def _lock(directory: Path) -> tuple[int, bool]:
    """The file, opened and locked; and whether the file system has such locks, or nothing is certain."""
    end = time.monotonic() + PATIENCE
    while True:
        descriptor = _open(directory, os.O_RDWR | os.O_CREAT)
        try:
            locked = _flock(descriptor)
            if locked is None and time.monotonic() > end:
                raise _taken(directory, _holder(descriptor))
            if locked is not None and _is_there(directory, descriptor):
                return descriptor, locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.05)


def _flock(descriptor: int) -> bool | None:
    """Lock a file; None when another process has locked it, False when the file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _open(directory: Path, flags: int) -> int:
    descriptor = os.open(directory / LOCK, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        status = os.fstat(descriptor)
        check_regular(status.st_mode)
        if status.st_nlink > 1:  # it is written to, and the other name may be that of anything
            raise OSError(errno.EMLINK, "Has another name, which no file of psgc has")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_there(directory: Path, descriptor: int) -> bool:
    """Whether the file is still the one in `directory`: its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(directory / LOCK))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> dict[str, Any] | None:
    """host, pid and boot of the process that the file names, None when it names none."""
    try:
        about = json.loads(os.pread(descriptor, 1000, 0))
        return {"host": str(about["host"])[:100], "pid": int(about["pid"]), "boot": about["boot"]}
    except (ValueError, LookupError, TypeError):
        return None


def _boot() -> str:
    """Tells this kernel from all others, also after a restart: locks are certain among its processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _lives(directory: Path, holder: dict[str, Any]) -> bool:
    """Whether the process, of another host, still touches the file."""
    say(
        f"psgc: {directory / LOCK} names process {holder['pid']} on {holder['host']}; "
        f"waiting {WATCHED:g} s to see whether it still runs",
        error=True,
    )
    before, end = _touched(directory), time.monotonic() + WATCHED
    while time.monotonic() < end:
        time.sleep(WATCHED / 20)
        if _touched(directory) != before:
            return True
    return False


def _touched(directory: Path) -> int:
    descriptor = _open(directory, os.O_RDONLY)  # network file systems ask the server when a file is opened
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _taken(directory: Path, holder: dict[str, Any] | None) -> UserError:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return UserError(f"output: {directory}: another run uses it ({who}); wait for its end, or give another directory")
