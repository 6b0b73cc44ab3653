"""A simulation from its settings to its table: one row for each number of parts and each schedule.

All rows are for the same speeds, and the failed workers of a row with fewer failures are among those of a row with
more. A trial that cannot recover takes infinitely long: it is counted as impossible and left out of the means.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc import coding
from psgc.errors import UserError
from psgc.plan import default_queues, read_assignment
from psgc.schedules import SCHEDULES, Queues
from psgc.simulation import closed_form, speeds
from psgc.simulation.settings import BuiltAssignment, Settings
from psgc.simulation.virtual import VirtualCluster

MAX_TIMES = 1_000_000_000  # speeds of a worker in a trial, all of which are in memory

Step = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """Means over the trials that recovered; None where there is none, or where it was not asked for.

    Times and bounds are seconds. mean_errors: over all trials, one for each deadline. impossible: trials that never
    recover. mean_computed: copies that were finished at the recovery.
    """

    parts: int
    schedule: str
    mean_time: float | None
    std_time: float | None
    mean_bound: float | None
    mean_ratio: float | None
    mean_errors: list[float]
    impossible: int
    mean_computed: float | None


@dataclass(frozen=True, eq=False)
class Trials:
    """The trials of a row. times, bounds: (trials,) seconds; computed: (trials,); errors: (trials, deadlines)."""

    parts: int
    schedule: str
    times: speeds.Seconds
    computed: speeds.Seconds
    errors: speeds.Seconds
    bounds: speeds.Seconds | None

    def row(self) -> Row:
        """Their means."""
        done = np.isfinite(self.times)
        times = self.times[done]
        bounds = None if self.bounds is None else self.bounds[done]
        return Row(
            self.parts,
            self.schedule,
            _mean(times),
            float(times.std()) if times.size else None,
            None if bounds is None else _mean(bounds),
            None if bounds is None else _mean(times / bounds),
            [float(mean) for mean in self.errors.mean(axis=0)],
            int((~done).sum()),
            _mean(self.computed[done]),
        )


def steps(settings: Settings) -> int:
    """How many times `run` calls its `step`."""
    simulated = sum(not SCHEDULES[schedule].keeps_queues for schedule in settings.schedules)
    return len(settings.parts) * settings.trials * (simulated + settings.bound)


def run(settings: Settings, step: Step = lambda what: None) -> list[Row]:
    """The rows of a simulation. step: called with a description after each trial that takes long.

    Raises UserError when the settings do not fit each other, or the files that they name.
    """
    return [trials.row() for trials in simulate(settings, step)]


def simulate(settings: Settings, step: Step = lambda what: None) -> Iterator[Trials]:
    """As `run`, with every trial."""
    assignment = _assignment(settings)
    for parts in settings.parts:
        coding.check(assignment, parts)
    everybody = _speeds(settings, assignment.shape[1])
    costs = settings.speeds.of_chunks(settings.trials, assignment.shape[0])
    failed = {parts: _failed(settings, assignment, parts) for parts in settings.parts}
    ordering = coding.ordering(assignment)
    for parts in settings.parts:
        seconds = speeds.with_failures(everybody, failed[parts], [settings.seed, 1])
        cluster = _Cluster(settings, assignment, ordering, parts, seconds, costs, step)
        bounds = cluster.bounds() if settings.bound else None
        for schedule in settings.schedules:
            closed = SCHEDULES[schedule].keeps_queues
            times, computed, errors = cluster.in_closed_form(schedule) if closed else cluster.event_by_event(schedule)
            yield Trials(parts, schedule, closed_form.rounded_up(times, settings.clock), computed, errors, bounds)


class _Cluster:
    """One cluster for all schedules.

    seconds: of its workers, (trials, m); costs: of its chunks, (trials, N), None where all are alike.
    """

    def __init__(
        self,
        settings: Settings,
        assignment: Any,
        ordering: Any,
        parts: int,
        seconds: speeds.Seconds,
        costs: speeds.Seconds | None,
        step: Step,
    ) -> None:
        self._settings, self._parts, self._seconds, self._step = settings, parts, seconds, step
        self._costs = costs
        self._assignment, self._ordering = assignment, ordering
        self._primary = coding.primary_copies(assignment, ordering, parts)

    def bounds(self) -> speeds.Seconds:
        bounds = np.empty(len(self._seconds))
        for t, seconds in enumerate(self._seconds):
            if self._costs is None:
                bounds[t] = coding.clairvoyant_bound(self._assignment, self._parts, seconds)
            else:  # the mean of all work: what would do if everybody could do any part of any chunk
                bounds[t] = self._parts * self._costs[t].sum() / (1 / seconds).sum()
            self._step(f"bound, l = {self._parts}")
        return closed_form.rounded_up(bounds, self._settings.clock)

    def _queues(self, schedule: str) -> tuple[Queues, Queues]:
        ranks = range(1, self._assignment.shape[1] + 1)
        return default_queues(schedule, self._ordering, self._primary, self._settings.seed, ranks)

    def in_closed_form(self, schedule: str) -> tuple[speeds.Seconds, speeds.Seconds, speeds.Seconds]:
        """Times, copies computed and errors of a schedule that keeps its queues."""
        queues, _ = self._queues(schedule)
        whole_loads, deadlines = SCHEDULES[schedule].counts_whole_loads, self._settings.deadlines
        if self._costs is not None:
            return self._trial_by_trial([*queues.values()], whole_loads, self._costs)
        positions = coding.positions([*queues.values()], self._assignment.shape[0], whole_loads)
        times = closed_form.completion_times(positions, self._parts, self._seconds)
        if deadlines and whole_loads and self._parts == 1:  # as in the paper: least squares over the finished workers
            errors = closed_form.least_squares_errors(self._assignment, self._seconds, deadlines)
        else:
            errors = closed_form.error_measures(positions, self._parts, self._seconds, deadlines)
        return times, closed_form.copies_computed(positions, self._seconds, times), errors

    def _trial_by_trial(
        self, queues: list[list[int]], whole_loads: bool, costs: speeds.Seconds
    ) -> tuple[speeds.Seconds, speeds.Seconds, speeds.Seconds]:
        """As `in_closed_form`, of chunks that differ from trial to trial."""
        parts, deadlines = self._parts, self._settings.deadlines
        times, computed = np.empty((2, len(costs)))
        errors = np.empty((len(costs), len(deadlines)))
        for t, seconds in enumerate(self._seconds[:, None]):
            work = closed_form.work_before(queues, costs[t])
            counted = closed_form.work_before(queues, costs[t], whole_loads)
            times[t] = closed_form.completion_times(counted, parts, seconds)[0]
            computed[t] = (work.data * seconds[0, work.indices] <= times[t]).sum() if np.isfinite(times[t]) else np.nan
            errors[t] = closed_form.error_measures(counted, parts, seconds, deadlines)[0]
        return times, computed, errors

    def event_by_event(self, schedule: str) -> tuple[speeds.Seconds, speeds.Seconds, speeds.Seconds]:
        """The same from the production coordinator and schedule; each trial starts without what others have learnt."""
        held = self._assignment if SCHEDULES[schedule].holds_backups else self._primary
        holders = [(row + 1).tolist() for row in np.split(held.indices, held.indptr[1:-1])]
        queues, backups = self._queues(schedule)
        settings, error = self._settings, self._settings.known_speeds
        believed = None if error is None else speeds.estimates(self._seconds, error, [settings.seed, 2])
        known_costs = self._known_costs()
        times, computed = np.empty((2, len(self._seconds)))
        errors = np.empty((len(self._seconds), len(settings.deadlines)))
        for t, seconds in enumerate(self._seconds):
            rules = SCHEDULES[schedule](queues, backups, holders, self._parts)
            cluster = VirtualCluster(holders, queues, self._parts, rules)
            if believed is not None:
                cluster.know(dict(enumerate(believed[t].tolist(), start=1)))
            if known_costs is not None:
                rules.know_costs(known_costs[t].tolist())
            costs = None if self._costs is None else self._costs[t].tolist()
            trial = cluster.recover(dict(enumerate(seconds.tolist(), start=1)), costs)
            times[t], computed[t] = trial.time, trial.computed
            useful = closed_form.rounded_up(np.array(trial.useful), settings.clock)
            missing = len(holders) * self._parts - np.searchsorted(useful, settings.deadlines, side="right")
            errors[t] = np.sqrt(missing)
            self._step(f"{schedule}, l = {self._parts}")
        return times, computed, errors

    def _known_costs(self) -> speeds.Seconds | None:
        """What the schedules know of the chunks, relative to their mean, (trials, N); None: nothing."""
        error = self._settings.speeds.known_costs
        if self._costs is None or error is None:
            return None
        believed: speeds.Seconds = speeds.estimates(self._costs, error, [self._settings.seed, 3])
        believed /= believed.mean(axis=1, keepdims=True)
        return believed


def _assignment(settings: Settings) -> Any:
    wanted = settings.assignment
    if not isinstance(wanted, BuiltAssignment):
        return read_assignment(wanted.path)
    chunks, workers, load = wanted.chunks, wanted.workers, wanted.load
    if load > chunks:
        raise UserError(f"assignment: load {load} is larger than the number of chunks {chunks}")
    replication, rest = divmod(load * workers, chunks)
    if rest:
        copies = f"load {load} x {workers} workers = {load * workers} copies"
        raise UserError(f"assignment: {copies} cannot be shared equally by {chunks} chunks")
    return coding.ASSIGNMENTS[wanted.kind].make(chunks, workers, replication, settings.seed)


def _speeds(settings: Settings, workers: int) -> speeds.Seconds:
    if (numbers := settings.trials * workers) > MAX_TIMES:
        raise UserError(f"trials: {settings.trials} x {workers} workers are {numbers} times, expected <= {MAX_TIMES}")
    return settings.speeds.draw(np.random.default_rng([settings.seed, 0]), (settings.trials, workers))


def _failed(settings: Settings, assignment: Any, parts: int) -> int:
    failed = settings.speeds.failed
    if isinstance(failed, int):
        return failed
    load = np.bincount(assignment.indices, minlength=assignment.shape[1])
    if load.min() != load.max():
        held = f"workers hold {load.min()} to {load.max()} chunks"
        raise UserError(f"speeds.failed is {failed!r}, but in this assignment {held}; give a number")
    return int(load[0]) - {"load": 0, "load - 1": 1, "load - parts": parts}[failed]


def _mean(values: speeds.Seconds) -> float | None:
    return float(values.mean()) if values.size else None
