"""`psgc train`: what every rank of an MPI run does, from the YAML to the exit code.

Rank 0 reads and checks everything first and tells the others. Training starts only if every rank can start.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from psgc.errors import RunFailed, UserError, one_line
from psgc.processes import default_signals_in_children
from psgc.run.ending import Ending, interruption, launched
from psgc.terminal import say, say_traceback
from psgc.transport import Transport

LAST_RESORT = 20  # seconds after SIGTERM at which a worker ends although the server has not told it to


def train(
    config_path: str, overrides: Sequence[str], debug: bool, stopped_by: Sequence[int], resuming: bool = False
) -> NoReturn:
    """Run this rank of `psgc train`, and end the process with the exit code that docs/getting-started.md names.

    stopped_by: the signals that asked this process to end; a handler fills it, and rank 0 then ends the run in order.
    resuming: continue from the newest checkpoint in the run directory, if there is one.
    """
    try:
        transport = Transport(interrupted=lambda: interruption(stopped_by))
    except RunFailed:
        if not stopped_by:
            raise
        sys.exit(128 + stopped_by[0])  # silently: every rank would say the same
    default_signals_in_children()
    serving = transport.rank == 0
    if not serving:
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_RESORT))
    ending = Ending()
    speaks = serving
    try:
        if serving:  # each side imports only its own modules: all ranks of a host start at the same time
            from psgc.run.server_side import serve

            code = serve(transport, config_path, overrides, stopped_by, resuming, ending, debug)
        else:
            from psgc.run.worker_side import work

            code = work(transport, config_path, ending)
    except (UserError, RunFailed) as error:  # the server reports those of workers
        code = 128 + stopped_by[0] if stopped_by else error.exit_code
        # the death of rank 0 is reported by `psgc launch`, without it by rank 1
        speaks = serving or (transport.rank == 1 and transport.is_gone(0) and not launched())
        if speaks and not (stopped_by and launched()):
            say(f"psgc: {error}", error=True)
        if debug:
            say_traceback()
    except BaseException as error:
        code = 1
        if serving and isinstance(error, OSError):  # of the run directory: a full disk, a lost file server
            reason = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
            say(f"psgc: failed: {reason}", error=True)
        else:
            say_traceback()
        if not ending.told:  # MPI then reports the death to the others
            os.kill(os.getpid(), signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):  # may hold what a model has printed
        with suppress(OSError):
            stream.flush()
    if not speaks:
        code = 0  # mpirun passes on rank 0's code, and prints a long comment on any other that is not 0
    if not ending.in_order:
        transport.leave(code, range(1, transport.size) if transport.survives_deaths else ())
    if not serving:  # no worker may die while the server still writes a checkpoint
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(0)
    transport.finalize()
    if code:
        time.sleep(0.2)  # let the others leave first, or mpirun comments on rank 0's code as well
    transport.end(code)  # without waiting for a compute thread that is inside a gradient
