"""As torch_script.py, but rank 0 dies when only rank 1 has learnt of the end of iteration SPLIT.

The other ranks do not get that message. Rank 1 is at its next call.
"""

import os
import runpy
import signal
from pathlib import Path

from psgc.aggregation.map_messages import CloseReader
from psgc.torch.hand_over import HandOver
from tests.ranks.test_torch import SCRIPT

SPLIT = int(os.environ["SPLIT"])
lost: list[int] = []  # ends of iterations that this rank does not get
rank, has_come = int(os.environ["OMPI_COMM_WORLD_RANK"]), Path("has_come")
call, read = HandOver.call, CloseReader.read


def called(hand_over, iteration, *about, **others):
    call(hand_over, iteration, *about, **others)
    if (rank, iteration) == (1, SPLIT + 1):
        has_come.touch()
    elif (rank, iteration) == (0, SPLIT + 1):
        while not has_come.exists():
            pass
        os.kill(os.getpid(), signal.SIGKILL)


def reads(reader, entry):
    closed = read(reader, entry)
    if closed and closed[0] == SPLIT and rank > 1 and not lost:
        lost.append(SPLIT)
        return None
    return closed


HandOver.call, CloseReader.read = called, reads
runpy.run_path(SCRIPT, run_name="__main__")
