"""Measures whether the cores of a host differ in speed. `psgc.tools.findings` interprets the result."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any

BEHIND = 1.15  # a core is slow if it takes this many times as long as the fastest
SECONDS, ROUNDS = 0.5, 3  # duration of the measurement, and its least number of rounds
SIDE = 64  # rows and columns of the matrices
SHOWN = 200  # characters of the list of slow cores

Pace = Sequence[float]  # CPU seconds for the work: the best time and the median


def measured(work: Callable[[], object] | None = None) -> dict[int, Pace]:
    """The pace of each core that this process may use.

    The cores take turns. CPU seconds do not depend on other processes or on a quota.

    work: the work to measure; by default a small matrix product
    """
    work = work or _product()
    allowed = os.sched_getaffinity(0)
    times: dict[int, list[float]] = {core: [] for core in sorted(allowed)}
    began, rounds = time.monotonic(), 0
    try:
        while time.monotonic() - began < SECONDS or rounds < ROUNDS:
            for core in times:
                os.sched_setaffinity(0, {core})
                work()  # fills the caches of this core
                start = time.thread_time()
                work()
                times[core].append(time.thread_time() - start)
            rounds += 1
    finally:
        os.sched_setaffinity(0, allowed)
    return {core: (min(taken), median(taken)) for core, taken in times.items()}


def _product() -> Callable[[], object]:
    import numpy as np

    matrix = np.random.default_rng(0).random((SIDE, SIDE))
    result = np.empty_like(matrix)
    return lambda: np.einsum("ij,jk->ik", matrix, matrix, out=result)  # not with BLAS, which has threads


def ratio(slow: Pace, fast: Pace) -> float:
    """How many times as long `slow` takes, by best times or by medians: the smaller ratio, to exclude noise."""
    return min(one / other for one, other in zip(slow, fast, strict=True))


def summarised(paces: Mapping[int, Pace]) -> dict[str, Any]:
    """A summary of less than 400 bytes of JSON: the number of cores, the fastest, the slowest, and the slow cores.

    >>> summarised({0: (1.0, 2.0), 1: (1.1, 2.2), 2: (2.0, 4.0), 3: (2.1, 4.2), 4: (2.0, 2.0), 6: (2.0, 4.0)})
    {'cores': 6, 'fastest': [0, (1.0, 2.0)], 'slowest': [3, (2.1, 4.2)], 'behind': '2-3,6'}
    """
    fastest = min(paces, key=lambda core: paces[core][1])
    ratios = {core: ratio(pace, paces[fastest]) for core, pace in paces.items()}
    slowest = max(ratios, key=ratios.__getitem__)
    return {
        "cores": len(paces),
        "fastest": [fastest, paces[fastest]],
        "slowest": [slowest, paces[slowest]],
        "behind": _ranges([core for core, times in ratios.items() if times >= BEHIND])[:SHOWN],
    }


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as 0-3,7."""
    runs = ([*pairs] for _, pairs in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    ends = ((pairs[0][1], pairs[-1][1]) for pairs in runs)
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ends)
