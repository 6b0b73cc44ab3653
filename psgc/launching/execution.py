"""Runs a script, or the training of a YAML, in this process, and records how it ended."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from psgc.errors import PsgcError, one_line
from psgc.run import launched
from psgc.terminal import say_together


@dataclass
class Execution:
    """Runs a script and records how it ended, unless it called psgc.torch.init."""

    code: int = 0  # the exit code
    reason: str = "without an error"  # why it ended, one line
    shown: list[str] = field(default_factory=list)  # the lines of its error for the user

    def run(self, work: Callable[[], object]) -> None:
        """Call `work`. An error after psgc.torch.init ends the process as in any Python program."""
        try:
            work()
        except SystemExit as end:
            self.code = end.code if isinstance(end.code, int) else int(end.code is not None)
            self.reason = f"sys.exit({end.code!r})"
            if end.code is not None and not isinstance(end.code, int):
                self.shown = str(end.code).split("\n")
            if launched.has_begun():
                self.shown = []
                if self.code:  # Python calls no excepthook for SystemExit
                    sys.excepthook(SystemExit, end, end.__traceback__)
                raise
        except BaseException as error:
            frames = error.__traceback__
            for _ in range(2):  # leave out the frames of this method and of `work`
                frames = frames and frames.tb_next
            self._raised(error, frames)
            if launched.has_begun() or sys.excepthook is not sys.__excepthook__:
                self.shown = []
                sys.excepthook(type(error), error.with_traceback(frames), frames)
                sys.exit(1)

    def _raised(self, error: BaseException, frames: TracebackType | None) -> None:
        place = next(iter(traceback.extract_tb(frames)[-1:]), None)
        where = f" ({os.path.basename(place.filename)}:{place.lineno})" if place else ""
        self.code, self.reason = 1, one_line(error) + where
        if isinstance(error, PsgcError):
            self.code, self.reason = error.exit_code, str(error)
        elif isinstance(error, KeyboardInterrupt):
            self.code = 128 + signal.SIGINT
        if isinstance(error, PsgcError) and not launched.debugging():
            self.shown = [f"psgc: {error}"]
        else:
            lines = traceback.format_exception(type(error), error, frames)
            self.shown = "".join(lines).rstrip("\n").split("\n")

    def show(self) -> None:
        """Print the lines of the error, once."""
        lines, self.shown = self.shown, []  # cleared first, because a timer may call this as well
        if lines:
            say_together(lines)
