"""The line of the user's code that raised an error, or that a thread is in."""

import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from contextlib import suppress

_PSGC = os.path.dirname(os.path.abspath(__file__))
_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_INSTALLED.append(site.getusersitepackages())


def raised_at(error: BaseException) -> str:
    """Where the user's code raised `error`, as ", model.py:11"; empty when no line of such code was under way.

    That is the innermost line outside of psgc and of what is installed. Of a model that is itself installed, the line
    that psgc called.
    """
    place = _users_place(traceback.extract_tb(error.__traceback__))
    return f", {_shown(place)}" if place else ""


def current_line(thread: int | None) -> str:
    """The line of the user's code that the thread with this `ident` is in, as "model.py:11: total = f(x)", or ""."""
    top = sys._current_frames().get(thread or 0)
    place = _users_place(traceback.extract_stack(top)) if top else None
    return f"{_shown(place)}: {place.line}"[:200] if place else ""


def _users_place(stack: Sequence[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """The innermost place that is the user's. stack: outermost first."""
    others = [place for place in stack if not _lies_in(place.filename, [_PSGC])]
    users = [
        place for place in others if not _lies_in(place.filename, _INSTALLED) and not place.filename.startswith("<")
    ]
    if users:
        return users[-1]
    return others[0] if others else None


def _shown(place: traceback.FrameSummary) -> str:
    file = place.filename
    with suppress(OSError):  # the current directory may be gone
        file = file.removeprefix(f"{os.getcwd()}{os.sep}")
    return f"{file}:{place.lineno}"


def _lies_in(file: str, directories: Sequence[str]) -> bool:
    return any(file.startswith(f"{directory}{os.sep}") for directory in directories)
