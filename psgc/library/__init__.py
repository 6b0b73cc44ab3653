"""psgc for Python programs and notebooks: functions for its commands, and `Run`, the record of a run."""

from psgc.library.advice import order, replay, simulate
from psgc.library.launching import launch, train
from psgc.library.run import Run, compare, load

__all__ = ["Run", "compare", "launch", "load", "order", "replay", "simulate", "train"]
