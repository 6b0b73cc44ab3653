"""A rank of a script: what `psgc launch train.py` has mpirun start in place of `python train.py`.

MPI starts before the script does. With fault tolerance mpirun lets the others wait without end for a rank that has died
before MPI's start; afterwards its death is known. When the script ends without psgc.torch.init, this rank meets those
that have come there, and then all end. When all end so, each error is shown once.
"""

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

from psgc.errors import PsgcError, RunFailed, one_line
from psgc.processes import die_with_parent
from psgc.rendezvous import MPI
from psgc.terminal import say, say_together
from psgc.training import launched
from psgc.transport import Transport

PATIENCE = 2.0  # seconds after which an error is shown although other ranks may have the same


class _Script:
    """What became of the script. reason: one line; shown: what the user is to see of its error, lines."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.code = 0
        self.reason = "without an error"
        self.shown: list[str] = []

    def run(self, path: str) -> None:
        """Runs the script as Python does."""
        main = ModuleType("__main__")
        main.__dict__.update(__file__=path, __builtins__=__builtins__, __spec__=None)
        sys.modules["__main__"] = main
        try:
            exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), main.__dict__)
        except SystemExit as end:
            self._exited(end.code)
            if launched.has_begun():
                self.shown = []
                if self.code:  # Python itself does not call it then
                    sys.excepthook(SystemExit, end, end.__traceback__)
                raise
        except BaseException as error:
            frames = error.__traceback__ and error.__traceback__.tb_next  # without this one
            self._raised(error, frames)
            if launched.has_begun() or sys.excepthook is not sys.__excepthook__:
                self.shown = []
                sys.excepthook(type(error), error, frames)
                sys.exit(1)

    def _exited(self, code: object) -> None:
        self.code = code if isinstance(code, int) else int(code is not None)
        self.reason = f"sys.exit({code!r})"
        if code is not None and not isinstance(code, int):
            self.shown = str(code).split("\n")

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
        """Once."""
        lines, self.shown = self.shown, []
        if lines:
            say_together(lines)


def main() -> None:
    """Run the script that the arguments name, with the rest of them as its arguments."""
    path = sys.argv[1]
    die_with_parent()
    MPI.Init_thread(MPI.THREAD_SERIALIZED)  # by whichever thread of psgc.torch communicates then
    script = _Script(MPI.COMM_WORLD.Get_rank())
    atexit.register(_end, script)  # after what the script registers
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    script.run(path)


def _end(script: _Script) -> None:
    """The end of a process. One without psgc.torch.init, and without MPI's Finalize of its own, meets the others."""
    if launched.has_begun() or MPI.Is_finalized():
        script.show()
        if script.rank == 0:
            _leave_summary(script.code)
        return
    late = threading.Timer(PATIENCE, script.show)
    late.daemon = True
    late.start()
    serving, transport, code = script.rank == 0, None, 1
    try:
        transport = Transport()
        endings = launched.meet(transport, f"{script.code} {script.reason}")
    except RunFailed as error:
        late.cancel()
        script.show()
        if serving:
            say(f"psgc: {error}", error=True)
        if transport is None or not isinstance(error, launched.NotAllCame):  # somebody is dead
            _leave(transport, 1 if serving else 0)
    else:
        late.cancel()
        if endings.index(endings[transport.rank]) == transport.rank:
            script.show()
        code = next((code for ending in endings if (code := int(ending.partition(" ")[0]))), 0)
        if serving:
            _leave_summary(code)
    _flush()
    transport.finalize()
    if serving and code:
        time.sleep(0.2)  # let the others leave first, or mpirun comments on rank 0's code as well
    transport.end(code if serving else 0)  # mpirun passes on rank 0's code, and prints a long comment on any other


def _leave_summary(code: int) -> None:
    with suppress(OSError):
        launched.leave_summary(code)


def _leave(transport: Transport | None, code: int) -> NoReturn:
    """Ends this process when another one has died."""
    _flush()
    if transport is None:
        os._exit(code)
    transport.leave(code, range(1, transport.size) if transport.survives_deaths else ())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


if __name__ == "__main__":
    main()
