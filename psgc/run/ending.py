"""How a run ends: what each rank says, the exit code of its process, and how it leaves MPI.

what ends the run                who says what                                                  exit code of rank 0
all is done                      rank 0: the summary                                            0
a mistake of the user            rank 0: one line, whichever rank has found it                  2
the run cannot go on             rank 0: why, and how to resume it                              1
a signal                         `psgc launch`, without it rank 0                               128 + its number
a file of rank 0                 rank 0: which, and what is wrong with it                       1
a defect of psgc                 the rank that has it: the traceback                            1
the script of rank 0 raises      rank 0, as Python does                                         1, or that of the error
the script of another rank does  that rank, or rank 0 for it when the run then ends             the run goes on
some scripts end before the run  rank 0: which, and why                                         1, or that of the error
rank 0 dies, and nobody goes on  `psgc launch`, without it rank 1                               mpirun's

All other ranks return 0, and rank 0 leaves last (`leave_mpi`). mpirun returns the exit code of rank 0. It prints a long
comment when another rank returns a code that is not 0, or when rank 0 returns one before the others have left.
MPI reports the death of a process to the others. So a rank that meets a defect of psgc before the others know that the
run is over kills its process.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from psgc.errors import FirstDied, FirstSilent, PsgcError, RunFailed, TooFewWorkers, UserError, one_line
from psgc.run.launched import is_launched, number
from psgc.terminal import say, say_traceback
from psgc.transport import Transport


class CalledOff(SystemExit):
    """Ends a rank on which nothing more is to be done; rank 0 says why."""

    def __init__(self) -> None:
        super().__init__(0)


@dataclass(frozen=True)
class RunOutcome:
    """How a run has ended.

    reason: why it failed or was interrupted, else empty
    code: the exit code
    too_few_workers: whether it failed for lack of workers: another attempt may succeed
    enough: why a run that is done has ended before its last iteration, else empty
    """

    status: Literal["done", "failed", "interrupted"] = "done"
    reason: str = ""
    code: int = 0
    too_few_workers: bool = False
    enough: str = ""

    @classmethod
    def of(cls, error: BaseException, stopped_by: Sequence[int] = ()) -> "RunOutcome":
        """The outcome of a run that this error has ended. stopped_by: the signals that have come."""
        if not isinstance(error, PsgcError):  # a defect
            return cls("failed", one_line(error), 1)
        if stopped_by and not isinstance(error, UserError):
            return cls("interrupted", str(error), 128 + stopped_by[0])
        return cls("failed", str(error), error.exit_code, isinstance(error, TooFewWorkers))


class Ending:
    """What a rank knows of the end of its run.

    transport: None while the ranks have not met
    stopped_by: the signals that have come; a handler fills it
    raises: whether a program gets the error, so that nothing is said here
    told: whether every process knows that the run is over
    in_order: whether all of them leave through MPI's Finalize
    error: why the run has failed, or CalledOff
    raised: what this rank says or raises: that error, or CalledOff when another rank speaks of it
    """

    def __init__(
        self, transport: Transport | None = None, stopped_by: Sequence[int] = (), raises: bool = False
    ) -> None:
        self.transport, self.stopped_by, self.raises = transport, stopped_by, raises
        self.told = self.in_order = False
        self.error: BaseException | None = None
        self.raised: BaseException | None = None

    def call_off(self) -> None:
        """There will be no run, every process knows so, and all leave in order."""
        self.told = self.in_order = True

    def failed(self, error: BaseException) -> None:
        """The run has failed, or nothing more is to be done on this rank. Says so if that is for this rank to say."""
        if self.error is not None:
            return
        self.error = error
        self.raised = error if self.speaks_of(error) else CalledOff()
        if self.raises or not isinstance(self.raised, PsgcError) or (self.stopped_by and is_launched()):
            return
        say(f"psgc: {error}", error=True)

    def defect(self, error: BaseException) -> None:
        """This rank has raised what none raises on purpose. Ends the process if the others do not know of the end."""
        is_file = False
        if self.speaks_of(error) and isinstance(error, OSError):  # a full disk, a lost file server
            what = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
            is_file, error = True, RunFailed(f"failed: {what}")
        self.error = self.raised = error
        if not self.raises or not self.told:
            say(f"psgc: {error}", error=True) if is_file else say_traceback()
        if not self.told:
            os.kill(os.getpid(), signal.SIGKILL)

    def speaks_of(self, error: BaseException) -> bool:
        """Whether this rank says why the run has failed."""
        transport = self.transport
        if (number() if transport is None else transport.rank) == 0:
            return True
        if (number() if transport is None else transport.place) != 1:
            return False
        if is_launched():  # `psgc launch` says that rank 0 has died
            return isinstance(error, FirstSilent)
        return isinstance(error, FirstDied | FirstSilent) or (transport is not None and transport.is_gone(0))

    @property
    def code(self) -> int:
        if self.raised is None or isinstance(self.raised, CalledOff):
            return 0
        if self.stopped_by:
            return 128 + self.stopped_by[0]
        return self.raised.exit_code if isinstance(self.raised, PsgcError) else 1


def leave_mpi(transport: Transport, in_order: bool, has_failed: bool) -> None:
    """Leave MPI for good, unless others have died or hang: then Finalize would. Rank 0 returns after the others."""
    if in_order:
        transport.finalize()
    if has_failed if in_order else transport.survives_deaths:
        transport.outlast(range(1, transport.size))
