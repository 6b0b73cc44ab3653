"""How a run comes to its end, as far as the processes have to know."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Ending:
    """told: every process knows that the run is over; in_order: and all of them leave through MPI's Finalize."""

    told: bool = False
    in_order: bool = False


def interruption(stopped_by: Sequence[int]) -> str | None:
    """Why the run is to end early, by the signals that have come; None as long as there are none."""
    return f"asked to stop ({signal.Signals(stopped_by[0]).name})" if stopped_by else None
