"""When an iteration ends although something is missing (approximate recovery). Pure: times come with events."""

import statistics
from collections import deque
from math import floor, inf
from typing import Literal

LOOKED_BACK = 50  # iterations that an automatic deadline follows
AT_FIRST = 5  # iterations that it has to see before it sets any
DEVIATIONS = 5.0  # median absolute deviations after the median; of a normal distribution about 3.4 standard deviations
LEAST_DEVIATION = 0.02  # of the median: times that hardly differ are no reason to cut off at the slightest delay


def tolerated(max_error: float | None, copies: int) -> int:
    """How many of so many copies may be missing (`recovery.max_error`).

    >>> tolerated(0.29, 100)
    29
    """
    return floor((max_error or 0.0) * copies + 1e-9)  # 0.29 * 100 is 28.999999999999996


class TimeLimit:
    """seconds: from the beginning of every iteration; `auto`: set by what recent iterations took; None: no deadline.

    An iteration that was cut off counts as if it had gone on at the same rate until nothing was missing, so that an
    automatic deadline also follows a run that becomes slower.

    >>> deadline = TimeLimit("auto")
    >>> for took in (1.0, 1.0, 1.2, 1.0, 0.9):
    ...     deadline.took(took, missing=0.0)
    >>> deadline.seconds  # no more than LEAST_DEVIATION from one to the next, as the median goes
    1.1
    """

    def __init__(self, seconds: float | Literal["auto"] | None) -> None:
        self._automatic = seconds == "auto"
        self.seconds = inf if seconds is None or seconds == "auto" else seconds
        self._times: deque[float] = deque(maxlen=LOOKED_BACK)

    def took(self, seconds: float, missing: float) -> None:
        """An iteration ended after so long, with this share (below 1) of the copies missing."""
        if not self._automatic:
            return
        self._times.append(seconds / (1 - missing))
        if len(self._times) >= AT_FIRST:
            median = statistics.median(self._times)
            deviation = statistics.median(abs(time - median) for time in self._times)
            self.seconds = median + DEVIATIONS * max(deviation, LEAST_DEVIATION * median)
