"""Reading and writing files that a user names on the command line; also pipes, terminals, /dev/null and stdout."""

import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from psgc.disk import is_kind, naming, open_regular, write_whole
from psgc.errors import UserError, one_line

WRITTEN_BY = "# Written by: psgc"  # begins the second line of a script, the first one of other files
LINES = 1000  # bytes with two lines


def write_output(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write the file `path` with `write`, completely or not at all. A pipe or a terminal is written to directly.

    Raises OSError, with the path, when the file cannot be written or is a link, a directory, a socket or a disk.
    """
    with naming(path):
        if _is_stream(path):
            content = BytesIO()
            write(content)
            _write_straight(path, content.getvalue())
        else:
            write_whole(path.parent.resolve() / path.name, write)


def write_output_text(path: Path, text: str) -> None:
    content = text.encode(errors="surrogateescape")  # names of files need not be UTF-8
    write_output(path, lambda stream: stream.write(content))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a UserError that says that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error while reading or parsing the file `path` into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except Exception as error:  # NumPy, zipfile, csv and json raise many kinds
        raise UserError(f"{path}: damaged, or of another version of psgc ({one_line(error)})") from None


def check_file(option: str, file: str | None) -> None:
    """Raises UserError when `file`, the value of `option`, cannot be written. None is accepted."""
    if file is None:
        return
    named = f"{option} {file}"
    if not is_kind(Path(file).absolute().parent, stat.S_ISDIR, named) or is_kind(file, stat.S_ISDIR, named):
        raise UserError(f"{named}: expected a file in a directory that exists")


def check_ours(path: Path, instead: str) -> None:
    """Raises UserError when there is a file `path` that psgc has not written, as its first two lines say.

    instead: what the user can give
    """
    if not is_kind(path, stat.S_ISREG, path):
        return
    with reading(path), open_regular(path) as stream:
        begin = stream.read(LINES)
    if not any(line.startswith(WRITTEN_BY.encode()) for line in begin.splitlines()[:2]):
        raise UserError(f"{path}: would be replaced, and psgc has not written this file; give {instead}")


def check_plot(file: str | None) -> None:
    """Raises UserError when the file of `--plot` cannot be written or is not an image file."""
    check_file("--plot", file)
    if file is not None and Path(file).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot {file}: expected a name that ends in .png, .pdf or .svg")


def json_text(content: Any, indent: int) -> str:
    """The content as JSON, with nan and inf as text. JSON has neither, and null means here that there is no number."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any) -> None:
    with writing(path):
        write_output_text(path, json_text(content, indent=1))


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
