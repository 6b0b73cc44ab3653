"""A script in a rank of mpirun, where something may befall it: `main` is called with NAME, AGGREGATION and BEFALLS.

BEFALLS: "nothing"; "killed": rank 2 of MPI kills itself in a chunk; "behind": it stays in a chunk while the others make
two calls; "taken over": rank 0 kills itself after some calls; "stopped": it is asked to end the run after some. A rank
that comes to its end leaves a result.

Ranks wait for each other's files, in the current directory.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from psgc.torch.run import ScriptRun
from tests.torch_equivalence.values import values
from tests.torch_equivalence.ways import EXACT, one_process, script

WORKER = 2  # whom it befalls
AFTER, KILLED_AFTER, STOP_AFTER = 2, 3, 7  # calls of run.backward
BEHIND_BY = 2
PATIENCE = 60.0  # seconds
ITS_TURN = 2.0  # seconds that others leave it, at each of their chunks


def main() -> None:
    """Run the script, and write result-RANK.safetensors."""
    name, aggregation, befalls = sys.argv[1:]
    rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
    if befalls != "nothing":
        Fate(rank, befalls)
    settings = {"aggregation": aggregation, "output": "run", "checkpoint_every": 2}
    if aggregation == "server":
        settings |= EXACT
    with one_process():
        found = values(script(name).with_psgc(**settings))
    part = Path(f"result-{rank}.part")
    save_file(found, part)
    part.replace(part.with_suffix(".safetensors"))


class Fate:
    """Has that happen to this rank, at calls of run.backward and within its chunks."""

    def __init__(self, rank: int, befalls: str) -> None:
        self._rank, self._befalls, self._calls = rank, befalls, 0
        self._is_over = befalls in ("stopped", "taken over")
        backward = ScriptRun.backward

        def counted(*arguments: Any, **others: Any) -> float:
            value = backward(*arguments, **others)
            self._has_called()
            return value

        ScriptRun.backward = counted  # type: ignore[method-assign]
        nn.modules.module.register_module_forward_pre_hook(self._computes)

    def _has_called(self) -> None:
        self._calls += 1
        if self._rank == 0:
            part = Path("calls.part")
            part.write_text(str(self._calls))
            part.replace("calls")
            if self._befalls == "taken over" and self._calls == KILLED_AFTER:
                Path("befallen").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self._befalls == "stopped" and self._calls == STOP_AFTER:
                os.kill(os.getpid(), signal.SIGUSR1)
                wait_until(Path("run/summary.json").exists)  # the run is over: the next call of the script fails

    def _computes(self, *_: object) -> None:
        """A module computes: this rank is in a chunk."""
        if self._is_over or calls_of_rank_0() < AFTER:
            return
        if self._rank != WORKER:  # or the others might do all chunks before it has begun one; it may wait for a state
            self._is_over = wait_until(Path("befallen").exists, ITS_TURN)
            return
        self._is_over = True
        Path("befallen").touch()
        if self._befalls == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        until = calls_of_rank_0() + BEHIND_BY
        wait_until(lambda: calls_of_rank_0() >= until)


def calls_of_rank_0() -> int:
    return int(Path("calls").read_text()) if Path("calls").exists() else 0


def wait_until(condition: Callable[[], bool], most: float = PATIENCE) -> bool:
    """Whether it came true within `most` seconds."""
    end = time.monotonic() + most
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


if __name__ == "__main__":
    main()
