"""Emulated stragglers for experiments: how much longer a chunk takes on this worker."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Emulation:
    """Makes the chunks of one worker take longer: by a factor, or to a number of seconds.

    kind:
        `none`
        `slow`: always the same
        `exponential`: one draw of Exp(1) per iteration multiplies the factor or the seconds, as in the paper
        `trace`: recorded seconds per chunk, trace[iteration modulo rounds, rank - 1]
        `chunk_trace`: recorded seconds of each chunk on any worker, chunk_trace[iteration modulo steps, chunk]
    factor, seconds: by rank or "all", the rank's own value first; at most one of the two is given

    A chunk never takes less time than its gradient did.
    """

    def __init__(
        self,
        kind: str,
        rank: int,
        seed: int,
        factor: Mapping[Any, float] | None = None,
        seconds: Mapping[Any, float] | None = None,
        trace: np.ndarray | None = None,
        chunk_trace: np.ndarray | None = None,
    ) -> None:
        self._kind = kind
        self._rank = rank
        self._seed = seed
        self._factor = _own(factor, rank)
        self._seconds = _own(seconds, rank)
        self._trace = None if trace is None else trace[:, rank - 1]
        self._chunk_trace = chunk_trace

    def extra(self, iteration: int, computed: float, chunk: int = 0) -> float:
        """Seconds to wait after a gradient of `chunk` that took `computed` seconds.

        >>> Emulation("slow", 3, 0, factor={3: 10}).extra(0, 0.5)
        4.5
        >>> Emulation("slow", 2, 0, factor={3: 10}).extra(0, 0.5)
        0.0
        """
        if self._chunk_trace is not None:
            return max(0.0, float(self._chunk_trace[iteration % len(self._chunk_trace), chunk]) - computed)
        if self._trace is not None:
            return max(0.0, float(self._trace[iteration % len(self._trace)]) - computed)
        draw = 1.0
        if self._kind == "exponential":
            draw = np.random.default_rng((self._seed, iteration, self._rank)).exponential()
        if self._factor is not None:
            return max(0.0, self._factor * draw - 1.0) * computed
        if self._seconds is not None:
            return max(0.0, self._seconds * draw - computed)
        return 0.0


def _own(values: Mapping[Any, float] | None, rank: int) -> float | None:
    return None if values is None else values.get(rank, values.get("all"))
