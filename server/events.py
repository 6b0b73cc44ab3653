"""What happens to an iteration, as the coordinator hears of it, and in which of its phases that may be.

All times are seconds since the iteration began.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True)
class Begin:
    """The parameters of `iteration` are on their way to the workers.

    has_gradient: else it is an evaluation, whose sums come with the reports.
    """

    iteration: int
    has_gradient: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """A worker has done a chunk (transfer `per_chunk`: and its coded gradient is here).

    now: when the server handles the report; seconds: what the chunk took the worker; attempt: how often the chunk had
    been invalidated, as far as the worker knew; late: how many seconds ago the worker finished the chunk.

    The rest is not for the coordinator. start: when the worker began the chunk, by its own clock; loss: of the chunk;
    sums: of an evaluation, the part of the chunk: held-out loss and accuracy (`evaluate`), or what a script asks for;
    coded: the coded gradient, (dim / parts,), valid until the next event; None when the worker keeps its gradient.

    others: the chunks of a piece besides `chunk`; joins: whether the worker can do several chunks in one pass;
    digest: of what was computed, 0 for none.
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

    @property
    def piece(self) -> tuple[int, ...]:
        """All chunks of the pass."""
        return self.chunk, *self.others


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A worker has finished a chunk that it was told to skip meanwhile, and has dropped it; fields as in `Report`."""

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

    @property
    def piece(self) -> tuple[int, ...]:
        """All chunks of the pass."""
        return self.chunk, *self.others


@dataclass(frozen=True, slots=True)
class Summed:
    """The whole gradient is at the server, from what was shared out (transfer `combined`)."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The failure detector has given up a worker."""

    worker: int
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """The iteration is to end as soon as possible, with the copies that are there."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due when `Coordinator.wake` says so."""

    now: float


@dataclass(frozen=True, slots=True)
class Compared:
    """The copies of `chunk` by the workers `agreeing` agree; the first `parts` of them decode it (`verify`).

    agreeing: parts + 1 workers or more, or empty when no parts + 1 copies agree.
    """

    chunk: int
    agreeing: tuple[int, ...]
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Digested:
    """What a worker has computed in one pass has this digest (`verify: {idle: true}`); fields as in `Report`.

    Of a pass that is reported or abandoned it comes before that. is_check: it was a check.
    """

    worker: int
    iteration: int
    chunk: int
    digest: int
    now: float = 0.0
    seconds: float = 0.0
    others: tuple[int, ...] = ()
    is_check: bool = False

    @property
    def piece(self) -> tuple[int, ...]:
        """All chunks of the pass."""
        return self.chunk, *self.others


Event = Begin | Report | Abandoned | Summed | Lost | Deadline | Tick | Compared | Digested

Phase = Literal["idle", "working", "collecting", "redoing"]
IDLE: Final = "idle"  # between two iterations
WORKING: Final = "working"  # until every chunk is committed
COLLECTING: Final = "collecting"  # `combined` only: until everything is summed
REDOING: Final = "redoing"  # a contributor was lost meanwhile: what it kept is done again

# For each event and phase the phases that may follow. (): the event is ignored; no entry: it is illegal.
# fmt: off
TRANSITIONS: dict[type[Event], dict[Phase, tuple[Phase, ...]]] = {
    Begin:     {IDLE: (WORKING,)},
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
