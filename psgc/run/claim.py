"""Only one run at a time uses a run directory: its lock, and the move of an earlier run of the same name.

`run.lock` names the process that has the directory. It is locked (flock) until that process ends, however it ends. On
some network file systems other hosts do not see such a lock, on others it stays when its host loses its power. So the
holder also touches the file every two seconds. If the file names another host, it is watched before it is taken.

A rank that takes over from a dead rank 0 takes the claim too, with the number of its term. If the old rank 0 still has
the lock, and touches the file where it is on another host, it was only cut off, and the claim is not taken. If the
claim was taken without the lock, the old rank 0 finds another name in the file, and writes nothing more.
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
from pathlib import Path
from typing import Any
from weakref import WeakSet

from psgc.disk import UNNAMED, check_regular, naming
from psgc.errors import RunFailed, UserError
from psgc.record.loggers import OPEN
from psgc.record.recorder import unwritable
from psgc.run.launched import JOBS, READY, UNDO, note_job
from psgc.terminal import say

LOCK = "run.lock"
BEFORE = (LOCK, JOBS, UNNAMED)  # files of a run that was killed before it had begun iterations.csv
TOUCHED = 2.0  # seconds between two touches of the file
WATCHED, LOOKS = 7.0, 20  # seconds without a touch after which another host's run is taken for ended, and looks in it
PATIENCE = 1.0  # seconds for a killed process to disappear
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without flock


class Claim:
    """A run's claim on its directory, until `release` or the end of the process.

    The directory of an earlier run is locked at once, so that nothing in it changes. Any other directory is left alone
    until `make_room`. Raises UserError if another run has the directory, or it cannot be written.

    term: of the run; larger than 0 after a takeover, when an earlier rank 0 of this run has had the directory, and is
        dead if it does not have the lock any more
    """

    def __init__(self, directory: Path, term: int = 0) -> None:
        self._directory, self._term = directory, term
        self._lock: _Lock | None = None
        with _one_line(directory):
            if any((directory / name).exists() for name in ("iterations.csv", "checkpoints")):
                self._lock = _Lock(directory, term)

    def check(self) -> None:
        """Raises RunFailed if another rank has taken over the claim, and writes from now on."""
        if self._lock is not None and (holder := self._lock.other_holder(self._directory)):
            raise RunFailed(
                f"process {holder['pid']} on {holder['host']} has taken over as the server, which did not hear this one"
            )

    def make_room(self, resuming: bool) -> None:
        """Create and lock the directory. resuming: keep what is in it; otherwise it will be empty.

        An earlier run is moved to a numbered directory, beside its own where the directory is a link: so both are on
        the disk to which the user has linked it. Where it cannot be moved, the link is. Raises UserError: as above, or
        there are other files in it.
        """
        directory = self._directory
        with _one_line(directory):
            while True:
                place = Path(os.path.realpath(directory)) if directory.is_symlink() else directory
                place.mkdir(parents=True, exist_ok=True)
                ready = resuming or all(any(map(path.match, BEFORE)) for path in directory.iterdir())
                if not ready and not (directory.name and (directory / "iterations.csv").exists()):
                    reason = "holds other files, which stay where they are; give the run its own directory"
                    raise UserError(f"output: {directory}: {reason}")
                if self._lock is None:
                    self._lock = _Lock(directory, self._term)  # then look again: another run may have begun meanwhile
                elif ready:
                    for name in () if self._term else (UNDO, READY, OPEN):
                        (directory / name).unlink(missing_ok=True)  # left by an earlier `psgc launch` that was killed
                    if not self._term:
                        _remove_halves(directory / "checkpoints")
                        note_job(directory, resuming)
                    return
                else:
                    self._lock.release(_moved(place, directory))
                    self._lock = None

    def release(self) -> None:
        """The run is over."""
        if self._lock is not None:
            self._lock.release(self._directory)
            self._lock = None


def _remove_halves(checkpoints: Path) -> None:
    """Remove what a killed run has not written to its end: `psgc launch` would wait for it."""
    for path in [] if checkpoints.is_symlink() else checkpoints.glob(UNNAMED):
        with contextlib.suppress(OSError):  # a directory, for example
            path.unlink()


def _moved(place: Path, directory: Path) -> Path:
    """Move an earlier run, or the link to it where it cannot be moved: then the next one is where the link was."""
    try:
        return _move_to_number(place)
    except OSError as error:  # a mount point, or its folder is somebody else's
        if place == directory or error.errno not in (errno.EBUSY, errno.EACCES, errno.EPERM):
            raise
        say(f"psgc: {place} cannot be renamed ({error.strerror}): the run is in {directory.absolute()}", error=True)
        return _move_to_number(directory)


def _move_to_number(directory: Path) -> Path:
    number = 1
    while directory.with_name(f"{directory.name}.{number}").exists():
        number += 1
    return directory.rename(directory.with_name(f"{directory.name}.{number}"))


@contextlib.contextmanager
def _one_line(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(directory, error) from None


class _Lock:
    """The lock in `directory`. Raises OSError, and UserError if another process has the lock.

    term: larger than 0 for a process that takes over; then no holder is watched whose lock is free
    """

    _is_of_parent = False

    def __init__(self, directory: Path, term: int) -> None:
        with naming(directory / LOCK), contextlib.ExitStack() as on_error:
            self._descriptor, locked = _lock(directory, term)
            on_error.callback(os.close, self._descriptor)
            os.ftruncate(self._descriptor, 0)
            about = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(), "term": term, "locked": locked}
            os.pwrite(self._descriptor, json.dumps(about).encode(), 0)
            self._own = _holder(self._descriptor)
            on_error.pop_all()
        _held.add(self)
        self._released = threading.Event()
        self._toucher = threading.Thread(target=self._touch, name="psgc-lock", daemon=True)
        self._toucher.start()

    def other_holder(self, directory: Path) -> dict[str, Any] | None:
        """The holder that the file names in place of this process; None if it names this process."""
        with contextlib.suppress(OSError):
            descriptor = _open(directory, os.O_RDONLY)  # network file systems ask the server when a file is opened
            try:
                return None if (holder := _holder(descriptor)) == self._own else holder
            finally:
                os.close(descriptor)
        return None

    def release(self, directory: Path) -> None:
        """Remove the file, unless another rank has taken it over. directory: where the file is now."""
        if self._is_of_parent:
            return
        self._released.set()
        self._toucher.join()
        if self.other_holder(directory) is None:
            with contextlib.suppress(OSError):
                os.unlink(directory / LOCK)
        _held.discard(self)
        os.close(self._descriptor)

    def let_go(self) -> None:
        """In a process that was forked from the holder: it must not keep the lock when the holder dies."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._is_of_parent = True

    def _touch(self) -> None:
        while not self._released.wait(TOUCHED):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


_held: WeakSet[_Lock] = WeakSet()


def _in_child() -> None:
    for lock in _held:
        lock.let_go()


os.register_at_fork(after_in_child=_in_child)


def _lock(directory: Path, term: int) -> tuple[int, bool]:
    """The file, which is free, and whether it could be locked. Argument and errors as of `_Lock`."""
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.ExitStack() as on_error:
            descriptor = _open(directory, os.O_RDWR | os.O_CREAT)
            on_error.callback(os.close, descriptor)
            free = locked = True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free, locked, holder = time.monotonic() > end, False, _holder(descriptor)
                if free and (holder is None or (holder["locked"] and holder["boot"] == _boot())):
                    raise _taken(directory, holder) from None
            except OSError as error:
                locked = False
                if error.errno not in NO_LOCKS:
                    raise
            if free and _is_free(directory, descriptor, locked, term):
                on_error.pop_all()
                return descriptor, locked
        time.sleep(0.05)


def _is_free(directory: Path, descriptor: int, locked: bool, term: int) -> bool:
    """Whether nobody has the directory any more; False if it must be looked at again. Raises UserError."""
    holder = _holder(descriptor)
    has_ended = locked and holder is not None and holder["locked"] and (term or holder["boot"] == _boot())
    if holder is not None and not has_ended and _is_alive(directory, holder):
        raise _taken(directory, _holder(descriptor))
    return _is_in(directory, descriptor)  # the last holder may have removed it after it was opened


def _open(directory: Path, flags: int) -> int:
    descriptor = os.open(directory / LOCK, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        status = os.fstat(descriptor)
        check_regular(status.st_mode)
        if status.st_nlink > 1:  # writing to it would change another file
            raise OSError(errno.EMLINK, "Has another name, which no file of psgc has")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_in(directory: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(directory / LOCK))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> dict[str, Any] | None:
    """host, pid and boot of the process that the file names, and whether it has the lock; None if it names none."""
    try:
        about = json.loads(os.pread(descriptor, 1000, 0))
        names = {"host": str(about["host"])[:100], "pid": int(about["pid"]), "boot": about["boot"]}
        return {**names, "locked": bool(about.get("locked", True))}
    except (ValueError, LookupError, TypeError):
        return None


def _boot() -> str:
    """Identifies this kernel since its boot. Locks are reliable between its processes."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _is_alive(directory: Path, holder: dict[str, Any]) -> bool:
    """Whether the process, on another host, still touches the file. It looks often: one look may wait for a server."""
    names = f"{directory / LOCK} names process {holder['pid']} on {holder['host']}"
    say(f"psgc: {names}; waiting {WATCHED:g} s to see whether it still runs", error=True)
    with contextlib.suppress(FileNotFoundError):  # removed: the run has ended
        before = last_touched(directory)
        for _ in range(LOOKS):
            time.sleep(WATCHED / LOOKS)
            if last_touched(directory) != before:
                return True
    return False


def last_touched(directory: Path) -> int:
    """When the holder of `directory` has touched its lock, in its own time. Raises OSError if nobody has it."""
    descriptor = _open(directory, os.O_RDONLY)  # network file systems ask the server when a file is opened
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _taken(directory: Path, holder: dict[str, Any] | None) -> UserError:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return UserError(f"output: {directory}: another run uses it ({who}); wait for its end, or give another directory")
