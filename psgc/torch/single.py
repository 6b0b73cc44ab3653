"""Training in one process, without MPI: the same steps, with the bits that sums have with `per_chunk` and parts 1."""

import time
from collections import deque

import numpy as np

from psgc.aggregation.tree import Tree
from psgc.run_rows import IterationRow
from psgc.torch.calls import Call
from psgc.torch.hand_over import Sum


class Single:
    """state: what the run goes on from, or None; iteration: of the first call."""

    rank = 0

    def __init__(self, num_chunks: int, iteration: int = 0, state: bytes | None = None) -> None:
        self.num_chunks, self.iteration, self.state = num_chunks, iteration, state
        self.rows: deque[IterationRow] = deque()

    def sum(self, iteration: int, call: Call) -> Sum:
        """The sum of the call. Raises what its vectors raise."""
        tree, began = Tree(), time.monotonic()
        with np.errstate(all="ignore"):  # of a scaled gradient: whether it is finite, the scaler looks
            self._add_chunks(call, tree)
            total = tree.total()
        assert total is not None
        seconds = time.monotonic() - began
        self.rows.append(IterationRow(iteration, call.loss(total), seconds, recovered=self.num_chunks))
        return Sum(total)

    def _add_chunks(self, call: Call, tree: Tree) -> None:
        for chunk in range(self.num_chunks):
            if chunk + 1 < self.num_chunks:
                call.expect(chunk + 1)
            vector = call.vector(chunk, lambda: True)
            assert vector is not None
            vector += 0.0  # turns -0 into 0, as encoding does
            tree.add(chunk, vector)
