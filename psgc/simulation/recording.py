"""How fast the workers of a recorded run were: seconds per chunk of every worker in every iteration.

What a worker was not seen to do has to be assumed. Where it finished nothing in an iteration, its pace is that of its
neighbours in time (between two of them, in proportion), and it is at least as slow as what it broke off. Of a worker
that never finished anything only the latter is known; of one that was never seen, nothing: it is taken to be as slow
as the slowest.

An iteration counts when it can be compared with a simulated one: not the first (ranks are still being set up), none in
which a worker was lost or came back, and not the one after that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from psgc.errors import UserError
from psgc.reporting.run_directory import RecordedRun
from psgc.run_rows import Outcome, WorkerEvent

AT_THE_END = 0.95  # of an iteration: what was abandoned later was broken off by its end, and not done
SHORTEST = 1e-9  # seconds per chunk


@dataclass(frozen=True)
class Recording:
    """Iterations in the order in which they were done, those without any chunk in the timeline left out.

    seconds: (iterations, workers), per average chunk. took: (iterations,) seconds, recorded. counts: (iterations,)
    bool, see above. exact: (iterations,) bool, whether all chunks were recovered. away: for each iteration the ranks
    that were lost. pause: seconds between two chunks of a worker.
    spent, used: (iterations,) seconds of computing, and of these for copies in the gradient. assumed: share of
    `seconds` that was not seen. never_finished: ranks.
    """

    seconds: np.ndarray
    took: np.ndarray
    counts: np.ndarray
    exact: np.ndarray
    away: list[frozenset[int]]
    pause: float
    spent: np.ndarray
    used: np.ndarray
    assumed: float
    never_finished: list[int]


def read_recording(run: RecordedRun, costs: Sequence[float] | None = None, breaks_off: bool = True) -> Recording:
    """What the record of a run says.

    costs: of each chunk relative to an average one. breaks_off: whether the end of an iteration ended what was in work
    (emulated times), else every recorded time is that of a whole chunk.

    Raises UserError when there is no chunk in it of an iteration that was finished.
    """
    if run.timeline is None:
        raise UserError(f"{run.path}: the run was killed before its timeline was written; nothing to replay")
    worker, chunk, iteration, outcome = (run.timeline[name] for name in ("worker", "chunk", "iteration", "outcome"))
    start, seconds = run.timeline["start"], run.timeline["seconds"]
    known = run.iterations["iteration"]
    other = iteration[chunk >= run.chunks]  # of an earlier part of the run, with other chunks
    seen = np.isin(known, iteration) & (known > (other.max() if other.size else -1))
    if not seen.any():
        raise UserError(f"{run.path}: its timeline has no chunk of an iteration that was finished; nothing to replay")
    known, workers = known[seen], run.workers
    mine = np.isin(iteration, known)
    worker, chunk, start, seconds, outcome = (of[mine] for of in (worker, chunk, start, seconds, outcome))
    row = np.searchsorted(known, iteration[mine])
    took = run.iterations["seconds"][seen]

    shape = (len(known), workers)
    place = row * workers + worker - 1
    cost = np.ones(len(chunk)) if costs is None else np.asarray(costs)[chunk]
    abandoned = outcome == Outcome.ABANDONED
    broken_off = abandoned & breaks_off & (start + seconds > AT_THE_END * took[row])
    paces = _paces(place, seconds, cost, broken_off, shape)
    pauses = _pauses(place, start, seconds)
    away = _away(known, run.events)
    counts = _whole(known, run.events)
    if len(known) > 1:
        counts[0] = False
    here = ~np.array([[rank in gone for rank in range(1, workers + 1)] for gone in away])
    finished = np.isfinite(paces.seen)
    return Recording(
        seconds=_filled(paces, here),
        took=took,
        counts=counts,
        exact=run.iterations["recovered"][seen] == run.chunks,
        away=away,
        pause=float(np.median(pauses)) if len(pauses) else 0.0,
        spent=np.bincount(row, seconds, len(known)),
        used=np.bincount(row, seconds * (outcome == Outcome.USED), len(known)),
        assumed=float((here & ~finished).sum() / max(1, here.sum())),
        never_finished=[rank for rank in range(1, workers + 1) if not finished[:, rank - 1].any()],
    )


@dataclass(frozen=True)
class _Paces:
    """seen: (iterations, workers), nan where a worker finished nothing; at_least: what it is known to exceed, or 0."""

    seen: np.ndarray
    at_least: np.ndarray


def _paces(
    place: np.ndarray, seconds: np.ndarray, cost: np.ndarray, broken_off: np.ndarray, shape: tuple[int, int]
) -> _Paces:
    size, done = shape[0] * shape[1], ~broken_off
    total = np.bincount(place[done], seconds[done], size)
    work = np.bincount(place[done], cost[done], size)
    at_least = np.zeros(size)
    np.maximum.at(at_least, place[broken_off], seconds[broken_off] / cost[broken_off])
    seen = np.divide(total, work, out=np.full(size, np.nan), where=work > 0)
    slower = at_least > seen  # one chunk more, which took at least so long
    seen[slower] = (total + at_least)[slower] / (work + 1)[slower]
    return _Paces(seen.reshape(shape), at_least.reshape(shape))


def _filled(paces: _Paces, here: np.ndarray) -> np.ndarray:
    """Seconds per chunk everywhere, by the rules at the top; where a worker is away it does not matter."""
    filled = paces.seen.copy()
    when = np.arange(len(filled))
    unseen = []
    for j in range(filled.shape[1]):
        there = np.isfinite(paces.seen[:, j])
        if there.any():
            filled[:, j] = np.interp(when, when[there], paces.seen[there, j])
            missing = ~there
            filled[missing, j] = np.maximum(filled[missing, j], paces.at_least[missing, j])
        elif paces.at_least[:, j].any():
            filled[:, j] = paces.at_least[:, j].max()
        else:
            unseen.append(j)
    if unseen:
        filled[:, unseen] = np.nanmax(np.where(here, filled, np.nan))
    return filled.clip(min=SHORTEST)


def _pauses(place: np.ndarray, start: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Between the end of a chunk and the beginning of the worker's next in the iteration."""
    order = np.lexsort((start, place))
    same = np.diff(place[order]) == 0
    between = start[order][1:] - (start + seconds)[order][:-1]
    pauses: np.ndarray = between[same].clip(min=0.0).round(6)
    return pauses


def _away(known: np.ndarray, events: Iterable[WorkerEvent]) -> list[frozenset[int]]:
    ordered = sorted(events, key=lambda event: event.iteration)  # stable: in the order of the file
    away: list[frozenset[int]] = []
    gone: set[int] = set()
    place = 0
    for iteration in known.tolist():
        while place < len(ordered):
            event = ordered[place]
            back, when = event.event == "returned", event.iteration
            if when > iteration or (when == iteration and not back):  # lost in this one: away from the next on
                break
            (gone.discard if back else gone.add)(event.worker)
            place += 1
        away.append(frozenset(gone))
    return away


def _whole(known: np.ndarray, events: Iterable[WorkerEvent]) -> np.ndarray:
    disturbed = {event.iteration + later for event in events for later in (0, 1)}
    return ~np.isin(known, list(disturbed))
