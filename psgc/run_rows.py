"""The rows in a run's directory: the server makes them, and `psgc.record` writes them to files."""

from dataclasses import dataclass, fields
from enum import IntEnum
from math import inf, nan
from typing import NamedTuple

LONGEST = 1e9  # seconds; no run takes longer


class Outcome(IntEnum):
    """What became of a worker's copy of a chunk."""

    USED = 0  # it is part of the gradient, or was compared with a copy that is (`verify`)
    LATE = 1  # done, but not needed any more
    ABANDONED = 2  # given up before it was done, because it was not needed or the iteration ended
    LOST = 3  # done by a worker that was lost before it could deliver the copy


OUTCOMES = tuple(outcome.name.lower() for outcome in Outcome)


class TimelineColumn(NamedTuple):
    """A column of the timeline: its NumPy type, its least value, and the first value that is too large."""

    dtype: str
    least: float
    end: float


TIMELINE = {
    "worker": TimelineColumn("<i4", 1, inf),
    "chunk": TimelineColumn("<i4", 0, inf),
    "iteration": TimelineColumn("<i4", 0, inf),
    "start": TimelineColumn("<f8", 0, LONGEST),  # seconds since the worker had the parameters of the iteration
    "seconds": TimelineColumn("<f8", 0, LONGEST),  # that the worker spent on the chunk
    "outcome": TimelineColumn("i1", 0, len(Outcome)),
}


@dataclass
class IterationRow:
    """A row of iterations.csv. Its columns are these fields, in this order; nan stands for an unknown value."""

    iteration: int
    loss: float | None = None  # at the parameters before the step; None, an empty field, when the problem has none
    seconds: float = 0.0  # from sending the parameters to having the gradient
    bound: float = nan  # seconds, the clairvoyant bound T*
    efficiency: float = nan  # bound / seconds
    error_measure: float = 0.0  # share of the N * l copies that is missing
    missing: int = 0  # chunks with too few copies for their gradient
    actual_error: float = 0.0  # of the gradient, relative to the exact one
    recovered: int = 0  # chunks
    redundant: int = 0  # copies that were done and not used; those of earlier iterations if they were reported in it
    bytes: int = 0  # in and out of the server
    bytes_in: int = 0  # the part of `bytes` that came into the server
    lost: int = 0  # workers that were lost before the end of the iteration
    test_loss: float | None = None  # of the held-out rows, at the same parameters as the loss; None: not evaluated
    test_accuracy: float | None = None  # likewise

    def __post_init__(self) -> None:
        self.measures: dict[str, float] = {}  # not a column: further figures for loggers (`psgc.record.measures`)

    @property
    def is_evaluated(self) -> bool:
        """Whether the row has held-out figures."""
        return self.test_loss is not None or self.test_accuracy is not None


COLUMNS = tuple(field.name for field in fields(IterationRow))
HELD_OUT = ("test_loss", "test_accuracy")
OPTIONAL = ("loss", *HELD_OUT)  # fields that may be empty
COUNTS = tuple(field.name for field in fields(IterationRow) if field.type is int)
MOST = {"seconds": LONGEST, "bound": LONGEST, "error_measure": 1.0}  # the largest values; the least is 0


class EvaluationRow(NamedTuple):
    """A row of evaluations.csv: a value of an evaluation by a script (`run.evaluate`)."""

    iteration: int  # that of the evaluation; of several calls the last
    epoch: int  # whole epochs before it
    name: str
    value: float


UNDONE = " (undone)"  # the end of a reason
FOR_GOOD = "; it does not come back"  # likewise
TAKEN_OUT = "its work of this iteration does not count, since one of its copies was wrong"  # a reason


class WorkerEvent(NamedTuple):
    """A row of lost.csv: a worker was lost ("lost"), sent a wrong copy ("wrong"), or came back ("returned")."""

    iteration: int
    worker: int  # 0 for a rank 0 that was lost
    host: str
    event: str
    reason: str

    @property
    def is_undone(self) -> bool:
        """Whether this is a wrong copy in a step that is made again."""
        return self.event == "wrong" and self.reason.endswith(UNDONE)

    @property
    def is_for_good(self) -> bool:
        """Whether this is the loss of a worker that does not come back, although its process may live."""
        return self.event == "lost" and self.reason.endswith(FOR_GOOD)

    def resumed(self, iteration: int) -> "WorkerEvent":
        """This event in a run that is resumed at the iteration."""
        is_new = self.event == "wrong" and self.iteration >= iteration and not self.is_undone
        return self._replace(reason=self.reason + UNDONE) if is_new else self

    @property
    def line(self) -> str:
        """The event as a line of text."""
        if self.event == "returned":
            return f"worker {self.worker} is back in iteration {self.iteration}"
        what = "lost" if self.event == "lost" else "sent a wrong copy"
        who = f"worker {self.worker}" if self.worker else "rank 0"
        return f"{who} on {self.host} {what} in iteration {self.iteration}: {self.reason}"
