"""The rows of a run's record: filled during an iteration, written during the next one."""

import math
from collections.abc import Collection, Iterator

from psgc.iteration import is_evaluated, summed
from psgc.run_rows import HELD_OUT, Outcome
from psgc.server.copies import Books
from psgc.server.events import Abandoned, Report
from psgc.server.observer import IterationRecord, Observer


class IterationLog:
    """Fills `row`, the row of the current iteration, and gives finished rows to `observer`.

    A row is written after the workers have begun the next iteration, since workers on rank 0's host may need its core.

    num_chunks: of the run
    has_loss: whether the problem has a loss
    every: iterations from one evaluation to the next, 0 for none
    held_out: the figures of an evaluation, of `psgc.run_rows.HELD_OUT`
    """

    def __init__(
        self, observer: Observer, num_chunks: int, has_loss: bool, every: int = 0, held_out: Collection[str] = ()
    ) -> None:
        self._observer = observer
        self._num_chunks = num_chunks
        self._has_loss = has_loss
        self._every, self._held_out = every, held_out
        self.row = IterationRecord(-1)
        self._is_complete = False  # the gradient of the row's iteration is there
        self._finished: IterationRecord | None = None

    @property
    def waits(self) -> bool:
        """Whether a finished row is still to be written."""
        return self._finished is not None

    def begin(self, iteration: int, lost: int) -> None:
        """Begin the row of an iteration without `lost` workers."""
        self.row, self._is_complete = IterationRecord(iteration, lost=lost), False

    def reported(self, report: Report, counts: bool = True) -> None:
        """A worker has done a chunk, or a piece. Each chunk of a piece gets an equal share of its time and loss.

        counts: whether the copy is in the gradient
        """
        worker, loss = report.worker, report.loss / len(report.piece)
        for chunk, start, seconds in shares(report):
            if report.iteration != self.row.iteration:  # the row of that iteration is finished
                self.row.redundant += 1
                self._observer.chunk(worker, chunk, report.iteration, start, seconds, Outcome.LATE)
                continue
            self.row.reports.setdefault((worker, chunk, report.attempt), []).append((start, seconds))
            if counts or not report.others:  # a chunk's share is no use if only some chunks of the piece count
                self.row.losses.setdefault(chunk, loss)
            if is_evaluated(report.iteration, self._every):
                self.row.held_out.setdefault(chunk, report.sums)

    def lost(self, worker: int) -> None:
        """`worker` is lost."""
        self.row.lost += 1
        self.row.gone.add(worker)

    def complete(self, seconds: float, recovered: int, error_measure: float) -> None:
        """The gradient is there. The loss is the sum over the reported chunks, scaled up to all chunks.

        There are held-out figures only when all chunks were reported.
        """
        row, losses = self.row, self.row.losses
        row.seconds, row.recovered, row.error_measure = seconds, recovered, error_measure
        if self._has_loss:
            known = sum(losses[chunk] for chunk in sorted(losses))  # in this order, so that the rounding is the same
            unknown = self._num_chunks - len(losses)
            row.loss = known * self._num_chunks / len(losses) if unknown else known
        if len(row.held_out) == self._num_chunks:  # figures of some rows could not be compared with other figures
            figures = dict(zip(HELD_OUT, summed(row.held_out), strict=True))
            row.test_loss, row.test_accuracy = (figures[name] if name in self._held_out else None for name in HELD_OUT)
        self._is_complete = True

    @property
    def divergence(self) -> str:
        """What is wrong with the loss of the iteration; empty if it is finite, or there is none."""
        loss, losses = self.row.loss, self.row.losses
        if loss is None or math.isfinite(loss):
            return ""
        wrong = [chunk for chunk in sorted(losses) if not math.isfinite(losses[chunk])]
        where = f" (that of chunk {wrong[0]} is {losses[wrong[0]]})" if wrong else ""
        return f"the loss of iteration {self.row.iteration} is {loss}{where}; a smaller optimizer.lr may help"

    def finish(self, books: Books) -> None:
        """The iteration is over; books: its copies. An incomplete row is dropped."""
        self.write()
        row = self.row
        if not self._is_complete:
            return
        for (worker, chunk, attempt), copies in row.reports.items():
            unused = Outcome.LOST if worker in row.gone else Outcome.LATE
            outcomes = [unused] * len(copies)  # all but the last were of pieces that were dropped
            if books.used(worker, chunk, attempt):
                outcomes[-1] = Outcome.USED
            for (start, seconds), outcome in zip(copies, outcomes, strict=True):
                row.redundant += outcome != Outcome.USED
                self._observer.chunk(worker, chunk, row.iteration, start, seconds, outcome)
        self._finished, self.row, self._is_complete = row, IterationRecord(-1), False

    def write(self) -> None:
        """Give the finished row to the observer, if there is one."""
        row, self._finished = self._finished, None
        if row is not None:
            self._observer.iteration(row)


def shares(done: Report | Abandoned) -> Iterator[tuple[int, float, float]]:
    """When each chunk of a piece began and how many seconds it took, as if they had been done one after another.

    >>> [*shares(Abandoned(worker=1, iteration=0, chunk=4, start=1.0, seconds=3.0, others=(7, 8)))]
    [(4, 1.0, 1.0), (7, 2.0, 1.0), (8, 3.0, 1.0)]
    """
    each = done.seconds / len(done.piece)
    for place, chunk in enumerate(done.piece):
        yield chunk, done.start + place * each, each
