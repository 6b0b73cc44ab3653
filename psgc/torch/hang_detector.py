"""Rank 0 of a script as a worker: ends it when a chunk of its own process does not return."""

import os
import signal
import time
from collections.abc import Callable

from psgc.errors import RunFailed
from psgc.server.cluster import Cluster
from psgc.terminal import say
from psgc.transport import Transport


class HangDetector:
    """Ends rank 0 if a chunk of its own process hangs: others compute the chunk, but rank 0 must make each step.

    The failure detector looks at a worker only until it is lost. The worker of rank 0 is also lost for other reasons,
    such as an error in its gradient. It may still be in a chunk then, or begin another one. Most of them return.

    running: as `Mailbox.running`, of the worker in this process
    """

    def __init__(self, transport: Transport, running: Callable[[], tuple[int, float]], cluster: Cluster) -> None:
        self._transport, self._running, self._cluster = transport, running, cluster
        self._looked = 0.0  # time.monotonic() before the last look
        self._since = 0.0  # when a look first saw this pass, as `Cluster.now`: a stop does not count

    def look(self) -> None:
        """Call this in each poll of the server. Raises RunFailed where no other rank can take over."""
        looked, self._looked = self._looked, time.monotonic()
        chunk, seconds = self._running()
        if chunk < 0 or time.monotonic() - seconds >= looked:  # it was not in this pass at the last look
            self._since = self._cluster.now
        found, own = self._cluster.now - self._since, self._transport.place + 1
        if found > self._cluster.detector.patience and own in self._cluster.detector.away:
            hang = f"in chunk {chunk} for {found:.1f} s, its gradient does not return"
            self._end(f"rank 0 on {self._transport.hosts[0]}, which is worker {own} as well: {hang}")

    def _end(self, text: str) -> None:
        if not self._transport.survives_deaths:
            raise RunFailed(text)
        say(f"psgc: {text}: its process ends", error=True)
        os.kill(os.getpid(), signal.SIGKILL)  # so that another rank takes over
