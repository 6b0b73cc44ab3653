"""What a server is told when it is made."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from psgc.aggregation.replica import Stepping
from psgc.backend import Array
from psgc.config import Config
from psgc.plan import Plan
from psgc.server.events import Report
from psgc.server.recovery import tolerated
from psgc.server.trial import TOLERANCE


class UserScript(Protocol):
    """A user's script on rank 0 that makes the steps itself (`psgc.torch`), as the server sees it.

    Every iteration is one call of the script; what is summed is a vector (dim,), or what an evaluation has.

    replica: by which the sums reach the script, and which has its state.
    """

    replica: Stepping

    def differing(self, one: bytes, other: bytes) -> Sequence[str]:
        """What two replicas do not share, by their digests."""

    def is_whole(self, iteration: int) -> bool | None:
        """Whether its state can be had in its call for `iteration`; None while it has not come there, but may."""

    def may_begin(self, iteration: int) -> bool | None:
        """Whether `iteration` is to begin; None while that is not known, False when the script makes no more calls."""

    def num_sums(self, iteration: int) -> int:
        """How many sums its call for `iteration`, an evaluation, has; 0: it wants a gradient."""

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


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A run as its server sees it.

    config: with the transfer that `auto` stands for; costs: of each chunk relative to an average one, None: all equal;
    script: that makes the steps, None when the optimizer of `config` does;
    known_costs: gives those of an iteration, where they differ from one to the next and are known beforehand, relative
    to an average chunk of the run;
    has_loss: whether the problem has one; held_out: the figures that an evaluation of held-out rows has (`evaluate`);
    tried: the chunk that each worker computes in the trial.
    interrupted: polled, a reason to end early or None; check_data: called with the iteration and the chunk whose
    gradient failed, raises UserError when it is the data that is wrong.
    """

    config: Config
    plan: Plan
    costs: Sequence[float] | None = None
    known_costs: Callable[[int], Sequence[float]] | None = None
    has_loss: bool = True
    held_out: Collection[str] = ()
    script: UserScript | None = None
    tried: Mapping[int, int] = field(default_factory=dict)
    interrupted: Callable[[], str | None] = lambda: None
    check_data: Callable[[int, int], object] = lambda iteration, chunk: None

    @property
    def copies(self) -> int:
        """How many copies of chunks determine the gradient."""
        return self.plan.num_chunks * self.plan.parts

    @property
    def tolerated(self) -> int:
        """How many of them may be missing in the end."""
        return tolerated(self.config.recovery.max_error, self.copies)

    @property
    def tolerance(self) -> float:
        """Relative difference up to which two gradients of a chunk count as the same."""
        verify = self.config.verify
        return TOLERANCE[self.config.dtype] if verify is None or verify.tolerance is None else verify.tolerance

    @property
    def is_unbiased(self) -> bool:
        """Whether the gradient of an iteration in which something is missing is to be unbiased."""
        return self.config.recovery.estimator == "unbiased"
