"""The workers of a run: which of them take part, what they hold, and which of them are to be declared lost."""

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from math import inf

from psgc.config import Config
from psgc.iteration import is_evaluated
from psgc.plan import Plan
from psgc.processes import RunningTime
from psgc.schedules import SCHEDULES, Queues, Schedule
from psgc.server.arrivals import Alive
from psgc.server.failure_detector import FailureDetector, Stuck
from psgc.server.membership import Membership
from psgc.server.observer import Observer
from psgc.server.rebalance import queues_for
from psgc.server.recovery import weights
from psgc.server.settings import ServerSettings

CHECK_EVERY = 0.05  # seconds between two checks of the timeouts


def everybody(config: Config, plan: Plan) -> Membership:
    """The membership of a run while no worker is lost."""
    checking, workers = config.verify_every > 0, range(1, plan.num_workers + 1)
    return Membership(plan.holders(), plan.parts, config.faults.adopt, workers, checking, renewing=bool(plan.backups))


class Cluster:
    """The workers as the server knows them.

    settings: of the run
    hosts: the host of every rank
    membership, schedule, queues: of the current iteration
    now: seconds for which this process has run (`RunningTime`)
    """

    def __init__(self, settings: ServerSettings, hosts: Sequence[str], observer: Observer) -> None:
        self.settings, self._config, self._plan = settings, settings.config, settings.plan
        self.hosts = hosts
        self.observer = observer
        config, plan = self._config, self._plan
        self._everybody = everybody(config, plan)
        workers = self._everybody.workers
        self.membership = self._everybody.without([])
        self.queues = plan.queues
        self.schedule = self._make_schedule(plan.backups)
        faults = config.faults
        self.detector = FailureDetector(workers, faults.collect_timeout, faults.chunk_timeout, settings.losses)
        self._running = RunningTime()
        self._next_check = 0.0
        # since the last rebalance a worker was lost or came back, or a chunk was reassigned (with `verify` at once)
        self.changed = any(map(self.membership.reassigned, workers))
        self.left_out: set[int] = set()  # workers that are not lost, but take no part
        self.strikes = Counter(settings.strikes)  # wrong copies of each worker (`verify`)
        self._joins: dict[int, bool] = {}  # by worker that has said so, whether it can do several chunks in one pass
        self._stuck = Stuck()

    def _make_schedule(self, backups: Queues) -> Schedule:
        holders, parts = self.membership.holders, self.membership.parts
        return SCHEDULES[self._config.schedule](self.queues, backups, holders, parts, self.settings.costs)

    @property
    def estimates(self) -> dict[int, float]:
        """Seconds per chunk by rank, for the ranks whose pace the schedule has learnt."""
        return dict(self.schedule.estimates)

    @estimates.setter
    def estimates(self, seconds: dict[int, float]) -> None:
        if self.schedule.is_adaptive:
            self.schedule.estimates = {w: seconds[w] for w in self.membership.workers if w in seconds}

    def tick(self) -> None:
        """Update `now`."""
        self._running.look()

    @property
    def now(self) -> float:
        return self._running.now

    def welcome(self) -> list[int]:
        """The lost workers that were heard again. They take part from the next rebalance on."""
        back = self.detector.welcome(self.now)
        self.changed = self.changed or bool(back)
        return back

    @property
    def here(self) -> list[int]:
        """The workers that are not lost."""
        away = self.detector.away
        return [worker for worker in self._everybody.workers if worker not in away]

    def leave_out(self, workers: Collection[int]) -> None:
        """Leave these live workers out from the next rebalance on, and nobody else."""
        self.changed = self.changed or self.left_out != set(workers)
        self.left_out = set(workers)

    def rebalance(self) -> bool:
        """Rebalance the chunks among the workers that take part. Returns whether anything had changed."""
        if not self.changed:
            return False
        self.changed = False
        self.membership = self._everybody.without([*self.detector.away, *self.left_out])
        self.queues, backups = queues_for(self.membership, self._plan)
        schedule = self._make_schedule(backups)
        schedule.inherit(self.schedule)
        self.schedule = schedule
        return True

    def know_costs(self, iteration: int) -> bool:
        """Tell the schedule the costs of this iteration's chunks. Returns whether it has planned with them."""
        known = self.settings.known_costs
        return known is not None and self.schedule.know_costs(known(iteration))

    def note_joins(self, worker: int, joins: bool) -> None:
        """Note whether a worker can do several chunks in one pass."""
        self._joins[worker] = joins

    def allow_pieces(self, iteration: int, num_sums: int) -> bool:
        """Let workers do several chunks in one pass, in an iteration whose only result is one gradient.

        num_sums: as for `Dispatcher`

        Returns whether the schedule's orders should reach a worker before it begins.
        """
        config = self._config
        is_plain = config.transfer != "per_chunk" and config.joins and self._plan.parts == 1
        has_figures = num_sums > 0 or is_evaluated(iteration, config.evaluate_every)
        # a slow worker may say nothing for many iterations, since others do its chunks
        said = [self._joins[worker] for worker in self.membership.live if worker in self._joins]
        return self.schedule.allow_pieces(is_plain and not has_figures and bool(said) and all(said))

    def weights(
        self, iteration: int, reported: Iterable[tuple[int, int]], incomplete: Container[int]
    ) -> dict[int, float]:
        """The weight of each recovered chunk in an unbiased gradient.

        reported: (worker, chunk), of this iteration and before its end
        incomplete: the chunks that are not recovered
        """
        num_chunks, parts = len(self.membership.holders), self.membership.parts
        recovered = [chunk for chunk in range(num_chunks) if chunk not in incomplete]
        whole, seed = self.schedule.counts_whole_loads, (self._config.seed, iteration)
        return weights(self.queues, reported, recovered, num_chunks, parts, whole, seed)

    # when a worker fails

    def alive(self, alive: Alive) -> None:
        """A sign of life."""
        self.detector.busy(alive.worker, alive.chunk, alive.seconds, self.now)
        if alive.stuck_at is not None:
            self._stuck.told(alive.worker, alive.chunk, alive.seconds, alive.stuck_at, self.now)

    def due(self, unreached: Callable[[float], Sequence[int]]) -> list[tuple[int, str, bool]]:
        """The workers to declare lost now, the reason, and whether for good.

        unreached: gives the workers to which a message has not left for so many seconds
        """
        limit = self._config.verify.strikes if self._config.verify else inf
        found = [
            (worker, f"its copies were wrong {strikes} times (verify.strikes)", True)
            for worker, strikes in self.strikes.items()
            if strikes >= limit
        ]
        if self.now >= self._next_check:
            self._next_check = self.now + CHECK_EVERY
            for line in self._stuck.due(self.now):
                self.observer.say(line)
            found += [(worker, reason, False) for worker, reason in self.detector.missing(self.now)]
            timeout = self._config.faults.collect_timeout
            reason = f"nothing reaches it for {timeout:g} s (faults.collect_timeout)"
            found += [(worker, reason, False) for worker in unreached(timeout)]
        return found

    def lose(self, worker: int, dead: bool, failed: bool, counts: bool = True) -> bool:
        """`worker` is lost, as in `FailureDetector.lost`. Returns whether it was not lost before."""
        if not self.detector.lost(worker, dead, failed, counts):
            return False
        self.changed = True
        return True
