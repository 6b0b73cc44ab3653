"""What the server reports of a run, and the interface that receives it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from psgc.run_rows import IterationRow, Outcome


@dataclass
class IterationRecord(IterationRow):
    """One iteration as the server sees it: its row, and the values that make the row."""

    gone: set[int] = field(default_factory=set)  # workers that were lost in this iteration
    # (worker, chunk, how often it was invalidated before): start and seconds of each time that it was done
    reports: dict[tuple[int, int, int], list[tuple[float, float]]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)  # by reported chunk
    held_out: dict[int, tuple[float, ...]] = field(default_factory=dict)  # by reported chunk: test_loss, test_accuracy
    params: Any = None  # (dim,), at which the held-out figures were computed


@dataclass(frozen=True)
class Approximation:
    """An approximate gradient, and the chunks that are missing from it.

    params: (dim,), at which the gradient was computed.
    used: (dim,), the gradient that was used.
    plain: (dim,), the sum of the chunks that were there, without weights.
    incomplete: S_i of each chunk with fewer than l copies.

    The arrays belong to the server and change with the next step.
    """

    iteration: int
    params: Any
    used: Any
    plain: Any
    incomplete: dict[int, tuple[int, ...]]


class Observer(Protocol):
    """Keeps the record of a run."""

    def chunk(
        self, worker: int, chunk: int, iteration: int, start: float, seconds: float, outcome: Outcome
    ) -> None: ...

    def iteration(self, row: IterationRecord) -> None: ...

    def approximate(self, approximation: "Approximation") -> None: ...

    def stepped(self, done: int, row: IterationRecord, params: Any) -> bool:
        """`done` iterations are done. row: of the newest; params: (dim,) after it.

        Returns whether the run can end now, as after its last iteration.
        """

    def say(self, line: str) -> None: ...

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None: ...

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> None: ...

    def spoiled(self, iteration: int) -> str:
        """The step of this iteration has a wrong gradient in it. Returns what is done about that, for people."""

    def returned(self, worker: int, iteration: int) -> None: ...

    def failure_text(self, worker: int, text: str) -> str: ...
