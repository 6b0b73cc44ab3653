"""All that psgc prints: `say` for lines, `draw` for what has colours of its own.

Names of files and hosts, settings and the texts of errors are somebody else's. `say` escapes what a terminal would
obey in them, and keeps them on their line. A linter (ruff's T20) refuses `print` elsewhere in psgc.
"""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from psgc.errors import RunFailed, visible


class OutputLost(RunFailed):
    """Standard output cannot be written. Without a text when its reader has left, as `head` does: exit code 141."""

    def __init__(self, error: OSError) -> None:
        left = isinstance(error, BrokenPipeError)
        super().__init__("" if left else f"standard output: {error.strerror}")
        self.exit_code = 128 + signal.SIGPIPE if left else 1


def say(line: str = "", *, error: bool = False) -> None:
    """Print `line` on standard output, or on standard error; what is not printable in it is escaped.

    Raises OutputLost when standard output cannot be written. Nothing happens when standard error cannot.
    """
    if error:
        with suppress(OSError):
            _write(f"{visible(line)}\n", sys.stderr)
    else:
        draw(f"{visible(line)}\n")


def shell_line(words: Sequence[str]) -> str:
    """A command for the shell, printable whatever is in its words (Bash's $'...', where something is not).

    >>> shell_line(["sbatch", "my run", "a\\x1bb"])
    "sbatch 'my run' $'a\\\\x1bb'"
    """
    return " ".join(shlex.quote(word) if word.isprintable() else f"$'{''.join(map(_escaped, word))}'" for word in words)


def draw(text: str) -> None:
    """Write `text` as it is to standard output. Raises OutputLost."""
    try:
        _write(text, sys.stdout)
    except OSError as error:
        raise OutputLost(error) from None


def say_traceback() -> None:
    """Print the traceback of the exception that is being handled on standard error."""
    for line in traceback.format_exc().rstrip("\n").split("\n"):
        say(line, error=True)


def open_missing_streams() -> None:
    """Open /dev/null in place of each standard stream that is closed.

    Otherwise the next file that is opened would take its number, and a child process would write into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  for the life of the process


def _write(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError:
        _discard(stream)
        raise


def _escaped(character: str) -> str:
    if character.isprintable() and character not in "\\'":
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _discard(stream: TextIO) -> None:
    """Have the rest go to /dev/null: Python writes once more what is still in the buffer when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
