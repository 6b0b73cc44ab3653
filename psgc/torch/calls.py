"""What a script computes in a call, and the run in which one process does it alone, without MPI."""

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

Engine: TypeAlias = "Single | Session"  # makes sums of the calls: this process alone, or together with others
WORKER = 1  # as which this process is in the record


@dataclass(frozen=True)
class Call:
    """One call of the script: the sum of a vector over all chunks is wanted.

    vector: the sum over some chunks, from one pass over all their rows, (dim,) on the device of the model, memory of
    its own; None once it is not wanted any more, which it asks the function that it is given. joins: whether these may
    be several chunks, as is seen with the first one. expect: told the chunks that probably come next. loss: reads a
    sum. signature: equal on ranks that make the same call; is_whole: see HandOver; costs: returns what each
    chunk costs (`psgc.torch.sampling`). num_sums: of an evaluation, how many numbers are summed; they are the vector
    then, of float64 on the CPU. 0: a gradient is wanted.
    """

    vector: Callable[[Sequence[int], Callable[[], bool]], Tensor | None]
    expect: Callable[[Sequence[int]], object]
    loss: Callable[[Tensor], float | None]
    signature: float
    is_whole: bool
    costs: Callable[[], Sequence[float]]
    num_sums: int = 0
    joins: Callable[[], bool] = lambda: False


def signature(*of: object) -> float:
    """A number that float32 holds, for whatever tells a call from others.

    >>> signature("backward", 3) == signature("backward", 3) != signature("backward", 4)
    True
    """
    return float(crc32(repr(of).encode()) & 0x3FFFFF)


class Single:
    """Makes sums of the calls in this process alone, as `psgc.torch.session.Session` does together with others.

    rank: of this process; num_workers: of the run, as it begins; num_chunks: of every call; iteration: of the first
    call; state: what the run goes on from, or None; record: of the run, on rank 0.

    A gradient is that of all chunks in one pass where they may be joined. The first chunk of the process shows that,
    and is then done again with the others: so the bits are the same in a run that is resumed.

    singly: chunk by chunk in any case, and the sums have the bits that other ranks have with `reproducible`, or with
    `per_chunk` and parts 1.
    state: what the run goes on from, or None; record: has begun; params: gives the parameters; stopped_by: the signals
    that have come, a handler fills it.
    """

    rank, num_workers = 0, 1
    is_alone, in_order, is_cut_short, reports = True, True, False, False  # as of a Session
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
        self._params, self._stopped_by, self._singly = params, stopped_by, singly
        self._error: PsgcError | None = None
        self._began, self._done = 0.0, list[tuple[int, float, float]]()  # of a call: chunks, their starts and seconds

    def sum(self, iteration: int, call: Call) -> Tensor:
        """The sum of the call. Raises what its vectors raise, and RunFailed when the run was told to stop."""
        self._began, self._done = time.monotonic(), []
        try:
            total = self._evaluated(call) if call.num_sums else self._gradient(call)
        except PsgcError as error:
            self._error = error
            raise
        loss, seconds = call.loss(total), time.monotonic() - self._began
        for chunk, start, took in self._done:
            self.record.chunk(WORKER, chunk, iteration, start, took, Outcome.USED)
        known = loss if loss is None or math.isfinite(loss) else None
        self.record.iteration(IterationRecord(iteration, known, seconds, recovered=self.num_chunks))
        return total

    def _gradient(self, call: Call) -> Tensor:
        tree = Tree[Tensor]()
        for chunk in range(self.num_chunks):
            if call.joins() and not self._singly:
                done, self._done = self._done, []
                joined = self._vector(range(self.num_chunks), call)
                if call.joins():  # else they have turned out not to add up
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
        """The script ends, with this exit code because of an error if there is a text."""
        outcome = RunOutcome("failed", text.splitlines()[0], code) if text else RunOutcome()
        if self._error is not None:
            outcome = RunOutcome.of(self._error)
        if self._stopped_by and text:
            outcome = replace(outcome, status="interrupted", code=128 + self._stopped_by[0])
        self.record.finish(self._params(), outcome.status, outcome.reason, outcome.code, {})
