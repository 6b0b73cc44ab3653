"""The speeds of a recorded run: seconds per chunk of each worker in each iteration.

Missing values are estimated. If a worker finished no chunk in an iteration, its pace is interpolated from the
iterations in which it did. It is at least the pace of the chunk that it broke off, and for a worker that never finished
a chunk, equal to it. A worker without any chunk in the record is taken to be as slow as the slowest one.

Some iterations cannot be compared with simulated ones, and do not count: the first one, in which ranks are still being
set up, and each iteration in which a worker was lost or returned, with the next one. Left out are evaluations of
psgc.torch, which have no loss, and the iterations before a run was resumed with another number of workers or chunks.

Nor do iterations count in which held-out rows were evaluated (`evaluate`). If no other is left, as with `every: 1`,
they count, and what a worker evaluates with a chunk is a part of its time for the chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psgc.errors import UserError
from psgc.record.timeline import Columns, passes
from psgc.run_rows import HELD_OUT, Outcome
from psgc.schedules.learning import MOST_FIXED
from psgc.tools.run_directory import RecordedRun

AT_THE_END = 0.95  # share of an iteration; a chunk that was abandoned later was broken off by the iteration's end
SHORTEST = 1e-9  # seconds per chunk


@dataclass(frozen=True)
class Recording:
    """The iterations that have a chunk in the timeline."""

    seconds: np.ndarray  # (iterations, workers), per average chunk
    took: np.ndarray  # (iterations,) seconds
    counts: np.ndarray  # (iterations,) bool, whether the iteration counts, see above
    evaluates: np.ndarray  # (iterations,) bool, whether held-out rows were evaluated
    exact: np.ndarray  # (iterations,) bool, whether all chunks were recovered
    here: np.ndarray  # (iterations, workers) bool, whether the worker took part
    pause: float  # seconds between two passes of a worker
    joins: bool  # whether workers did several chunks in one pass
    pass_cost: float  # cost of a pass besides its chunks, in average chunks; 0 when unknown
    spent: np.ndarray  # (iterations,) seconds of computing
    used: np.ndarray  # (iterations,) seconds of computing copies that are in the gradient
    incoming: np.ndarray  # (iterations,) bytes into the server
    outgoing: np.ndarray  # (iterations,) bytes out of it
    assumed: float  # share of `seconds` that was estimated
    never_finished: list[int]  # ranks of workers without a finished chunk


def read_recording(run: RecordedRun, costs: Sequence[float] | None = None, breaks_off: bool = True) -> Recording:
    """The speeds in the record of a run that has a timeline.

    costs: the cost of each chunk relative to an average one; None when all are equal
    breaks_off: whether the end of an iteration broke off unfinished chunks (emulated times); otherwise every recorded
        time is the time of a whole chunk

    Raises UserError when no finished iteration has a chunk.
    """
    assert run.timeline is not None
    numbers, timeline = run.iterations["iteration"], run.timeline
    seen = np.isin(numbers, timeline["iteration"]) & ~_of_other_workers(run) & ~run.evaluations
    if not seen.any():
        raise UserError(f"{run.path}: its timeline has no chunk of an iteration that was finished; nothing to replay")
    numbers, took = numbers[seen], run.iterations["seconds"][seen]
    mine = np.isin(timeline["iteration"], numbers)
    worker, chunk, iteration, outcome, start, seconds = (
        timeline[name][mine] for name in ("worker", "chunk", "iteration", "outcome", "start", "seconds")
    )
    row, column = np.searchsorted(numbers, iteration), worker - 1
    work = np.ones(len(chunk)) if costs is None else np.asarray(costs)[chunk]
    in_iteration = {"worker": row * run.workers + column, "start": start, "seconds": seconds, "outcome": outcome}
    done, pass_cost = passes(in_iteration), 0.0
    disturbed = [event.iteration + later for event in run.events for later in (0, 1)]
    counts, evaluates = ~np.isin(numbers, disturbed), _evaluates(run)[seen]
    counts[0] &= len(numbers) == 1
    pauses, evaluating = _gaps(done, evaluates, run.workers)
    if (counts & ~evaluates).any():
        counts, evaluating = counts & ~evaluates, np.zeros(run.workers)
    else:  # in `evaluating` are the pauses as well
        pauses = pauses[:0]
    is_alone = run.config.transfer == "per_chunk" or bool(evaluating.any())  # then a pass is always over one chunk
    if joins := not is_alone and len(done["begins"]) < len(work):
        pass_cost = _pass_cost(done, np.add.reduceat(work[done["order"]], done["begins"]))
        work[done["order"][done["begins"]]] += pass_cost
    broken_off = (outcome == Outcome.ABANDONED) & breaks_off & (start + seconds > AT_THE_END * took[row])

    here = np.ones((len(numbers), run.workers), bool)
    paces, least = _paces((row, column), seconds, work, broken_off, here.shape)
    for event in sorted(run.events_of_workers, key=lambda event: event.iteration):  # stable: in the order of the file
        back = event.event == "returned"  # a worker that is lost takes part until the end of the iteration
        here[numbers >= event.iteration + (not back), event.worker - 1] = back
    finished = np.isfinite(paces)
    return Recording(
        seconds=_filled(paces, least, here) + evaluating,
        took=took,
        counts=counts,
        evaluates=evaluates,
        exact=run.iterations["recovered"][seen] == run.chunks,
        here=here,
        pause=float(np.median(pauses)) if len(pauses) else 0.0,
        joins=joins,
        pass_cost=pass_cost,
        spent=np.bincount(row, seconds, len(numbers)),
        used=np.bincount(row, seconds * (outcome == Outcome.USED), len(numbers)),
        incoming=run.iterations["bytes_in"][seen],
        outgoing=(run.iterations["bytes"] - run.iterations["bytes_in"])[seen],
        assumed=float((here & ~finished).sum() / max(1, here.sum())),
        never_finished=(1 + np.flatnonzero(~finished.any(axis=0))).tolist(),
    )


def _of_other_workers(run: RecordedRun) -> np.ndarray:
    """Which iterations are of an earlier part of the run, with other workers or more chunks, (iterations,) bool."""
    assert run.timeline is not None
    numbers, timeline = run.iterations["iteration"], run.timeline
    iteration, worker = timeline["iteration"], timeline["worker"]
    more_chunks = iteration[timeline["chunk"] >= run.chunks].max(initial=-1)
    # a resumed run drops the entries of workers that it does not have, and with them copies that were used
    used = np.sort(iteration[timeline["outcome"] == Outcome.USED])
    copies = np.searchsorted(used, numbers, side="right") - np.searchsorted(used, numbers)
    lack_copies = copies < run.iterations["recovered"] * run.config.coding.parts
    # workers that it did not have before begin later than the others; so may those that were lost and came back
    first = np.full(run.workers + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, worker, iteration)
    first[[0, *(event.worker for event in run.events_of_workers)]] = 0
    joined = first[first < np.iinfo(np.int64).max].max()
    earlier: np.ndarray = (numbers <= more_chunks) | lack_copies | (numbers < joined)
    return earlier


def _evaluates(run: RecordedRun) -> np.ndarray:
    """In which iterations held-out rows were evaluated, (iterations,) bool."""
    found = np.zeros(len(run.iterations["iteration"]), bool)
    for name in HELD_OUT:
        if name in run.iterations:
            found |= np.isfinite(run.iterations[name])
    return found


def _gaps(done: Columns, evaluates: np.ndarray, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """The seconds between two passes of a worker, and what each worker takes to evaluate rows with a chunk, (workers,).

    done: the passes; their `worker` is iteration * workers + worker - 1
    evaluates: (iterations,) bool. There, a worker evaluates a part of the held-out rows before each pass.
    """
    iteration, worker = np.divmod(done["worker"], workers)
    is_first = np.diff(done["worker"], prepend=-1) != 0
    gaps = (done["start"] - np.where(is_first, 0.0, np.roll(done["end"], 1))).clip(min=0.0).round(6)
    evaluating = evaluates[iteration]
    seconds = np.zeros(workers)
    if evaluating.any():  # the median, since a worker may rest before some of its passes
        seconds[:] = np.median(gaps[evaluating])
        for one in np.unique(worker[evaluating]):
            seconds[one] = np.median(gaps[evaluating & (worker == one)])
    return gaps[~is_first & ~evaluating], seconds


def _paces(
    where: tuple[np.ndarray, np.ndarray], seconds: np.ndarray, work: np.ndarray, cut: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds per chunk, nan if a worker finished none; and lower bounds of them, or 0. Both (iterations, workers)."""
    total, done, least = np.zeros((3, *shape))
    finished, broken_off = tuple(at[~cut] for at in where), tuple(at[cut] for at in where)
    np.add.at(total, finished, seconds[~cut])
    np.add.at(done, finished, work[~cut])
    np.maximum.at(least, broken_off, (seconds / work)[cut])
    paces = np.divide(total, done, out=np.full(shape, np.nan), where=done > 0)
    slower = least > paces  # the chunk that it broke off would have taken at least so long
    paces[slower] = (total + least)[slower] / (done + 1)[slower]
    return paces, least


def _filled(paces: np.ndarray, least: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Seconds per chunk without nan, by the rules in the module's docstring. Values of absent workers are not used."""
    filled, when = paces.copy(), np.arange(len(paces))
    for j, (seen, at_least) in enumerate(zip(np.isfinite(paces).T, least.T, strict=True)):
        if seen.any():
            between = np.interp(when, when[seen], paces[seen, j])
            filled[:, j] = np.where(seen, between, np.maximum(between, at_least))
        elif at_least.any():
            filled[:, j] = at_least.max()
    never = np.isnan(filled).all(axis=0)
    filled[:, never] = np.nanmax(np.where(here, filled, np.nan))
    return filled.clip(min=SHORTEST)


def _pass_cost(done: Columns, work: np.ndarray) -> float:
    """The cost of a pass besides its `work`, from the largest and the smallest pass of a worker in an iteration."""
    seconds, place = done["end"] - done["start"], done["worker"]
    by_work = np.lexsort((work, place))
    changes = np.diff(place[by_work], prepend=-1, append=-1) != 0
    small, large = by_work[changes[:-1]], by_work[changes[1:]]
    told = (work[large] >= 2 * work[small]) & (seconds[large] > seconds[small])
    small, large = small[told], large[told]
    costs = (work[large] * seconds[small] - work[small] * seconds[large]) / (seconds[large] - seconds[small])
    return float(np.median(costs).clip(0.0, MOST_FIXED)) if len(costs) else 0.0
