"""psgc from Python programs and notebooks: functions that do what its commands do, and `Run`, what a run has left."""

from psgc.library.advice import order, replay, simulate
from psgc.library.launching import launch, train
from psgc.library.run import Run, compare, load

__all__ = ["Run", "compare", "launch", "load", "order", "replay", "simulate", "train"]
