"""Ranks that are there before it is their turn: `psgc launch` starts a run again while the run before still goes on.

They load what they need and meet, and rank 0 says so by a file. Once the run before has ended, `psgc launch` removes
that file, and they go on. What belongs to the user, a script or a model, is loaded only then.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from psgc.disk import write_text
from psgc.rendezvous import MPI, Rendezvous
from psgc.run.launched import STANDBY

PAUSE = 0.01  # seconds between two looks for the file


def wait_for_turn(load: Callable[[], object], interrupted: Callable[[], str | None] | None = None) -> None:
    """Returns at once unless this rank is started for a run that has not ended. Collective.

    load: imports what will be needed. Raises RunFailed as `Rendezvous`, and OSError when rank 0 cannot write.
    """
    if STANDBY not in os.environ:
        return
    file = Path(os.environ[STANDBY])
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    with suppress(ImportError):  # which is said when it is needed
        load()
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    ranks = Rendezvous(MPI.COMM_WORLD, interrupted)
    is_first = MPI.COMM_WORLD.Get_rank() == 0
    if is_first:
        write_text(file, "")
        while file.exists() and not (interrupted and interrupted()):
            time.sleep(PAUSE)
    ranks.broadcast(b"go" if is_first else None, "waiting for its turn")
