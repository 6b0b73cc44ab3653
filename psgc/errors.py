"""The errors of psgc, one line and an exit code each; and lines about errors that other code raises.

A line says what was wrong, where, and what would be right.
"""

import os
import site
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress

_PSGC = os.path.dirname(os.path.abspath(__file__))


class PsgcError(Exception):
    """Base of all errors that psgc raises on purpose. The text is made printable and one line."""

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(visible(text))


class UserError(PsgcError, ValueError):
    """The command, the YAML, the data or an argument is wrong, and the user can correct it. Exit code 2."""

    exit_code = 2


class RunFailed(PsgcError):
    """A run that had started could not continue. Exit code 1."""


class TooFewWorkers(RunFailed):
    """Too few workers remained. Another attempt, on other machines, may succeed. Exit code 1."""


class FirstDied(RunFailed):
    """Rank 0 died while the ranks met, so another one has to say so. Exit code 1."""


class FirstSilent(RunFailed):
    """Rank 0 did not come, or hung, while the ranks met, so another one has to say so. Exit code 1."""


class ServerDiffers(RunFailed):
    """The state of rank 0 differs from that of most workers, so it is wrong. Exit code 1.

    agreed: the last iteration at whose beginning it did not; None if there is none
    """

    def __init__(self, text: str, agreed: int | None) -> None:
        super().__init__(text)
        self.agreed = agreed


class ModelError(RunFailed):
    """The model breaks a rule, so that its gradients cannot be used on any worker. Exit code 1."""


class ProtocolError(PsgcError):
    """An event that the protocol does not allow in this state: a defect of psgc.

    events: those before it, oldest first. Only a traceback lists them.
    """

    def __init__(self, text: str, events: Iterable[object] = ()) -> None:
        super().__init__(text)
        self.events = tuple(events)
        self.add_note("\n  ".join(["Events before it, oldest first:", *map(str, self.events)]))


def visible(text: str) -> str:
    """`text` with unprintable characters escaped, so that a terminal does not obey them.

    >>> visible("a\\nb\\x1b[31m é")
    'a\\\\nb\\\\x1b[31m é'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """Name and text of a foreign error, on one line of at most 300 characters and without control characters.

    >>> one_line(ValueError("first\\n second\\x1b[31m"))
    'ValueError: first second[31m'
    """
    text = " ".join(str(error).split())
    text = "".join(character for character in text if character.isprintable())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."


def raised_at(error: BaseException) -> str:
    """Where the user's code raised `error`, as ", model.py:11", or "" when none of it was running.

    That is the innermost line outside of psgc and of what is installed, or else the one that psgc called.
    """
    place = _users_place(traceback.extract_tb(error.__traceback__))
    return f", {_shown(place)}" if place else ""


def current_line(thread: int | None) -> str:
    """The line of the user's code that the thread with this `ident` is in, as "model.py:11: total = f(x)", or ""."""
    top = sys._current_frames().get(thread or 0)
    place = _users_place(traceback.extract_stack(top)) if top else None
    return f"{_shown(place)}: {place.line}"[:200] if place else ""


def _users_place(stack: Sequence[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """The innermost place in the user's code. stack: outermost first."""
    import sysconfig  # only errors need it

    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed.append(site.getusersitepackages())
    others = [p for p in stack if not _lies_in(p.filename, [_PSGC]) and p.filename != threading.__file__]
    users = [place for place in others if not (_lies_in(place.filename, installed) or place.filename.startswith("<"))]
    return users[-1] if users else others[0] if others else None


def _shown(place: traceback.FrameSummary) -> str:
    file = place.filename
    with suppress(OSError):  # the current directory may be gone
        file = file.removeprefix(f"{os.getcwd()}{os.sep}")
    return f"{file}:{place.lineno}"


def _lies_in(file: str, directories: Sequence[str]) -> bool:
    return any(file.startswith(f"{directory}{os.sep}") for directory in directories)
