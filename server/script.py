"""A user's script on rank 0 that makes the steps itself, as the server sees it (`psgc.torch`)."""

from collections.abc import Collection, Sequence
from typing import Protocol

from psgc.aggregation.replica import Stepping
from psgc.backend import Array
from psgc.server.events import Report


class UserScript(Protocol):
    """Every iteration is one call of the script; what is summed is a vector (dim,).

    replica: by which the sums reach the script, and which has its state.
    """

    replica: Stepping

    def differing(self, one: bytes, other: bytes) -> Sequence[str]:
        """What two replicas do not share, by their digests."""

    def is_whole(self, iteration: int) -> bool | None:
        """Whether its state can be had in its call for `iteration`; None while it has not come there, but may."""

    def may_begin(self, iteration: int) -> bool | None:
        """Whether `iteration` is to begin; None while that is not known, False when the script makes no more calls."""

    def is_over(self) -> bool:
        """Whether the script makes no more calls."""

    def loss(self, iteration: int, vector: Array) -> float | None:
        """The loss in a sum; None when it has none."""

    def reported(self, report: Report) -> None:
        """A worker has done a chunk of this iteration. Raises RunFailed when it was another call of the script."""

    def ended(self, worker: int, iteration: int, text: str, is_mistake: bool) -> None:
        """The script of `worker` makes no call for `iteration` nor later ones; text: why, or empty.

        is_mistake: of the user, as `text` says, so that the run must end.
        """

    def over_on(self) -> Collection[int]:
        """The ranks whose scripts have ended. They give nobody their state any more."""

    def due(self) -> list[tuple[int, str]]:
        """Workers without which the run has to go on, and why. Raises UserError for a mistake in a script."""
