"""All output of psgc: `say` prints lines, `draw` prints text with colours.

Names, settings and error texts come from outside. `say` escapes their control characters, so that a terminal does not
obey them, and keeps them on one line. A linter (ruff's T20) forbids `print` elsewhere in psgc.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from psgc.errors import RunFailed, visible


class OutputLost(RunFailed):
    """Standard output cannot be written. No text, and exit code 141, if its reader has closed it, as `head` does."""

    def __init__(self, error: OSError) -> None:
        closed = isinstance(error, BrokenPipeError)
        super().__init__("" if closed else f"standard output: {error.strerror}")
        self.exit_code = 128 + signal.SIGPIPE if closed else 1


def say(line: str = "", *, error: bool = False) -> None:
    """Print `line` on standard output, or on standard error, with unprintable characters escaped.

    Raises OutputLost when standard output cannot be written. Errors of standard error are ignored.
    """
    if error:
        with suppress(OSError):
            _write(f"{visible(line)}\n", sys.stderr)
    else:
        draw(f"{visible(line)}\n")


def say_together(lines: Iterable[str]) -> None:
    """Print lines on standard error in one piece, so that lines of other ranks do not come in between."""
    with suppress(OSError):
        _write("".join(f"{visible(line)}\n" for line in lines), sys.stderr)


def draw(text: str) -> None:
    """Write `text` unchanged to standard output. Raises OutputLost."""
    try:
        _write(text, sys.stdout)
    except OSError as error:
        raise OutputLost(error) from None


def flush() -> None:
    """Write what standard output and standard error still hold, if anybody reads them, before the process ends."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def say_traceback() -> None:
    """Print the traceback of the current exception on standard error."""
    for line in traceback.format_exc().rstrip("\n").split("\n"):
        say(line, error=True)


def open_missing_streams() -> None:
    """Open /dev/null in place of each closed standard stream.

    Otherwise the next file that is opened would get its number, and a child process could write into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  for the life of the process


def _write(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError:  # at its end Python writes the rest of the buffer, which must go to /dev/null
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        raise
