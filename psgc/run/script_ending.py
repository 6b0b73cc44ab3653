"""The end of the process of a script, with psgc.torch or psgc.train: what the other ranks are told, and the exit code.

The table in `psgc.run.ending` has the exit codes.
"""

import atexit
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import ClassVar, Protocol

from psgc.errors import PsgcError, RunFailed, UserError, one_line, raised_at
from psgc.run import launched
from psgc.terminal import flush, say

STOPPERS = (signal.SIGTERM, signal.SIGUSR1)  # with these `psgc launch` and SLURM ask a run to end; and SIGINT

stopped_by: list[int] = []  # signals that have come


class RunToEnd(Protocol):
    """What `ScriptEnding` needs of a run.

    rank: of this process
    goes_on: whether another run of psgc.torch may follow
    in_order: whether all ranks leave through MPI's Finalize
    is_cut_short: whether nothing more is to be done on this rank
    reports: whether `end` has rank 0 say what the user's mistake was
    """

    goes_on: bool
    is_cut_short: bool

    @property
    def rank(self) -> int: ...
    @property
    def in_order(self) -> bool: ...
    @property
    def reports(self) -> bool: ...

    def end(self, text: str = "", code: int = 1) -> None:
        """The script ends. Leaves MPI. text: why, if it failed, else empty; code: the exit code of a failure.

        Raises, on rank 0, the error that ended the run after the last call of the script.
        """

    def close(self) -> None:
        """End the run. The script goes on: `make_room` or `end` follows. Raises the error that ended the run."""

    def make_room(self) -> None:
        """Another run follows. Raises RunFailed or CalledOff if it cannot."""


class ScriptEnding:
    """Handles the end of the script: tells the other ranks, and sets the exit code.

    Making one closes the earlier run of this process, if another run may follow it.

    session: the run on this rank, None before there is one
    """

    _earlier: ClassVar["ScriptEnding | None"] = None

    def __init__(self) -> None:
        before = ScriptEnding._earlier
        if before is not None and before.session is not None and before.session.goes_on:
            before.close()
            before.session.make_room()
            before._withdraw()
        ScriptEnding._earlier = self
        self.session: RunToEnd | None = None
        self.last: Callable[[bool], object] = lambda _: None  # called at the end: whether the script has raised
        self.rows: Callable[[], object] = lambda: None  # called when all rows of the run are there
        self.closed: Callable[[bool], object] = lambda _: None  # called after that: whether it was an error
        self._code: int | None = None  # of the exit; None: that of Python
        self._text = ""  # why the script ends
        self._is_ours = False  # because of an error of psgc
        self._to_report = False  # rank 0 has to report it
        self._is_closed = False
        self._hook = sys.excepthook
        sys.excepthook = self._raised
        atexit.register(self._at_exit)

    @classmethod
    def another_may_follow(cls) -> bool:
        """Whether another run of psgc.torch may follow the newest one of this process."""
        before = cls._earlier
        return before is not None and before.session is not None and before.session.goes_on

    def catch_signals(self) -> None:
        """Let rank 0 end the run in order. A second Ctrl-C ends the script at once."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGINT, _stop)
        for number in STOPPERS:
            signal.signal(number, lambda number, _: stopped_by.append(number))

    def come_first(self) -> None:
        """Run before the exit hooks that other packages have registered since: they close what the run writes to."""
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)

    def close(self) -> None:
        """End the run. May be called again. Raises the error that ended it."""
        if self._is_closed or self.session is None:
            return
        self.last(False)
        self.session.close()
        self._is_closed = True
        self.rows()
        self.closed(False)

    def _withdraw(self) -> None:
        """Another run begins in this process."""
        atexit.unregister(self._at_exit)
        sys.excepthook = self._hook

    def _raised(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._code, self._text = 1, f"its script raised {one_line(error)}{raised_at(error)}"
        if isinstance(error, PsgcError):
            self._code, self._is_ours, self._text = error.exit_code, True, str(error)
        elif isinstance(error, KeyboardInterrupt):
            self._code = 128 + signal.SIGINT
        elif isinstance(error, SystemExit):  # Python shows what there is to be shown
            self._text = f"its script called sys.exit({error.code!r})"
            return
        rank = 0 if self.session is None else self.session.rank
        is_reported = isinstance(error, UserError) and self.session is not None and self.session.reports
        if stopped_by and isinstance(error, RunFailed):  # `psgc launch` knows which signal it was
            is_reported = is_reported or launched.is_launched()
        if isinstance(error, PsgcError) and not launched.debugging():
            self._to_report = is_reported and isinstance(error, UserError)
            if not is_reported:
                say(f"psgc: {error}", error=True)
        elif isinstance(error, KeyboardInterrupt):
            if rank == 0:
                say("psgc: stopped by Ctrl-C (SIGINT)", error=True)
        elif rank == 0:
            self._hook(kind, error, trace)
        else:  # rank 0 shows the first line
            self._text += "\n" + "".join(traceback.format_exception(kind, error, trace))

    def _at_exit(self) -> None:
        atexit.unregister(self._at_exit)
        session, is_late = self.session, False
        try:
            if not self._is_closed:
                self.last(bool(self._text) and not self._is_ours)
        except Exception as error:  # it is too late for Python to end with the exit code of an error
            is_late = not self._text
            if is_late:
                self._raised(type(error), error, error.__traceback__)
        code = self._code
        if session is not None:
            try:
                session.end(self._text, code or 1)
            except PsgcError as error:
                self._raised(type(error), error, error.__traceback__)
                code, is_late = self._code, True
            if self._to_report and not session.reports:  # the run was over before rank 0 knew of the mistake
                say(f"psgc: {self._text}", error=True)
            if not self._is_closed:
                self.rows()
                self.closed(bool(self._text))
            if session.rank == 0:  # exit hooks of other packages may take minutes
                launched.say_whether_it_works_on(True)
            if session.rank:  # it returns 0: see `psgc.run.ending`
                is_short = code is not None or session.is_cut_short or not session.in_order
                code = 0 if is_short else None
        rank = launched.number() if session is None else session.rank
        if stopped_by and rank == 0 and code is not None:
            code = 128 + stopped_by[0]
        is_ours = code not in (None, 1) or (session is not None and not session.in_order)
        if code is not None and (is_ours or is_late):
            leave(code)


def leave(code: int) -> None:
    """End the process with this exit code, which Python would not take from an exception."""
    run: Callable[[], object] = atexit._run_exitfuncs
    run()
    flush()
    os._exit(code)


def _stop(number: int, _frame: FrameType | None) -> None:
    if stopped_by:
        raise KeyboardInterrupt
    stopped_by.append(number)
