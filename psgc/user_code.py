"""The line of the user's code that raised an error, or that a thread is in."""

import linecache
import os
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

_PSGC = os.path.dirname(os.path.abspath(__file__))
_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_INSTALLED.append(site.getusersitepackages())
_COLLECTIVE = re.compile(
    r"\.I?(all_?reduce|b(road)?cast|barrier|all_?gather|all_?to_?all|reduce|gather|scatter|reduce_scatter)v?(_\w+)?\(",
    re.IGNORECASE,
)
_PACKAGES = ("mpi4py", "torch.distributed", "horovod")  # whose collectives wait for other ranks


def raised_at(error: BaseException) -> str:
    """Where the user's code raised `error`, as ", model.py:11"; nothing when no line of such code was under way.

    That is the innermost line outside of psgc and of what is installed. Of a model that is itself installed, the line
    that psgc called.
    """
    place = _users_place(list(traceback.walk_tb(error.__traceback__)))
    return f", {_shown(*place)}" if place else ""


def current_line(thread: int | None) -> str:
    """The line of the user's code that the thread with this `ident` is in, as "model.py:11: total = f(x)".

    Followed by a remark when the line seems to call a collective of MPI, torch.distributed or Horovod. Empty when the
    thread is in no such line.
    """
    top = sys._current_frames().get(thread or 0)
    place = _users_place(list(traceback.walk_stack(top))[::-1]) if top else None
    if place is None:
        return ""
    frame, number = place
    line = linecache.getline(frame.f_code.co_filename, number).strip()
    told = f"{_shown(frame, number)}: {line}"[:200]
    if _COLLECTIVE.search(line) and any(map(_communicates, [*frame.f_globals.values(), *frame.f_locals.values()])):
        told += " (a collective waits for all ranks, which compute different chunks: a gradient must not call one)"
    return told


def _users_place(stack: Sequence[tuple[FrameType, int]]) -> tuple[FrameType, int] | None:
    """Of frames and line numbers, outermost first, the innermost that is the user's."""
    others = [place for place in stack if not _lies_in(place[0].f_code.co_filename, [_PSGC])]
    files = [frame.f_code.co_filename for frame, _ in others]
    users = [
        place
        for place, file in zip(others, files, strict=True)
        if not (_lies_in(file, _INSTALLED) or file.startswith("<"))
    ]
    if not others:
        return None
    return users[-1] if users else others[0]


def _communicates(value: object) -> bool:
    """Whether a variable is a package that has collectives, or something of it, as a communicator is."""
    names = (getattr(value, "__name__", ""), type(value).__module__)
    return any(str(name).startswith(_PACKAGES) for name in names)


def _shown(frame: FrameType, line: int) -> str:
    file = frame.f_code.co_filename
    with suppress(OSError):  # the current directory may be gone
        file = file.removeprefix(f"{os.getcwd()}{os.sep}")
    return f"{file}:{line}"


def _lies_in(file: str, directories: Sequence[str]) -> bool:
    return any(file.startswith(f"{directory}{os.sep}") for directory in directories)
