"""What the server tells of a run to whoever keeps its record."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol


class Outcome(IntEnum):
    """What became of a chunk that a worker worked on."""

    USED = 0  # its copy is part of the gradient, or has shown it to be right (`verify`)
    LATE = 1  # done, but not needed any more
    ABANDONED = 2  # known not to be needed before the worker was through, or still in work when the iteration ended
    LOST = 3  # the worker was lost before it could deliver


@dataclass
class IterationRecord:
    """One iteration as the server saw it.

    seconds: from sending the parameters to having the gradient; loss: at these parameters, before the step, None when
    the problem has none.
    """

    iteration: int
    seconds: float = 0.0
    loss: float | None = None
    recovered: int = 0
    missing: int = 0  # chunks with fewer copies than determine their gradient
    error_measure: float = 0.0  # the share of the N * l copies that is missing
    redundant: int = 0  # copies that were done and not used
    bytes: int = 0  # in and out of the server
    bytes_in: int = 0  # of these into it
    lost: int = 0  # workers that were not there, or not to the end
    gone: set[int] = field(default_factory=set)  # the latter
    # (worker, chunk, how often it was invalidated before): start, seconds
    reports: dict[tuple[int, int, int], tuple[float, float]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)  # of each recovered chunk


@dataclass(frozen=True)
class Approximation:
    """What an approximate gradient lacks.

    params, used, plain: (dim,), where the gradient was asked for, the one that was used, and the sum of what was there
    with no weights; all three are the server's and change with the next step. incomplete: S_i of the chunks lacking.
    """

    iteration: int
    params: Any
    used: Any
    plain: Any
    incomplete: dict[int, tuple[int, ...]]


class Observer(Protocol):
    """Who keeps the record of a run."""

    def chunk(
        self, worker: int, chunk: int, iteration: int, start: float, seconds: float, outcome: Outcome
    ) -> None: ...

    def iteration(self, row: IterationRecord) -> None: ...

    def approximate(self, approximation: "Approximation") -> None: ...

    def stepped(self, done: int) -> None: ...

    def stuck(self, line: str) -> None: ...

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None: ...

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> None: ...

    def returned(self, worker: int, iteration: int) -> None: ...

    def failure_text(self, worker: int, text: str) -> str: ...
