"""A call of a script: a sum over all chunks. And the engine that computes calls in one process, without MPI."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from psgc.aggregation.tree import Tree
from psgc.errors import PsgcError, RunFailed
from psgc.iteration import summed
from psgc.run.ending import RunOutcome
from psgc.run.launched import interruption
from psgc.run_rows import Outcome
from psgc.server.observer import IterationRecord
from psgc.torch.hand_over import ScriptState
from psgc.torch.record import Record

if TYPE_CHECKING:
    from psgc.torch.session import Session

Engine: TypeAlias = "Single | Session"  # computes the sums of calls: this process alone, or together with other ranks
WORKER = 1  # the number that this process has in the record


@dataclass(frozen=True)
class Call:
    """One call of the script, which waits for the sum of a vector over all chunks.

    vector: (chunks, is_wanted) -> the sum over these chunks, from one pass over all their rows: a new tensor (dim,) on
        the device of the model; None as soon as is_wanted() is false
    expect: takes the chunks that probably come next
    loss: (sum) -> the loss in it, or None
    signature: a number that is equal on ranks that make the same call
    is_whole: see HandOver
    costs: returns the cost of each chunk (`psgc.torch.sampling`)
    num_sums: for an evaluation, the number of sums; the vector is then (num_sums,) float64 on the CPU. 0: a gradient
    names: the metrics whose sums and numbers of examples these are, if they are
    joins: whether `vector` may take several chunks; this is known after the first chunk
    """

    vector: Callable[[Sequence[int], Callable[[], bool]], Tensor | None]
    expect: Callable[[Sequence[int]], object]
    loss: Callable[[Tensor], float | None]
    signature: float
    is_whole: bool
    costs: Callable[[], Sequence[float]]
    num_sums: int = 0
    names: Sequence[str] = ()
    joins: Callable[[], bool] = lambda: False


def means_of(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """The mean of each metric. sums: of each its sum, then its number of examples.

    >>> means_of(["accuracy", "loss"], [3.0, 4.0, 2.0, 4.0])
    {'accuracy': 0.75, 'loss': 0.5}
    """
    found = zip(names, sums[::2], sums[1::2], strict=True)
    return {name: total / count if count else math.nan for name, total, count in found}


def held_out(names: Sequence[str], sums: Sequence[float]) -> tuple[float | None, float | None]:
    """Loss and accuracy for iterations.csv (`HELD_OUT`): of the metrics with these names. names: as of a Call."""
    means = means_of(names, sums) if names else {}
    return means.get("loss"), means.get("accuracy")


def signature(*of: object) -> float:
    """A checksum of these values that float32 can hold exactly. It tells calls apart.

    >>> signature("backward", 3) == signature("backward", 3) != signature("backward", 4)
    True
    """
    return float(crc32(repr(of).encode()) & 0x3FFFFF)


class Single:
    """Computes the sums of calls in this process alone. `psgc.torch.session.Session` does so together with other ranks.

    All chunks are computed in one pass if they may be joined. The first chunk of the process shows whether they may; it
    is then computed again together with the others. So a resumed run has the same bits.

    num_chunks: number of chunks of every call
    state: the state to resume from; None for a new run
    record: the record of the run, which has begun
    params: returns the parameters, (dim,)
    stopped_by: the signals that have come; a signal handler fills it
    singly: compute each chunk alone. Then sums have the same bits as in a run of several ranks with `reproducible`, or
        with `per_chunk` and parts 1.
    """

    rank, num_workers = 0, 1
    goes_on, in_order, is_cut_short, reports = True, True, False, False  # as in Session
    serves: Callable[[], object] = staticmethod(lambda: None)

    def __init__(
        self,
        num_chunks: int,
        state: ScriptState | None = None,
        record: Record | None = None,
        params: Callable[[], np.ndarray] = lambda: np.zeros(0),
        stopped_by: Sequence[int] = (),
        singly: bool = False,
    ) -> None:
        self.num_chunks = num_chunks
        self.iteration = 0 if state is None else state.iteration
        self.state = None if state is None else state.blob
        self.record = record or Record(None)
        self.is_tried = self.record.ranks_before == 1
        self._params, self._stopped_by, self._singly = params, stopped_by, singly
        self._error: PsgcError | None = None  # of the newest call
        self._is_over = False
        self._began, self._done = 0.0, list[tuple[int, float, float]]()  # of a call: (chunk, start, seconds)

    def sum(self, iteration: int, call: Call) -> Tensor:
        """The sum of the call. Raises the errors of `call.vector`, and RunFailed after a signal to stop."""
        self._began, self._done = time.monotonic(), []
        try:
            total = self._evaluated(call) if call.num_sums else self._gradient(call)
        except PsgcError as error:
            self._error = error
            raise
        self._error = None  # the script has caught that of the call before, if any, and goes on
        loss, seconds = call.loss(total), time.monotonic() - self._began
        for chunk, start, took in self._done:
            self.record.chunk(WORKER, chunk, iteration, start, took, Outcome.USED)
        known = loss if loss is None or math.isfinite(loss) else None
        row = IterationRecord(iteration, known, seconds, recovered=self.num_chunks)
        if call.num_sums:
            row.test_loss, row.test_accuracy = held_out(call.names, total.tolist())
        self.record.iteration(row)
        return total

    def _gradient(self, call: Call) -> Tensor:
        tree = Tree[Tensor]()
        for chunk in range(self.num_chunks):
            if call.joins() and not self._singly:
                done, self._done = self._done, []
                joined = self._vector(range(self.num_chunks), call)
                if call.joins():  # false now if the pass was not the sum over its chunks
                    return joined
                self._done = done
            vector = self._vector((chunk,), call)
            vector += 0.0  # turns -0 into 0, as encoding does
            tree.add(chunk, vector)
        total = tree.total()
        assert isinstance(total, Tensor)
        return total

    def _evaluated(self, call: Call) -> Tensor:
        sums = {chunk: self._vector((chunk,), call).tolist() for chunk in range(self.num_chunks)}
        return torch.tensor(summed(sums), dtype=torch.float64, device="cpu")

    def _vector(self, chunks: Sequence[int], call: Call) -> Tensor:
        if chunks[-1] + 1 < self.num_chunks:
            call.expect((chunks[-1] + 1,))
        start = time.monotonic()
        vector = call.vector(chunks, lambda: not self._stopped_by)
        if reason := interruption(self._stopped_by):
            raise RunFailed(reason)
        assert vector is not None
        took = (time.monotonic() - start) / len(chunks)
        first = start - self._began
        self._done += [(chunk, first + number * took, took) for number, chunk in enumerate(chunks)]
        return vector

    def end(self, text: str = "", code: int = 1) -> None:
        """The script ends. text: its error, if any; code: the exit code in this case."""
        if self._is_over:
            return
        self._is_over = True
        outcome = RunOutcome("failed", text.splitlines()[0], code) if text else RunOutcome()
        if self._error is not None:
            outcome = RunOutcome.of(self._error)
        if self._stopped_by and text:
            outcome = replace(outcome, status="interrupted", code=128 + self._stopped_by[0])
        try:
            self.record.finish(self._params(), outcome, {})
        finally:
            self.record.release()

    def close(self) -> None:
        """The run is over, and the script is not."""
        self.end()

    def make_room(self) -> None:
        """Another run follows."""
