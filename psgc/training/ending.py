"""How a run comes to its end, as far as the processes have to know."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Ending:
    """told: every process knows that the run is over; in_order: and all of them leave through MPI's Finalize."""

    told: bool = False
    in_order: bool = False


def launched() -> bool:
    """Whether `psgc launch` keeps this run: it then says who stopped the run, and how to go on."""
    return "PSGC_LAUNCHED" in os.environ


def interruption(stopped_by: Sequence[int]) -> str | None:
    """Why the run is to end early, by the signals that have come; None as long as there are none."""
    return stopped(stopped_by[0]) if stopped_by else None


def stopped(number: int) -> str:
    """The reason for an end by this signal."""
    return f"stopped by {'Ctrl-C (SIGINT)' if number == signal.SIGINT else signal.Signals(number).name}"
