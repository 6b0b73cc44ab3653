"""`psgc.train`: a run of the ranks that a program was started on, from its call to its return."""

import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from psgc.errors import RunFailed, UserError, one_line
from psgc.processes import default_signals_in_children
from psgc.rendezvous import MPI
from psgc.run import launched
from psgc.run.ending import Ending, interruption
from psgc.run.ending import launched as is_launched
from psgc.run.given import Given
from psgc.run.script_ending import STOPPERS, ScriptEnding, leave
from psgc.run.train import LAST_RESORT
from psgc.terminal import say, say_together, say_traceback
from psgc.transport import Transport


class _Ranks:
    """The ranks of the newest run, for the end of the process (`psgc.run.script_ending.RunToEnd`)."""

    is_alone = False

    def __init__(self, transport: Transport) -> None:
        self._transport, self.rank = transport, transport.rank
        self.in_order = self.is_cut_short = False

    @property
    def reports(self) -> bool:
        return self.rank > 0 and not self.is_cut_short

    def end(self, text: str = "", code: int = 1) -> None:
        """Leave MPI for good. An error of the program on a worker, after the run, is shown: nobody else knows of it."""
        is_own = bool(text and self.rank and not self.is_cut_short)
        if is_own:
            say_together(f"psgc: worker {self.rank}: {text}".split("\n"))
            with suppress(OSError):
                launched.leave_exit_code(code)
        if self.in_order and not self.is_cut_short:
            self._meet_others(code if text else 0, text)
        if self.in_order:
            MPI.Finalize()
        if text or not self.in_order:  # or mpirun comments on an exit code that is not 0
            self._transport.outlast(range(1, self._transport.size))
        if is_own and not is_launched():  # which looks at more than mpirun's exit code
            leave(code)

    def _meet_others(self, code: int, text: str) -> None:
        """Those that begin another run are told that this program has ended. Rank 0 may take its time until its end."""
        try:
            transport = Transport(timeout=math.inf)
            launched.meet(transport, f"{code} {text.partition(chr(10))[0] or 'without an error'}")
            transport.close()
        except launched.NotAllCame as error:
            transport.close()
            if self.rank == 0:
                say(f"psgc: {error}", error=True)
                launched.leave_exit_code(code or 1)
        except RunFailed:  # a rank is dead: its end is no business of a run
            self.in_order = False


_script: ScriptEnding | None = None  # of this process, once it has called `train`
_stopped_by: list[int] = []


def train(given: Given | UserError, program: str, resuming: bool) -> Path | None:
    """Take part in a run, with the other ranks. Returns its directory on rank 0, None on the others.

    given: of this rank, or what is wrong with it; program: the file name, for messages.
    Raises on rank 0 UserError, RunFailed, or KeyboardInterrupt; the others then end with SystemExit, without a word,
    and so they do when ranks were lost.
    """
    global _script
    if launched.ranks() < 2:
        raise UserError(
            "psgc.train: this process is alone, expected a server and one worker or more; start it with: "
            f"psgc launch {program} -n 5   (or mpirun -n 5 python {program})"
        )
    if _script is None:
        _script = ScriptEnding()
    elif (before := _script.session) is not None and (before.is_cut_short or not before.in_order):
        what = "failed" if before.in_order else "lost ranks"
        raise UserError(f"psgc.train: the run before has {what}, after which no other can begin; start a new program")
    launched.begin(_stopped_by)
    with _signals(_stopped_by):
        transport = Transport(interrupted=lambda: interruption(_stopped_by))
        default_signals_in_children()
        ranks = _Ranks(transport)
        _script.session = ranks
        error = _run(transport, ranks, given, program, resuming)
    if error is None:
        return Path(given.config.output) if transport.rank == 0 and isinstance(given, Given) else None
    ranks.is_cut_short = True
    if transport.rank == 0 or (transport.rank == 1 and transport.is_gone(0) and not is_launched()):
        raise error
    raise SystemExit(0)


def _run(
    transport: Transport, ranks: _Ranks, given: Given | UserError, program: str, resuming: bool
) -> BaseException | None:
    """The run; afterwards, why it has failed, or this rank has to end."""
    ending = Ending(speaks=False)
    error: BaseException | None = None
    try:
        _agree(transport, given, ending)
        assert isinstance(given, Given)
        if transport.rank == 0:
            from psgc.run.server_side import serve

            launched.name_directory(given.config.output)
            resuming = resuming or launched.resuming()
            code = serve(transport, program, (), _stopped_by, resuming, ending, launched.debugging(), given)
        else:
            from psgc.run.worker_side import work

            signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_RESORT))
            code = work(transport, program, ending, given)
    except launched.NotAllCame as failure:  # whoever is missing does not hear a broadcast
        ranks.in_order = True
        transport.close()
        return failure
    except (UserError, RunFailed) as failure:
        error, code = failure, failure.exit_code
    except BaseException as failure:
        if not ending.told:  # MPI then reports the death to the others
            say_traceback()
            os.kill(os.getpid(), signal.SIGKILL)
        where = f"{failure.filename}: {failure.strerror}" if isinstance(failure, OSError) and failure.filename else ""
        error, code = RunFailed(where or one_line(failure)), 1
    if code and error is None:
        error = (UserError if code == UserError.exit_code else RunFailed)(ending.reason)
    if code and _stopped_by and transport.rank == 0:
        stopper = _stopped_by.pop(0)
        error = KeyboardInterrupt() if stopper == signal.SIGINT else SystemExit(128 + stopper)
    ranks.in_order = ending.in_order
    if not ranks.in_order:
        return error if transport.rank == 0 else error or SystemExit(0)
    is_well = (
        transport.broadcast(b"" if error else b"+", "training") if transport.rank == 0 else transport.broadcast(None)
    )
    transport.close()
    return error or (None if is_well else SystemExit(0))


def _agree(transport: Transport, given: Given | UserError, ending: Ending) -> None:
    """All ranks come here, and with the same call. Raises UserError and RunFailed."""
    try:
        launched.meet(transport)
    except launched.NotAllCame:
        ending.call_off()
        raise
    faults = given.config.faults if isinstance(given, Given) else None
    if transport.rank == 0 and faults:
        transport.be_patient(faults.setup_timeout, faults.collect_timeout)
    troubles = transport.gather(str(given) if isinstance(given, UserError) else "", "preparing psgc.train")
    for rank, trouble in enumerate(troubles):
        if trouble:
            ending.call_off()
            raise UserError(trouble if rank == 0 else f"rank {rank} on {transport.hosts[rank]}: {trouble}")


@contextmanager
def _signals(stopped_by: list[int]) -> Iterator[Sequence[int]]:
    """Ctrl-C and what `psgc launch` and SLURM send end the run in order. Afterwards they do what they did before."""
    if threading.current_thread() is not threading.main_thread():
        raise UserError("psgc.train: expected the main thread, which alone gets signals")
    before = {
        number: signal.signal(number, lambda number, _: stopped_by.append(number))
        for number in (signal.SIGINT, *STOPPERS)
    }
    try:
        yield stopped_by
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
