"""How a run ends: what its processes have to know about it, and what is said."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from psgc.terminal import say


@dataclass
class Ending:
    """told: every process knows that the run is over; in_order: all of them leave through MPI's Finalize.

    reason: the line that says why the run has failed; speaks: whether to print it, or a program raises it.
    """

    told: bool = False
    in_order: bool = False
    reason: str = ""
    speaks: bool = True

    def failed(self, reason: str) -> None:
        """The run has failed. reason: empty when somebody else says it."""
        self.reason = self.reason or reason
        if reason and self.speaks:
            say(f"psgc: {reason}", error=True)

    def call_off(self) -> None:
        """There will be no run, every process knows so, and all leave in order."""
        self.told = self.in_order = True


def launched() -> bool:
    """Whether `psgc launch` started this run. It then says who stopped the run, and how to resume it."""
    return "PSGC_LAUNCHED" in os.environ


def interruption(stopped_by: Sequence[int]) -> str | None:
    """Why the run has to end early, by the signals received so far; None without any."""
    return stopped(stopped_by[0]) if stopped_by else None


def stopped(number: int) -> str:
    """The reason to give when this signal ended the run."""
    return f"stopped by {'Ctrl-C (SIGINT)' if number == signal.SIGINT else signal.Signals(number).name}"
