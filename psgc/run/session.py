"""This rank's part in the run of a NumPy problem, by `psgc train` or by psgc.train in a program.

The ranks meet, rank 0 serves and the others work, and then all know how it ended (`psgc.run.ending`). `psgc train` ends
its process; a program goes on, and may begin another run.
"""

import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from psgc.config import from_yaml_text
from psgc.errors import RunFailed, UserError
from psgc.mpi_start import MPI, TIMEOUT
from psgc.processes import default_signals_in_children
from psgc.run import launched
from psgc.run.ending import CalledOff, Ending, leave_mpi
from psgc.run.inputs import PREPARING, Given
from psgc.run.launched import interruption
from psgc.run.meeting import Meeting, NotAllCame, leave_after_a_run, tell_of_the_end, wait_for_turn
from psgc.run.script_ending import STOPPERS, ScriptEnding, leave, stopped_by
from psgc.terminal import flush, say_traceback
from psgc.transport import Transport

LAST_RESORT = 20  # seconds after SIGTERM at which a worker ends although the server has not told it to


def take_part(
    transport: Transport, given: Given | UserError, ending: Ending, resuming: bool, debug: bool = False
) -> None:
    """The run, from the meeting of the ranks to its end, which `ending` knows then.

    given: of this rank, or what is wrong with it.
    """
    meeting = Meeting(transport, ending, PREPARING)
    serving = transport.rank == 0
    before = signal.getsignal(signal.SIGTERM)
    if not serving:

        def stop(number: int, frame: FrameType | None) -> None:
            if transport.rank:
                signal.alarm(LAST_RESORT)
            elif callable(before):  # this rank has taken over
                before(number, frame)

        signal.signal(signal.SIGTERM, stop)
    try:
        meeting.come(str(given) if isinstance(given, UserError) else "")
        assert isinstance(given, Given)
        if serving:  # each side imports only its own modules: all ranks of a host start at the same time
            from psgc.run.server_side import serve

            serve(transport, given, ending, meeting, resuming, debug)
        else:
            from psgc.run.worker_side import work

            work(transport, given, ending, meeting, debug)
    except (UserError, RunFailed, CalledOff) as error:
        ending.failed(error)
        if debug and not ending.raises and not isinstance(error, CalledOff):
            say_traceback()
    except BaseException as error:
        ending.defect(error)
    finally:
        if not serving:  # no worker may die while rank 0 still writes a checkpoint
            signal.signal(signal.SIGTERM, before)
            signal.alarm(0)


# psgc train


def _load() -> None:
    import_module("psgc.run.worker_side" if MPI.COMM_WORLD.Get_rank() else "psgc.run.server_side")


def train(
    config_path: str,
    overrides: Sequence[str],
    debug: bool,
    stopped_by: Sequence[int],
    resuming: bool = False,
    began_with: str | None = None,
) -> NoReturn:
    """Run this rank of `psgc train`, and end the process with the exit code that docs/getting-started.md names.

    stopped_by: the signals that asked this process to end; a handler fills it, and rank 0 then ends the run in order.
    resuming: continue from the newest checkpoint in the run directory, if there is one.
    began_with: the settings with which a run began that is started again; None: rank 0 reads the YAML
    """
    config = None if began_with is None else from_yaml_text(began_with, config_path)
    try:
        transport = Transport(interrupted=lambda: interruption(stopped_by))
        wait_for_turn(_load, lambda: interruption(stopped_by))
    except RunFailed as error:
        if stopped_by:
            sys.exit(128 + stopped_by[0])  # silently: every rank would say the same
        if launched.is_on_standby():  # the run before goes on, and `psgc launch` says that these ranks did not start
            sys.exit(1)
        if not Ending().speaks_of(error):
            raise CalledOff from None
        raise
    default_signals_in_children()
    ending = Ending(transport, stopped_by)
    take_part(transport, Given(config_path, config, overrides=overrides), ending, resuming, debug)
    code = ending.code
    flush()  # what a model has printed
    leave_mpi(transport, ending.in_order, has_failed=code != 0)
    if ending.in_order:
        transport.end(code)  # without waiting for a compute thread that is inside a gradient
    transport.leave(code)


# psgc.train in a program


class RunOfProgram:
    """The newest run, for the end of the process (`psgc.run.script_ending.RunToEnd`)."""

    goes_on = False

    def __init__(self) -> None:
        self._ending = Ending(stopped_by=stopped_by, raises=True)
        self.is_cut_short = False

    @property
    def rank(self) -> int:
        return launched.number() if self._ending.transport is None else self._ending.transport.rank

    @property
    def in_order(self) -> bool:
        return self._ending.in_order

    @property
    def reports(self) -> bool:
        return self.rank > 0 and not self.is_cut_short

    def take_part(self, given: Given | UserError, resuming: bool, timeout: float) -> BaseException | None:
        """Meet the other ranks, and take part in the run. Returns what this rank raises, None if the program goes on.

        timeout: seconds that the ranks wait for each other until rank 0 sets others
        """
        ending, is_over, is_well = self._ending, False, False
        try:
            ending.transport = transport = Transport(
                interrupted=lambda: None if is_over else interruption(stopped_by), timeout=timeout
            )
            default_signals_in_children()
            if self.rank == 0:  # before the summary says that all is done
                launched.say_whether_it_works_on(True)
            take_part(transport, given, ending, resuming, launched.debugging())
            is_over = True  # rank 0 may have had a signal, too, and tells the others how the run has ended
            if self.rank == 0:  # perhaps since the rank 0 before has died
                launched.say_whether_it_works_on(True)
            is_well = ending.error is None
            if self.in_order and not isinstance(ending.error, NotAllCame):  # whoever is missing hears no broadcast
                is_well = bool(transport.broadcast(None if self.rank else b"+" if is_well else b"", "training"))
            if is_well and self.in_order:
                transport.close()
        except RunFailed as error:  # before the run, or a rank has died since its end
            ending.in_order = False
            ending.failed(error)
        if is_well and (self.in_order or self.rank == 0):
            return None
        self.is_cut_short = True
        if stopped_by and self.rank == 0:
            return KeyboardInterrupt() if stopped_by[0] == signal.SIGINT else SystemExit(128 + stopped_by[0])
        return ending.raised or CalledOff()

    def close(self) -> None:
        """The program may begin another run as it is."""

    def make_room(self) -> None:
        """See `train_in_program`."""

    def end(self, text: str = "", code: int = 1) -> None:
        """Leave MPI for good. An error of the program on a worker, after the run, is shown: nobody else knows of it."""
        shown = "" if self.is_cut_short else text
        tell_of_the_end(self.rank, shown, code)
        error = leave_after_a_run(self._ending, text, code, meets=not self.is_cut_short)
        if error is not None:
            raise error
        if shown and self.rank and not launched.is_launched():  # which looks at more than mpirun's exit code
            leave(code)


_script: ScriptEnding | None = None  # of this process, once it has called `train_in_program`


def train_in_program(given: Given | UserError, program: str, resuming: bool) -> Path | None:
    """Take part in a run, with the other ranks. Returns its directory on rank 0, None on the others.

    given: of this rank, or what is wrong with it; program: the file name, for messages.
    Raises on rank 0 UserError, RunFailed, or KeyboardInterrupt; the others then end with CalledOff, without a word, and
    so they do when ranks were lost.
    """
    global _script
    if _script is None:
        _script = ScriptEnding()
    before, timeout = _script.session, TIMEOUT
    if before is not None and (before.is_cut_short or not before.in_order):
        what = "failed" if before.in_order else "lost ranks"
        raise UserError(f"psgc.train: the run before has {what}, after which no other can begin; start a new program")
    if before is not None:
        timeout = math.inf  # rank 0 may take its time until its next run
    elif isinstance(given, Given) and given.config is not None:
        timeout = given.config.faults.setup_timeout
    launched.begin(stopped_by)
    run = RunOfProgram()
    output = given.config.output if isinstance(given, Given) and given.config else None
    with _signals():
        _script.session = run
        raised = run.take_part(given, resuming or launched.resuming(output), timeout)
    if raised is not None:
        raise raised
    directory = Path(output) if run.rank == 0 and output is not None else None
    late = stopped_by.copy()
    stopped_by.clear()
    if late and directory is not None and not (late[0] == signal.SIGUSR1 and launched.hands_over(directory)):
        signal.raise_signal(late[0])  # it came when all was done: now it is for the program
    return directory


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and what `psgc launch` and SLURM send end the run in order. Afterwards they do what they did before."""
    if threading.current_thread() is not threading.main_thread():
        raise UserError("psgc.train: expected the main thread, which alone gets signals")
    before = {
        number: signal.signal(number, lambda number, _: stopped_by.append(number))
        for number in (signal.SIGINT, *STOPPERS)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
