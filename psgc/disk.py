"""Files: paths as users write them, reading, and writing.

* Only regular files are read or replaced: a pipe would block, a device has no end, and if root renamed a new file to
  `/dev/full`, the machine would lose that device.
* A new file appears whole or not at all: it is written under a name that cannot be guessed, and renamed when it is
  whole.
* A link that another user may have made is never followed. The last directory of a path must not be a link either;
  callers resolve directories that a user may link.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

from psgc.errors import UserError

UNNAMED = ".psgc-*.tmp"  # files that are not whole yet
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # errors after which removing other files helps
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a link",
}


def expanded(path: str) -> str:
    """`path` with a leading `~` or `~user` and each `$NAME` and `${NAME}` replaced; `$$` is a dollar sign.

    Raises UserError for a variable that is not set or is empty.

    >>> os.environ["SCRATCH"] = "/scratch/me"
    >>> expanded("$SCRATCH/a$$b"), expanded("${SCRATCH}/c~d")
    ('/scratch/me/a$b', '/scratch/me/c~d')
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1].strip("{}")
        if not os.environ.get(name):
            raise UserError(f"{path}: the variable {name} is not set; a dollar sign is written as $$")
        return os.environ[name]

    user, slash, rest = path.partition("/") if path.startswith("~") else ("", "", path)
    home = os.path.expanduser(user + slash)
    return home + re.sub(r"\$(\$|[A-Za-z_]\w*|\{[^{}]*\})", value, rest, flags=re.ASCII)


def escaped(path: str) -> str:
    """The text that `expanded` reads as `path`."""
    return path.replace("$", "$$")


def is_kind(path: str | os.PathLike[str], kind: Callable[[int], bool], named: object) -> bool:
    """Whether `path` is there and of this kind, such as `stat.S_ISDIR`. named: the path in errors.

    Raises UserError when that cannot be found out: a directory above it is closed, or its name is too long.
    """
    try:
        return kind(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
        return False
    except OSError as error:
        raise UserError(f"{named}: {(error.strerror or str(error)).lower()}") from None


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
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


class NewFile:
    """A new file in `directory`, to be written as `stream`. The `with` block removes it unless `keep` gave it a name.

    replacing: the name of a file whose permissions it takes.
    Raises OSError when `directory` is a link, or the file to be replaced is not a regular one.
    """

    def __init__(self, directory: Path, replacing: str | None = None) -> None:
        self._directory = _open_directory(directory)
        try:
            mode = self._mode_of(replacing) if replacing is not None else None
            self._unnamed: str | None = UNNAMED.replace("*", secrets.token_hex(8))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(self._unnamed, flags, 0o666 if mode is None else mode, dir_fd=self._directory)
        except BaseException:
            os.close(self._directory)
            raise
        if mode is not None:
            with contextlib.suppress(OSError):  # some file systems have no permissions
                os.fchmod(descriptor, mode)  # restores permissions that the umask removed
        self.stream: IO[bytes] = _Stream(io.FileIO(descriptor, "w"))
        self.descriptor = descriptor

    def keep(self, name: str) -> None:
        """Close the file and give it its name, in place of the regular file that has it now, if any."""
        self.stream.close()  # some file systems report a full disk only here
        self._mode_of(name)
        assert self._unnamed is not None
        os.replace(self._unnamed, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._unnamed = None

    def keep_on_disk(self, name: str) -> None:
        """As `keep`. When this returns, file and name survive a crash of the machine."""
        self.stream.flush()
        os.fsync(self.descriptor)
        self.keep(name)
        descriptor = os.open(".", os.O_RDONLY, dir_fd=self._directory)
        try:
            os.fsync(descriptor)  # the name
        finally:
            os.close(descriptor)

    def _mode_of(self, name: str) -> int | None:
        """The permissions of the file `name`, None when there is none."""
        try:
            mode = os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None
        check_regular(mode)
        return stat.S_IMODE(mode) & 0o777

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the file is thrown away, or closed already
            self.stream.close()
        if self._unnamed is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._unnamed, dir_fd=self._directory)
        os.close(self._directory)


class _Stream(io.BufferedWriter):
    """Hides its descriptor: NumPy would write to it directly, with errors that do not say what went wrong."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


class GrowingFile:
    """A file that grows. It begins with `content` and `more`, and then replaces the file of that name. Raises OSError.

    Bytes that cannot be written wait for the next `write`, so that the file never has a hole.
    """

    def __init__(self, path: Path, content: bytes, more: Iterable[bytes] = ()) -> None:
        self._path = path
        self._waiting = bytearray()
        with naming(path), NewFile(path.parent, path.name) as file:
            for piece in chain((content,), more):
                file.stream.write(piece)
            file.stream.flush()
            self._descriptor = os.dup(file.descriptor)  # stays open, to write more
            try:
                file.keep(path.name)
            except BaseException:
                os.close(self._descriptor)
                raise

    def write(self, content: bytes = b"") -> None:
        """Write the waiting bytes, then `content`. Raises OSError when some are left."""
        self._waiting += content
        with naming(self._path):
            while self._waiting:  # one call may write only a part
                del self._waiting[: os.write(self._descriptor, self._waiting)]

    @property
    def waiting(self) -> int:
        """How many bytes wait."""
        return len(self._waiting)

    def reader(self) -> IO[bytes]:
        """The file opened for reading, even if its name now belongs to another file."""
        return open(f"/proc/self/fd/{self._descriptor}", "rb")

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._waiting.clear()


def write_whole(path: Path, write: Callable[[IO[bytes]], object], on_disk: bool = False) -> None:
    """Have `write` fill a new file, then rename it to `path`.

    on_disk: whether the file survives a crash of the machine from now on, so that an older one may be removed

    Raises OSError with the path, also when it or its directory is a link or of another kind.
    """
    with naming(path), NewFile(path.parent, path.name) as file:
        write(file.stream)
        (file.keep_on_disk if on_disk else file.keep)(path.name)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, as `write_whole` does."""
    write_whole(path, lambda stream: stream.write(text.encode()))


def make_directory(path: Path) -> None:
    """Make the directory `path` in one that is there. Raises OSError, also when it is a link."""
    with naming(path):
        try:
            path.mkdir()
        except FileExistsError:
            kind = stat.S_IFMT(path.lstat().st_mode)
            if kind != stat.S_IFDIR:
                reason = "Is a link, not a directory" if kind == stat.S_IFLNK else os.strerror(errno.ENOTDIR)
                raise OSError(errno.ENOTDIR, reason) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Every OSError raised in this context names `path` and no other file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, f"{path} is a link, not a directory") from None
        raise
