"""How long the chunks of a step take relative to each other, as far as that is known before they begin."""

from collections.abc import Callable
from math import inf
from typing import TypeAlias

import numpy as np

from psgc.data.epochs import bounds
from psgc.errors import UserError, one_line

CostFunction: TypeAlias = Callable[[list[int]], float]
EXPECTED = "expected how long a micro-batch of these examples takes, in any unit: a number > 0"


class ChunkCosts:
    """What chunks cost: 1 is an average example of the first batch.

    cost_fn: (rows of a micro-batch) -> what it costs, in any unit; None: every example costs the same.
    micro_batch: examples of a micro-batch, at most.
    """

    def __init__(self, cost_fn: CostFunction | None, micro_batch: int) -> None:
        self._cost_fn, self._size = cost_fn, micro_batch
        self._unit = 0.0  # of the function, for an average example
        self._newest: tuple[np.ndarray, list[float]] | None = None  # rows, and what they cost

    def of(self, rows: np.ndarray, num_chunks: int) -> list[float]:
        """The cost of each chunk of a batch. rows: of the batch, (n,).

        The newest result is kept: the rows of a batch are asked for before its step begins, and then once more.

        >>> ChunkCosts(None, micro_batch=2).of(np.arange(5), num_chunks=2)
        [2.0, 3.0]
        >>> lengths = [1, 1, 1, 1, 16]
        >>> ChunkCosts(lambda rows: sum(lengths[row] for row in rows), micro_batch=2).of(np.arange(5), num_chunks=2)
        [0.5, 4.5]

        Raises UserError when the function fails or returns something else.
        """
        ends = [bounds(i, len(rows), num_chunks) for i in range(num_chunks)]
        if self._cost_fn is None:
            return [float(end - start) for start, end in ends]
        if self._newest is None or self._newest[0] is not rows:
            self._newest = rows, [self._cost(rows[start:end].tolist()) for start, end in ends]
        costs = self._newest[1]
        self._unit = self._unit or sum(costs) / len(rows)
        return [cost / self._unit for cost in costs]

    def _cost(self, rows: list[int]) -> float:
        """Of a chunk; the micro-batches are those of `psgc.torch.loader`."""
        number = -(-len(rows) // self._size)
        return sum(self._asked(rows[slice(*bounds(at, len(rows), number))]) for at in range(number))

    def _asked(self, rows: list[int]) -> float:
        assert self._cost_fn is not None
        try:
            cost = float(self._cost_fn(rows))
        except Exception as error:  # the user's code
            raise UserError(f"cost_fn failed for the rows {_shown(rows)}: {one_line(error)}; {EXPECTED}") from error
        if not 0 < cost < inf:
            raise UserError(f"cost_fn returned {cost:g} for the rows {_shown(rows)}; {EXPECTED}")
        return cost


def _shown(rows: list[int]) -> str:
    return f"{', '.join(map(str, rows[:5]))}{', ...' if rows[5:] else ''}"
