"""What a server needs to know of a run."""

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

    config: the settings, with `transfer: auto` resolved
    plan: which worker holds which chunks
    driver: the calls of the run
    costs: of each chunk relative to an average one; None: all equal
    known_costs: gives the costs of an iteration's chunks relative to an average chunk of the run, if they differ from
        one iteration to the next and are known beforehand
    has_loss: whether the problem has a loss
    held_out: the figures of an evaluation of held-out rows (`evaluate`)
    tried: by worker, the chunk that it computes in the trial
    alike: the workers that begin in the state of rank 0
    away: by worker that is lost from the beginning, whether its process has died
    losses: by worker, how often it was lost before the run goes on here
    failed: the workers that were lost for good before
    strikes: by worker, its wrong copies before the run goes on here (`verify`)
    moment: called at the steps of the exchange at which faults can be injected
    interrupted: gives a reason to end early, or None
    must_stop_now: whether an interrupted run stops at once; otherwise it may complete its iteration, within a limit
    check_data: called with the iteration and the chunk of a gradient that failed; raises UserError if the data is wrong
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
    losses: Mapping[int, int] = field(default_factory=dict)
    failed: Collection[int] = ()
    strikes: Mapping[int, int] = field(default_factory=dict)
    moment: Callable[[Moment, int], object] = lambda moment, iteration: None
    interrupted: Callable[[], str | None] = lambda: None
    must_stop_now: Callable[[], bool] = lambda: True
    check_data: Callable[[int, int], object] = lambda iteration, chunk: None

    @property
    def copies(self) -> int:
        """How many copies of chunks make the gradient."""
        return self.plan.num_chunks * self.plan.parts

    @property
    def tolerated(self) -> int:
        """How many copies may be missing at the end of an iteration."""
        return tolerated(self.config.recovery.max_error, self.copies)

    @property
    def tolerance(self) -> float:
        """Relative difference up to which two gradients of a chunk count as the same."""
        verify = self.config.verify
        return TOLERANCE[self.config.dtype] if verify is None or verify.tolerance is None else verify.tolerance

    @property
    def is_unbiased(self) -> bool:
        """Whether the gradient of an incomplete iteration must be unbiased."""
        return self.config.recovery.estimator == "unbiased"
