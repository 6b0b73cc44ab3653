"""What a server is told when it is made."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from psgc.config import Config
from psgc.iteration import Moment
from psgc.plan import Plan
from psgc.server.driver import Driver
from psgc.server.recovery import tolerated
from psgc.server.trial import TOLERANCE


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A run as its server sees it.

    config: with the transfer that `auto` stands for; costs: of each chunk relative to an average one, None: all equal;
    driver: makes the calls;
    known_costs: gives those of an iteration, where they differ from one to the next and are known beforehand, relative
    to an average chunk of the run;
    has_loss: whether the problem has one; held_out: the figures that an evaluation of held-out rows has (`evaluate`);
    tried: the chunk that each worker computes in the trial.
    alike: the workers that begin in the state of rank 0, where not all or none of them do; away: by worker that takes
    no part in the beginning, whether its process has died.
    moment: called at the steps of the exchange at which faults can be injected.
    interrupted: polled, a reason to end early or None; check_data: called with the iteration and the chunk whose
    gradient failed, raises UserError when it is the data that is wrong.
    """

    config: Config
    plan: Plan
    driver: Driver
    costs: Sequence[float] | None = None
    known_costs: Callable[[int], Sequence[float]] | None = None
    has_loss: bool = True
    held_out: Collection[str] = ()
    tried: Mapping[int, int] = field(default_factory=dict)
    alike: Collection[int] = ()
    away: Mapping[int, bool] = field(default_factory=dict)
    moment: Callable[[Moment, int], object] = lambda moment, iteration: None
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
