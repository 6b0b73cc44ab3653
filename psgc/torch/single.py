"""Training in one process, without MPI: the same steps, with the bits that sums have with `per_chunk` and parts 1."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from psgc.aggregation.tree import Tree
from psgc.errors import PsgcError, RunFailed
from psgc.iteration import summed
from psgc.run.ending import interruption
from psgc.run_rows import Outcome
from psgc.server.observer import IterationRecord
from psgc.torch.calls import Call
from psgc.torch.hand_over import State, Sum
from psgc.torch.record import Record

WORKER = 1  # as which this process is in the record


class Single:
    """Makes sums of the calls in this process alone (`psgc.torch.calls.Engine`).

    state: what the run goes on from, or None; record: has begun; params: gives the parameters; stopped_by: the signals
    that have come, a handler fills it.
    """

    rank = 0
    is_alone, in_order, is_cut_short, reports = True, True, False, False  # as of a Session

    def __init__(
        self,
        num_chunks: int,
        state: State | None = None,
        record: Record | None = None,
        params: Callable[[], np.ndarray] = lambda: np.zeros(0),
        stopped_by: Sequence[int] = (),
    ) -> None:
        self.num_chunks = num_chunks
        self.iteration = 0 if state is None else state.iteration
        self.state = None if state is None else state.blob
        self.record = record or Record(None)
        self._params, self._stopped_by = params, stopped_by
        self._error: PsgcError | None = None

    def sum(self, iteration: int, call: Call) -> Sum:
        """The sum of the call. Raises what its vectors raise, and RunFailed when the run was told to stop."""
        tree, sums, began = Tree(), dict[int, list[float]](), time.monotonic()
        try:
            for chunk in range(self.num_chunks):
                vector = self._vector(chunk, iteration, call, began)
                if call.num_sums:
                    sums[chunk] = vector.tolist()
                else:
                    tree.add(chunk, vector)
            total = torch.tensor(summed(sums), dtype=torch.float64, device="cpu") if sums else tree.total()
        except PsgcError as error:
            self._error = error
            raise
        assert total is not None
        loss, seconds = call.loss(total), time.monotonic() - began
        known = loss if loss is None or math.isfinite(loss) else None
        self.record.iteration(IterationRecord(iteration, known, seconds, recovered=self.num_chunks))
        return Sum(total)

    def _vector(self, chunk: int, iteration: int, call: Call, began: float) -> Tensor:
        if reason := interruption(self._stopped_by):
            raise RunFailed(reason)
        if chunk + 1 < self.num_chunks:
            call.expect(chunk + 1)
        start = time.monotonic()
        vector = call.vector(chunk, lambda: True)
        assert vector is not None
        seconds = time.monotonic() - start
        self.record.chunk(WORKER, chunk, iteration, start - began, seconds, Outcome.USED)
        vector += 0.0  # turns -0 into 0, as encoding does
        return vector

    def end(self, text: str = "", code: int = 1) -> None:
        """The script ends, with this exit code because of an error if there is a text."""
        status, reason, code = ("failed", text.splitlines()[0], code) if text else ("done", "", 0)
        if self._error is not None:
            status, reason, code = "failed", str(self._error), self._error.exit_code
        if self._stopped_by and text:
            status, code = "interrupted", 128 + self._stopped_by[0]
        self.record.finish(self._params(), status, reason, code, None)
