"""Whether the cores of a host differ in pace: a short measurement. (`psgc.tools.findings` says what it means.)"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any

BEHIND = 1.15  # times as long as the fastest: said from here on
SECONDS, ROUNDS = 0.5, 3  # how long is measured, but at least so many rounds
SIDE = 64  # of the matrices
SHOWN = 200  # characters of the list of slow cores

Pace = Sequence[float]  # CPU seconds for the work: the best time and the median


def measured(work: Callable[[], object] | None = None) -> dict[int, Pace]:
    """The pace of each core that this process may use; work: by default a small matrix product.

    The cores take turns. In CPU seconds neither other processes nor a quota slow a core down.
    """
    work = work or _product()
    allowed = os.sched_getaffinity(0)
    times: dict[int, list[float]] = {core: [] for core in sorted(allowed)}
    began, rounds = time.monotonic(), 0
    try:
        while time.monotonic() - began < SECONDS or rounds < ROUNDS:
            for core in times:
                os.sched_setaffinity(0, {core})
                work()  # has the caches of this core filled
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
    return lambda: np.einsum("ij,jk->ik", matrix, matrix, out=result)  # not by BLAS, which has threads


def ratio(slow: Pace, fast: Pace) -> float:
    """How many times as long `slow` takes: by best times or medians, whichever differ less, since noise is in one."""
    return min(one / other for one, other in zip(slow, fast, strict=True))


def summarised(paces: Mapping[int, Pace]) -> dict[str, Any]:
    """The same in less than 400 bytes of JSON: how many cores, the fastest and the slowest, and which are `BEHIND`.

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
