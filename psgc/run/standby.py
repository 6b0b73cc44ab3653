"""Ranks on standby: `psgc launch` starts a run again while the earlier run still goes on.

They import what they need and meet, and rank 0 creates a file. When the earlier run has ended, `psgc launch` removes
the file, and the ranks go on. Code of the user, a script or a model, is loaded only then.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from psgc.disk import write_text
from psgc.rendezvous import MPI, Rendezvous
from psgc.run.launched import STANDBY

PAUSE = 0.01  # seconds between two checks of the file


def wait_for_turn(load: Callable[[], object], interrupted: Callable[[], str | None] | None = None) -> None:
    """Wait for the end of the earlier run. Returns at once unless this rank is on standby. Collective.

    load: imports what will be needed

    Raises RunFailed as `Rendezvous`, and OSError when rank 0 cannot write.
    """
    if STANDBY not in os.environ:
        return
    file = Path(os.environ[STANDBY])
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    with suppress(ImportError):  # the error comes again when the module is needed
        load()
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    ranks = Rendezvous(MPI.COMM_WORLD, interrupted)
    is_first = MPI.COMM_WORLD.Get_rank() == 0
    if is_first:
        write_text(file, "")
        while file.exists() and not (interrupted and interrupted()):
            time.sleep(PAUSE)
    ranks.broadcast(b"go" if is_first else None, "waiting for its turn")
