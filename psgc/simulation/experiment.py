"""A simulation of schedules: a table with a row for each number of parts and each schedule.

All rows have the same speeds. Workers that fail in a row with fewer failures also fail in a row with more. A trial that
cannot recover counts as impossible, and is left out of the means.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from psgc import coding
from psgc.data.times import Seconds, estimates
from psgc.errors import UserError
from psgc.plan import default_queues, read_assignment
from psgc.schedules import SCHEDULES, Queues, Schedule
from psgc.simulation import closed_form
from psgc.simulation.settings import BuiltAssignment, Settings
from psgc.simulation.virtual import Passes, VirtualCluster

MAX_TIMES = 1_000_000_000  # largest trials x workers; all speeds are in memory

Told = Callable[[str], object]


@dataclass(frozen=True)
class ScheduleRow:
    """Means over the trials that recovered; None if there is no such trial, or if the value was not asked for."""

    parts: int
    schedule: str
    mean_time: float | None  # seconds
    std_time: float | None
    mean_bound: float | None  # seconds
    mean_ratio: float | None  # time / bound
    mean_errors: list[float]  # over all trials, one for each deadline
    impossible: int  # trials that never recover
    mean_computed: float | None  # copies that were finished at the recovery


@dataclass(frozen=True, eq=False)
class Trials:
    """The trials of a row."""

    parts: int
    schedule: str
    times: Seconds  # (trials,)
    computed: Seconds  # (trials,), copies
    errors: Seconds  # (trials, deadlines)
    bounds: Seconds | None  # (trials,)

    def row(self) -> ScheduleRow:
        done = np.isfinite(self.times)
        times = self.times[done]
        bounds = None if self.bounds is None else self.bounds[done]
        return ScheduleRow(
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
    """The number of times that `run` calls its `step`."""
    simulated = sum(not _is_closed(settings, schedule) for schedule in settings.schedules)
    return len(settings.parts) * settings.trials * (simulated + settings.bound)


def run(settings: Settings, step: Told = lambda what: None) -> list[ScheduleRow]:
    """The rows of a simulation. step: called with a description after each trial that takes long. Raises UserError."""
    return [trials.row() for trials in simulate(settings, step)]


def simulate(settings: Settings, step: Told = lambda what: None) -> Iterator[Trials]:
    """All trials of each row, see `run`."""
    assignment = _assignment(settings)
    for parts in settings.parts:
        coding.check(assignment, parts)
    if (numbers := settings.trials * assignment.shape[1]) > MAX_TIMES:
        sizes = f"{settings.trials} x {assignment.shape[1]} workers are {numbers} times"
        raise UserError(f"trials: {sizes}, expected <= {MAX_TIMES}")
    rng = np.random.default_rng([settings.seed, 0])
    everybody = settings.speeds.draw(rng, (settings.trials, assignment.shape[1]))
    costs = settings.speeds.of_chunks(settings.trials, assignment.shape[0])
    failed = {parts: _failed(settings, assignment, parts) for parts in settings.parts}
    ordering = coding.ordering(assignment)
    for parts in settings.parts:
        seconds = with_failures(everybody, failed[parts], [settings.seed, 1])
        compared = _Comparison(settings, assignment, ordering, parts, seconds, costs, step)
        bounds = compared.bounds() if settings.bound else None
        for schedule in settings.schedules:
            closed = _is_closed(settings, schedule)
            times, computed, errors = (compared.in_closed_form if closed else compared.event_by_event)(schedule)
            yield Trials(parts, schedule, closed_form.rounded_up(times, settings.clock), computed, errors, bounds)


@dataclass(frozen=True, eq=False)
class _Comparison:
    """All schedules on the same workers and chunks."""

    settings: Settings
    assignment: Any
    ordering: Any
    parts: int
    seconds: Seconds  # seconds per chunk of the workers, (trials, m)
    costs: Seconds | None  # costs of the chunks, (trials, N); None if all are equal
    step: Told

    @cached_property
    def primary(self) -> Any:
        return coding.primary_copies(self.assignment, self.ordering, self.parts)

    def bounds(self) -> Seconds:
        bounds = np.empty(len(self.seconds))
        for t, seconds in enumerate(self.seconds):
            if self.costs is None:
                pass_cost = self.settings.pass_cost or 0.0
                bounds[t] = coding.clairvoyant_bound(self.assignment, self.parts, seconds, pass_cost)
            else:  # a lower bound: all work, divided as if every worker could do any part of any chunk
                bounds[t] = self.parts * self.costs[t].sum() / (1 / seconds).sum()
            self.step(f"bound, l = {self.parts}")
        return closed_form.rounded_up(bounds, self.settings.clock)

    def _queues(self, schedule: str) -> tuple[Queues, Queues]:
        ranks = range(1, self.assignment.shape[1] + 1)
        return default_queues(schedule, self.ordering, self.primary, self.settings.seed, ranks)

    def in_closed_form(self, schedule: str) -> tuple[Seconds, Seconds, Seconds]:
        """Times, copies computed and errors of a schedule that keeps its queues."""
        queues = [*self._queues(schedule)[0].values()]
        whole_loads, deadlines = SCHEDULES[schedule].counts_whole_loads, self.settings.deadlines
        (times, computed, errors), n = self._empty(), self.assignment.shape[0]
        together: list[tuple[slice, Seconds | None]] = [(slice(None), None)]
        if self.costs is not None:
            together = [(slice(t, t + 1), costs) for t, costs in enumerate(self.costs)]
        for some, costs in together:
            seconds = self.seconds[some]
            work, counted = (coding.positions(queues, n, whole, costs) for whole in (False, whole_loads))
            times[some] = closed_form.completion_times(counted, self.parts, seconds)
            computed[some] = closed_form.copies_computed(work, seconds, times[some])
            errors[some] = closed_form.error_measures(counted, self.parts, seconds, deadlines)
        # as in the paper: least squares over the finished workers
        if deadlines and whole_loads and self.parts == 1 and self.costs is None:
            errors = closed_form.least_squares_errors(self.assignment, self.seconds, deadlines)
        return times, computed, errors

    def _empty(self) -> tuple[Seconds, Seconds, Seconds]:
        trials = len(self.seconds)
        return np.empty(trials), np.empty(trials), np.empty((trials, len(self.settings.deadlines)))

    def event_by_event(self, schedule: str) -> tuple[Seconds, Seconds, Seconds]:
        """The same, with the production coordinator and schedule, which learns only if the trials are consecutive."""
        held = self.assignment if SCHEDULES[schedule].holds_backups else self.primary
        holders = [(row + 1).tolist() for row in np.split(held.indices, held.indptr[1:-1])]
        queues, backups = self._queues(schedule)
        settings, error = self.settings, self.settings.known_speeds
        believed = None if error is None else estimates(self.seconds, error, [settings.seed, 2])
        known_costs = self._known_costs()
        times, computed, errors = self._empty()
        passes = Passes(settings.pass_cost is not None, settings.pass_cost or 0.0)
        rules: Schedule | None = None
        for t, seconds in enumerate(self.seconds):
            # also after a trial that has not ended: the coordinator is still in it
            if rules is None or not settings.consecutive or times[t - 1] == np.inf:
                before, rules = rules, SCHEDULES[schedule](queues, backups, holders, self.parts)
                if before is not None and settings.consecutive:
                    rules.inherit(before)
                cluster = VirtualCluster(holders, queues, self.parts, rules, passes=passes)
            if believed is not None:
                cluster.know(dict(enumerate(believed[t].tolist(), start=1)))
            if known_costs is not None:
                rules.know_costs(known_costs[t].tolist())
            costs = None if self.costs is None else self.costs[t].tolist()
            trial = cluster.recover(dict(enumerate(seconds.tolist(), start=1)), costs)
            times[t], computed[t] = trial.time, trial.computed
            missing = len(holders) * self.parts - np.searchsorted(trial.useful, settings.deadlines, side="right")
            errors[t] = np.sqrt(missing)
            self.step(f"{schedule}, l = {self.parts}")
        return times, computed, errors

    def _known_costs(self) -> Seconds | None:
        """The costs of chunks that the schedules know, relative to their mean, (trials, N); None: nothing."""
        error = self.settings.speeds.known_costs
        if self.costs is None or error is None:
            return None
        believed: Seconds = estimates(self.costs, error, [self.settings.seed, 3])
        believed /= believed.mean(axis=1, keepdims=True)
        return believed


def _is_closed(settings: Settings, schedule: str) -> bool:
    return SCHEDULES[schedule].keeps_queues and settings.pass_cost is None


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


def _failed(settings: Settings, assignment: Any, parts: int) -> int:
    failed = settings.speeds.failed
    if isinstance(failed, int):
        return failed
    load = np.bincount(assignment.indices, minlength=assignment.shape[1])
    if load.min() != load.max():
        held = f"workers hold {load.min()} to {load.max()} chunks"
        raise UserError(f"speeds.failed is {failed!r}, but in this assignment {held}; give a number")
    return int(load[0]) - {"load": 0, "load - 1": 1, "load - parts": parts}[failed]


def with_failures(seconds: Seconds, failed: int, seed: list[int]) -> Seconds:
    """These times, with inf for `failed` random workers of each trial. Raises UserError when no worker would be left.

    With the same seed, workers that fail with a smaller number also fail with a larger one.
    """
    trials, workers = seconds.shape
    if not 0 <= failed < workers:
        raise UserError(f"failed is {failed}; with {workers} workers it must be at least 0 and less than {workers}")
    unlucky = np.argsort(np.random.default_rng(seed).random((trials, workers)), axis=1)[:, :failed]
    result = np.array(seconds)
    np.put_along_axis(result, unlucky, np.inf, axis=1)
    return result


def _mean(values: Seconds) -> float | None:
    return float(values.mean()) if values.size else None
