"""Slow processors where there are no CPU quotas: SIGSTOP and SIGCONT let each process run for its share of the time."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PERIOD = 0.05  # seconds: in each a process may run for its share of them


class StopAndGo:
    """Groups of these names, each with its share of the time, until the with block is left.

    A process joins by `cpu_quotas.join`. The groups begin one after another in each period, so that they do not all
    want the cores at once.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = shares
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._turns, args=(name, number * PERIOD / len(shares)))
            for number, name in enumerate(shares)
        ]

    def __enter__(self) -> "StopAndGo":
        self.folder = Path(tempfile.mkdtemp())
        for name in self._shares:
            (self.folder / name).mkdir()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self.folder)

    def _turns(self, name: str, late: float) -> None:
        """Stops and continues the process of one group; leaves it running."""
        member, share = self.folder / name / "cgroup.procs", self._shares[name]
        next_turn = time.monotonic() + late
        while not self._over.wait(max(0.0, next_turn - time.monotonic())):
            next_turn += PERIOD
            with suppress(OSError, ValueError):  # nobody has joined, or it has ended
                pid = int(member.read_text())
                os.kill(pid, signal.SIGCONT)
                self._over.wait(share * PERIOD)
                if share < 1 and not self._over.is_set():
                    os.kill(pid, signal.SIGSTOP)
        with suppress(OSError, ValueError):
            os.kill(int(member.read_text()), signal.SIGCONT)
