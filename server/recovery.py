"""When an incomplete iteration ends (approximate recovery). Pure: the caller passes times."""

import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from math import floor, inf
from typing import Literal

import numpy as np

from psgc import coding

LOOKED_BACK = 50  # iterations from which an automatic deadline is made
AT_FIRST = 5  # iterations before the first automatic deadline
DEVIATIONS = 5.0  # median absolute deviations after the median; of a normal distribution about 3.4 standard deviations
LEAST_DEVIATION = 0.02  # of the median; nearly equal times must not make the deadline too tight


def tolerated(max_error: float | None, copies: int) -> int:
    """How many of `copies` copies may be missing (`recovery.max_error`).

    >>> tolerated(0.29, 100)
    29
    """
    return floor((max_error or 0.0) * copies + 1e-9)  # 0.29 * 100 is 28.999999999999996


class TimeLimit:
    """The deadline of iterations.

    seconds: from the beginning of an iteration; `auto`: learnt from recent iterations; None: no deadline

    An iteration that was cut off counts as if it had gone on at the same rate until it was complete. So an automatic
    deadline follows a run that becomes slower.

    >>> deadline = TimeLimit("auto")
    >>> for took in (1.0, 1.0, 1.2, 1.0, 0.9):
    ...     deadline.took(took, missing=0.0)
    >>> deadline.seconds  # the median deviation is less than LEAST_DEVIATION
    1.1
    """

    def __init__(self, seconds: float | Literal["auto"] | None) -> None:
        self._automatic = seconds == "auto"
        self.seconds = inf if seconds is None or seconds == "auto" else seconds
        self._times: deque[float] = deque(maxlen=LOOKED_BACK)

    def took(self, seconds: float, missing: float) -> None:
        """An iteration took `seconds`, with the share `missing` (below 1) of the copies missing."""
        if not self._automatic:
            return
        self._times.append(seconds / (1 - missing))
        if len(self._times) >= AT_FIRST:
            median = statistics.median(self._times)
            deviation = statistics.median(abs(time - median) for time in self._times)
            self.seconds = median + DEVIATIONS * max(deviation, LEAST_DEVIATION * median)


def weights(
    queues: Mapping[int, Sequence[int]],
    reported: Iterable[tuple[int, int]],
    recovered: Iterable[int],
    num_chunks: int,
    parts: int,
    whole: bool,
    seed: Sequence[int],
) -> dict[int, float]:
    """The weight of each recovered chunk in an unbiased gradient, see `psgc.coding.unbiased_weights`.

    queues: by rank, of the live workers
    reported: (worker, chunk), of this iteration
    whole: whether a worker counts only when its whole queue is done (schedule `full`)

    A chunk that a worker did for a lost one has the weight 1, since the model has no place for it.

    >>> weights({1: [0, 1], 2: [2, 3]}, [(1, 0), (2, 1)], [0, 1], 4, 1, False, (0, 7))[1]  # not in the queue of 2
    1.0
    """
    live = sorted(queues)
    done = Counter(worker for worker, chunk in reported if worker in queues and chunk in queues[worker])
    positions = coding.positions([queues[worker] for worker in live], num_chunks, whole)
    counts = [done[worker] for worker in live]
    found = coding.unbiased_weights(positions, counts, parts, np.random.default_rng(seed))
    return {chunk: float(found[chunk]) if np.isfinite(found[chunk]) else 1.0 for chunk in recovered}
