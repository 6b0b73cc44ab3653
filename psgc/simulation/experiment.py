"""A simulation from its settings to its table: one row for every number of parts and schedule.

All rows are for the same speeds, and the failed workers of a row with fewer failures are among those of a row with
more. A trial that can never recover has no completion time: it is counted as impossible and left out of the means of
its row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc import coding
from psgc.errors import UserError
from psgc.plan import default_queues, read_assignment
from psgc.schedules import SCHEDULES, Queues
from psgc.simulation import closed_form, speeds
from psgc.simulation import settings as s
from psgc.simulation.virtual import VirtualCluster

MAX_TIMES = 1_000_000_000  # speeds of a worker in a trial, all of which are in memory

Step = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """Means over the trials that recovered; None where there is none, or nothing was asked for.

    mean_time, std_time, mean_bound: seconds. mean_errors: over all trials, one per deadline. impossible: trials that
    never recover. mean_computed: copies finished until then.
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


def steps(settings: s.Settings) -> int:
    """How many times `run` calls its `step`."""
    simulated = sum(not SCHEDULES[schedule].keeps_queues for schedule in settings.schedules)
    return len(settings.parts) * settings.trials * (simulated + settings.bound)


def run(settings: s.Settings, step: Step = lambda what: None) -> list[Row]:
    """Simulate. `step` is called with what was done after each trial of the parts that take long.

    Raises UserError: settings that do not fit each other or the files they name.
    """
    assignment = _assignment(settings)
    for parts in settings.parts:
        coding.check(assignment, parts)
    everybody = _speeds(settings, assignment.shape[1])
    failed = {parts: _failed(settings, assignment, parts) for parts in settings.parts}
    return [
        row
        for parts in settings.parts
        for seconds in [speeds.with_failures(everybody, failed[parts], [settings.seed, 1])]
        for row in _Trials(settings, assignment, parts, seconds, step).rows()
    ]


class _Trials:
    """All schedules with the same parts and the same speeds, shape (trials, m)."""

    def __init__(self, settings: s.Settings, assignment: Any, parts: int, seconds: speeds.Seconds, step: Step) -> None:
        self._settings, self._assignment, self._parts, self._seconds = settings, assignment, parts, seconds
        self._step = step
        self._ordering = coding.ordering(assignment)
        self._primary = coding.primary_copies(assignment, self._ordering, parts)

    def rows(self) -> list[Row]:
        bounds = self._bounds() if self._settings.bound else None
        rows = []
        for schedule in self._settings.schedules:
            simulate = self._in_closed_form if SCHEDULES[schedule].keeps_queues else self._event_by_event
            times, computed, errors = simulate(schedule)
            times = closed_form.rounded_up(times, self._settings.clock)
            done = np.isfinite(times)
            rows.append(
                Row(
                    self._parts,
                    schedule,
                    _mean(times[done]),
                    float(times[done].std()) if done.any() else None,
                    None if bounds is None else _mean(bounds[done]),
                    None if bounds is None else _mean(times[done] / bounds[done]),
                    errors,
                    int((~done).sum()),
                    _mean(computed[done]),
                )
            )
        return rows

    def _bounds(self) -> speeds.Seconds:
        bounds = np.empty(len(self._seconds))
        for t, seconds in enumerate(self._seconds):
            bounds[t] = coding.clairvoyant_bound(self._assignment, self._parts, seconds)
            self._step(f"bound, l = {self._parts}")
        return closed_form.rounded_up(bounds, self._settings.clock)

    def _queues(self, schedule: str) -> tuple[Queues, Queues]:
        ranks = range(1, self._assignment.shape[1] + 1)
        return default_queues(schedule, self._ordering, self._primary, self._settings.seed, ranks)

    def _positions(self, schedule: str) -> Any:
        queues, _ = self._queues(schedule)
        whole_loads = SCHEDULES[schedule].counts_whole_loads
        return coding.positions([*queues.values()], self._assignment.shape[0], whole_loads)

    def _in_closed_form(self, schedule: str) -> tuple[speeds.Seconds, speeds.Seconds, list[float]]:
        positions = self._positions(schedule)
        times = closed_form.completion_times(positions, self._parts, self._seconds)
        return times, closed_form.copies_computed(positions, self._seconds, times), self._errors(schedule)

    def _errors(self, schedule: str) -> list[float]:
        deadlines = self._settings.deadlines
        if (
            SCHEDULES[schedule].counts_whole_loads and self._parts == 1
        ):  # as the paper compares: weights for whoever is finished
            errors = closed_form.least_squares_errors(self._assignment, self._seconds, deadlines)
        else:
            positions = self._positions(schedule)
            errors = closed_form.error_measures(positions, self._parts, self._seconds, deadlines)
        return [float(mean) for mean in errors.mean(axis=0)]

    def _event_by_event(self, schedule: str) -> tuple[speeds.Seconds, speeds.Seconds, list[float]]:
        """The production coordinator and scheduler, each trial on a new cluster that knows only what it is told."""
        held = self._assignment if SCHEDULES[schedule].holds_backups else self._primary
        holders = [(row + 1).tolist() for row in np.split(held.indices, held.indptr[1:-1])]
        queues, backups = self._queues(schedule)
        error = self._settings.known_speeds
        believed = None if error is None else speeds.estimates(self._seconds, error, [self._settings.seed, 2])
        times, computed = np.empty((2, len(self._seconds)))
        copies = self._assignment.shape[0] * self._parts
        errors = np.empty((len(self._seconds), len(self._settings.deadlines)))
        for t, seconds in enumerate(self._seconds):
            plan = SCHEDULES[schedule](queues, backups, holders, self._parts)
            cluster = VirtualCluster(holders, queues, self._parts, plan)
            if believed is not None:
                cluster.know(dict(enumerate(believed[t].tolist(), start=1)))
            trial = cluster.recover(dict(enumerate(seconds.tolist(), start=1)))
            times[t], computed[t] = trial.time, trial.computed
            useful = closed_form.rounded_up(np.array(trial.useful), self._settings.clock)
            errors[t] = np.sqrt(copies - np.searchsorted(useful, self._settings.deadlines, side="right"))
            self._step(f"{schedule}, l = {self._parts}")
        return times, computed, [float(mean) for mean in errors.mean(axis=0)]


def _assignment(settings: s.Settings) -> Any:
    wanted = settings.assignment
    if not isinstance(wanted, s.BuiltAssignment):
        return read_assignment(wanted.path)
    chunks, workers, load = wanted.chunks, wanted.workers, wanted.load
    if load > chunks:
        raise UserError(f"assignment: load {load} is larger than the number of chunks {chunks}")
    replication, rest = divmod(load * workers, chunks)
    if rest:
        copies = f"load {load} x {workers} workers = {load * workers} copies"
        raise UserError(f"assignment: {copies} cannot be shared equally by {chunks} chunks")
    return coding.ASSIGNMENTS[wanted.kind].make(chunks, workers, replication, settings.seed)


def _speeds(settings: s.Settings, workers: int) -> speeds.Seconds:
    shape, rng = (settings.trials, workers), np.random.default_rng([settings.seed, 0])
    if (numbers := settings.trials * workers) > MAX_TIMES:
        raise UserError(f"trials: {settings.trials} x {workers} workers are {numbers} times, expected <= {MAX_TIMES}")
    match settings.speeds:
        case s.Exponential(mean=mean):
            return speeds.exponential(rng, shape, mean)
        case s.ShiftedExponential(shift=shift, mean=mean):
            return speeds.shifted_exponential(rng, shape, shift, mean)
        case s.Pareto(shape=exponent, minimum=minimum):
            return speeds.pareto(rng, shape, exponent, minimum)
        case s.TwoSpeed(fast=fast, slow=slow, slow_fraction=fraction):
            return speeds.two_speed(rng, shape, fast, slow, fraction)
        case s.Trace(path=path):
            return speeds.trace(path, shape)
    return speeds.from_file(settings.speeds.path, shape)


def _failed(settings: s.Settings, assignment: Any, parts: int) -> int:
    failed = settings.speeds.failed
    if isinstance(failed, int):
        return failed
    load = np.bincount(assignment.indices, minlength=assignment.shape[1])
    if load.min() != load.max():
        held = f"workers hold {load.min()} to {load.max()} chunks"
        raise UserError(f"speeds.failed is {failed!r}, but in this assignment {held}; give a number")
    return int(load[0]) - {"load": 0, "load - 1": 1, "load - parts": parts}[failed]


def _mean(values: speeds.Seconds) -> float | None:
    return float(values.mean()) if len(values) else None
