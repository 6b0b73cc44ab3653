"""The server's clock for deadlines."""

import time


class PolledClock:
    """Seconds of time in which this process was running: a rank that was stopped and continued (Ctrl-Z, a suspended
    virtual machine) must not take its own absence for the silence of the others."""

    def __init__(self) -> None:
        self.now = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        current = time.monotonic()
        self.now += min(current - self._last, 1.0)
        self._last = current
