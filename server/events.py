"""The events that the coordinator handles, and the phases in which each of them is allowed.

All times are seconds since the iteration began.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True)
class Begin:
    """Iteration `iteration` begins.

    has_gradient: False for an evaluation, whose sums come with the reports
    """

    iteration: int
    has_gradient: bool = True


class _OfPass:
    """An event about one pass of a worker."""

    __slots__ = ()
    chunk: int
    others: tuple[int, ...]

    @property
    def piece(self) -> tuple[int, ...]:
        """All chunks of the pass."""
        return self.chunk, *self.others


@dataclass(frozen=True, slots=True)
class Report(_OfPass):
    """A worker has done a chunk. With `per_chunk` its coded gradient is here.

    For the coordinator:
    now: when the server handles the report
    seconds: the time that the worker spent on the pass
    attempt: how many times the chunk had been invalidated, as far as the worker knew
    late: seconds since the worker finished the chunk
    others: the other chunks of the piece
    digest: of what was computed, 0 for none

    For others:
    start: when the worker began the chunk, by the worker's own clock
    loss: the loss of the piece
    sums: in an evaluation, the chunk's held-out loss and accuracy (`evaluate`), or what the script asks for
    coded: the coded gradient, (dim / parts,), valid until the next event; None when the worker keeps it
    joins: whether the worker can do several chunks in one pass
    """

    worker: int
    iteration: int
    chunk: int
    now: float = 0.0
    seconds: float = 0.0
    attempt: int = 0
    late: float = 0.0
    start: float = 0.0
    loss: float = 0.0
    sums: tuple[float, ...] = ()
    coded: Any = field(default=None, repr=False, compare=False)
    others: tuple[int, ...] = ()
    joins: bool = False
    digest: int = 0


@dataclass(frozen=True, slots=True)
class Abandoned(_OfPass):
    """A worker was told to skip a chunk while it did the chunk, and has dropped its copy. Fields as in `Report`."""

    worker: int
    iteration: int
    chunk: int
    now: float = 0.0
    seconds: float = 0.0
    attempt: int = 0
    late: float = 0.0
    start: float = 0.0
    others: tuple[int, ...] = ()
    digest: int = 0


@dataclass(frozen=True, slots=True)
class Delayed:
    """A worker is still in a pass of an earlier iteration. It begins this one when it reports or abandons that pass."""

    worker: int
    iteration: int
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Summed:
    """The server has the whole gradient, the sum of what was shared out (transfer `combined`)."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The failure detector declares a worker lost."""

    worker: int
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """The iteration must end as soon as possible, with the copies that are there."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `Coordinator.wake` named has come."""

    now: float


@dataclass(frozen=True, slots=True)
class Compared:
    """The copies of `chunk` by the workers `agreeing` agree, and the first `parts` of them decode it (`verify`).

    agreeing: parts + 1 workers or more, or empty when no parts + 1 copies agree
    """

    chunk: int
    agreeing: tuple[int, ...]
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Digested(_OfPass):
    """The digest of what a worker has computed in one pass (`verify: {idle: true}`). Fields as in `Report`.

    The digest of a pass comes before its `Report` or `Abandoned`.
    is_check: whether the pass was a check
    """

    worker: int
    iteration: int
    chunk: int
    digest: int
    now: float = 0.0
    seconds: float = 0.0
    others: tuple[int, ...] = ()
    is_check: bool = False


Event = Begin | Delayed | Report | Abandoned | Summed | Lost | Deadline | Tick | Compared | Digested

Phase = Literal["idle", "working", "collecting", "redoing"]
IDLE: Final = "idle"  # between two iterations
WORKING: Final = "working"  # until every chunk is committed
COLLECTING: Final = "collecting"  # `combined` only: until everything is summed
REDOING: Final = "redoing"  # a contributor was lost meanwhile: what it kept is done again

# For each event and phase, the phases that may follow. (): the event is ignored. No entry: the event is illegal.
# fmt: off
TRANSITIONS: dict[type[Event], dict[Phase, tuple[Phase, ...]]] = {
    Begin:     {IDLE: (WORKING,)},
    Delayed:   {IDLE: (), WORKING: (WORKING,), COLLECTING: (), REDOING: ()},
    Report:    {IDLE: (), WORKING: (WORKING, COLLECTING, IDLE), COLLECTING: (), REDOING: (REDOING, COLLECTING)},
    Abandoned: {IDLE: (), WORKING: (WORKING,), COLLECTING: (), REDOING: (REDOING,)},
    Digested:  {IDLE: (IDLE,), WORKING: (WORKING, COLLECTING, IDLE), COLLECTING: (COLLECTING,), REDOING: (REDOING,)},
    Compared:  {WORKING: (WORKING, COLLECTING, IDLE), REDOING: (REDOING, COLLECTING)},
    Tick:      {IDLE: (), WORKING: (WORKING,), COLLECTING: (), REDOING: (REDOING,)},
    Deadline:  {WORKING: (WORKING, COLLECTING, IDLE), COLLECTING: (), REDOING: ()},
    Summed:    {COLLECTING: (IDLE,), REDOING: (IDLE,)},
    Lost:      {IDLE: (IDLE,), WORKING: (WORKING, COLLECTING, IDLE), COLLECTING: (COLLECTING, REDOING),
                REDOING: (REDOING,)},
}
# fmt: on
