"""The calls on rank 0, one for each iteration: a NumPy problem makes them, or a user's script."""

from collections.abc import Collection, Sequence
from typing import Protocol

from psgc.aggregation.replica import Stepping
from psgc.backend import Array
from psgc.server.digests import of_replicas
from psgc.server.events import Report
from psgc.server.malformed import Malformed

LAST_STEP = 3.0  # seconds that workers have for the last step, when it only shows whether their replicas are equal


class Driver(Protocol):
    """The program of rank 0 as the server sees it: a `ProblemDriver`, or a script (`psgc.torch.serving`).

    A call sums a vector (dim,), or the sums of an evaluation.

    replica: takes the sums, gives and takes states
    is_alike: whether all ranks begin in the state of rank 0
    last_step: seconds that workers have for the last step, if less than `collect_timeout`
    ends_steps: whether a step that has begun is completed when the run fails
    """

    replica: Stepping
    is_alike: bool
    last_step: float
    ends_steps: bool

    def differing(self, one: bytes, other: bytes) -> Sequence[str]:
        """The names of what differs between two replicas, by their digests."""

    def waiting(self, nbytes: int) -> int:
        """How many sums of `nbytes` may wait for a rank; 0 for the usual number."""

    def is_whole(self, iteration: int) -> bool | None:
        """Whether the state of rank 0 can be given in the call for `iteration`; None if that is not known yet."""

    def may_begin(self, iteration: int) -> bool | None:
        """Whether `iteration` can begin; None if that is not known yet, False when there are no more calls."""

    def num_sums(self, iteration: int) -> int:
        """How many sums the call for `iteration` has if it is an evaluation; 0 if it wants a gradient."""

    def is_over(self) -> bool:
        """Whether the program has ended by itself, before the last iteration."""

    def loss(self, iteration: int, vector: Array) -> float | None:
        """The loss in the summed vector, None if the vector has none."""

    def held_out(self, sums: Sequence[float]) -> tuple[float | None, float | None]:
        """The loss and the accuracy in the sums of an evaluation, None where it has none."""

    def reported(self, report: Report) -> None:
        """A worker has done a chunk of this iteration. Raises UserError when the worker made another call."""

    def ended(self, worker: int, iteration: int, text: str, is_mistake: bool) -> None:
        """The program of `worker` makes no call for `iteration` or later ones.

        text: why, or empty
        is_mistake: whether it is the user's mistake, so that the run must end

        Raises Malformed when a program cannot end so.
        """

    def ended_ranks(self) -> Collection[int]:
        """The ranks whose program has ended. They give no states any more."""

    def due(self) -> Sequence[tuple[int, str]]:
        """The workers to declare lost, and why. Raises UserError for a mistake in a script."""


class ProblemDriver:
    """The calls of a NumPy problem: every iteration has a gradient, and the losses come with the reports."""

    is_alike, last_step, ends_steps = False, LAST_STEP, True

    def __init__(self, replica: Stepping) -> None:
        self.replica = replica

    def differing(self, one: bytes, other: bytes) -> Sequence[str]:
        return of_replicas(one, other)

    def waiting(self, nbytes: int) -> int:
        return 0

    def is_whole(self, iteration: int) -> bool:
        return True

    def may_begin(self, iteration: int) -> bool:
        return True

    def num_sums(self, iteration: int) -> int:
        return 0

    def is_over(self) -> bool:
        return False

    def loss(self, iteration: int, vector: Array) -> None:
        return None

    def held_out(self, sums: Sequence[float]) -> tuple[None, None]:
        return None, None

    def reported(self, report: Report) -> None:
        pass

    def ended(self, worker: int, iteration: int, text: str, is_mistake: bool) -> None:
        raise Malformed("a record that only scripts send")

    def ended_ranks(self) -> Collection[int]:
        return ()

    def due(self) -> Sequence[tuple[int, str]]:
        return ()
