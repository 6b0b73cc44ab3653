"""What makes the calls on rank 0, each of which is an iteration: a NumPy problem's settings, or a user's script."""

from collections.abc import Collection, Sequence
from typing import Protocol

from psgc.aggregation.replica import Stepping
from psgc.backend import Array
from psgc.server.digests import of_replicas
from psgc.server.events import Report
from psgc.server.malformed import Malformed

LAST_STEP = 3.0  # seconds that workers have for a step that only shows that their replicas are right


class Driver(Protocol):
    """What the server knows of the program of rank 0: a `ProblemDriver`, or a script (`psgc.torch.serving`).

    What is summed in a call is a vector (dim,), or what an evaluation has.

    replica: takes the sums, gives and takes states; is_alike: whether all ranks begin in the state of rank 0;
    last_step: seconds that workers have for the last step, if that is less than `collect_timeout`;
    ends_steps: whether a step that has begun comes to its end when the run cannot go on.
    """

    replica: Stepping
    is_alike: bool
    last_step: float
    ends_steps: bool

    def differing(self, one: bytes, other: bytes) -> Sequence[str]:
        """What two replicas do not share, by their digests."""

    def waiting(self, nbytes: int) -> int:
        """How many sums of so many bytes may wait for a rank, if more than may in every run."""

    def is_whole(self, iteration: int) -> bool | None:
        """Whether its state can be had in its call for `iteration`; None while it has not come there, but may."""

    def may_begin(self, iteration: int) -> bool | None:
        """Whether `iteration` is to begin; None while that is not known, False when no more calls are made."""

    def num_sums(self, iteration: int) -> int:
        """How many sums its call for `iteration`, an evaluation, has; 0: it wants a gradient."""

    def is_over(self) -> bool:
        """Whether it has ended by itself, before the last iteration."""

    def loss(self, iteration: int, vector: Array) -> float | None:
        """The loss in a sum; None when it has none."""

    def reported(self, report: Report) -> None:
        """A worker has done a chunk of this iteration. Raises RunFailed when it was another call."""

    def ended(self, worker: int, iteration: int, text: str, is_mistake: bool) -> None:
        """That of `worker` makes no call for `iteration` nor later ones; text: why, or empty.

        is_mistake: of the user, as `text` says, so that the run must end. Raises Malformed when that cannot be.
        """

    def over_on(self) -> Collection[int]:
        """The ranks on which it has ended. They give nobody their state any more."""

    def due(self) -> Sequence[tuple[int, str]]:
        """Workers without which the run has to go on, and why. Raises UserError for a mistake in a script."""


class ProblemDriver:
    """The calls of a NumPy problem: all iterations want a gradient, and the losses come with the reports."""

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

    def reported(self, report: Report) -> None:
        pass

    def ended(self, worker: int, iteration: int, text: str, is_mistake: bool) -> None:
        raise Malformed("what only a script says")

    def over_on(self) -> Collection[int]:
        return ()

    def due(self) -> Sequence[tuple[int, str]]:
        return ()
