"""What `dynamic` learns from reports."""

from collections.abc import Collection
from statistics import fmean

from psgc.schedules.progress import ChunkView, Took, WorkerView

TRUSTED = 0.08  # surprise up to which the paces of one iteration are used in the next
PIECES = ((TRUSTED / 2, 0.95), (TRUSTED, 0.5))  # the surprise up to which so large a fraction is done in one pass
IN_JUMPS, CHEAP = 0.5, 0.15  # the fraction beyond that; none where a pass costs fewer chunks besides those in it
LEARNING_RATE = 0.25  # weight of a worker's newest chunk in its pace
MOST_FIXED = 10.0  # chunks: what a pass may cost besides those that are in it
RISE, FALL = 0.25, 0.02  # weight of a chunk in the spread, when it took longer and when not
LAG_RATE = 0.25  # weight of the newest report in the lag
LAG_STEP = 1e-4  # seconds; a report counts as at most this late, or as twice the lag


class Learning:
    """What lasts from one iteration to the next. The paces themselves are with the workers.

    lag: seconds from the end of a chunk until the server handles its report, smoothed.
    fixed: what a pass costs besides the chunks that are in it, in average chunks; 0 until passes have differed.
    spread: how many times as long as expected the longest chunks take, of workers that are no slower than before.
    """

    def __init__(self) -> None:
        self.lag = 0.0
        self.fixed = 0.0
        self._knows_fixed = False
        self.spread = 1.0
        self._surprise: float | None = None  # a weighted mean

    def trusts_paces(self, workers: Collection[WorkerView], seconds: float) -> bool:
        """Whether the paces of the iteration that is over are a guide for the next; seconds: until its last report."""
        changes: list[float] = []
        for worker in workers:
            before = None if worker.before is None else worker.before.pace(self.fixed)
            if worker.reports:  # the mean: single chunks of a worker that shares its processor differ much
                worker.before = worker.took
            elif before is not None and before < seconds:  # it was expected to report
                worker.before = Took(seconds, 1.0)
            if before is not None and worker.before is not None:  # less than the lag is no difference
                mean = worker.before.pace(self.fixed)
                changes.append(max(0.0, abs(mean - before) - self.lag) / max(mean, before, 1e-300))
        if changes:
            surprise = fmean(changes) if self._surprise is None else self._surprise
            for change in changes:
                surprise += (change - surprise) / len(workers)
            self._surprise = surprise
        return self._surprise is None or self._surprise <= TRUSTED

    def fraction(self) -> float:
        """How much of what is left a worker is to do in one pass: the more, the less paces change. At first nothing."""
        if self._surprise is None:
            return 0.0
        in_jumps = 0.0 if self._knows_fixed and self.fixed < CHEAP else IN_JUMPS
        return next((part for limit, part in PIECES if self._surprise <= limit), in_jumps)

    def learn(self, worker: WorkerView, piece: Collection[ChunkView], seconds: float, late: float) -> float:
        """A report of these chunks, done in so many seconds and heard so late. Returns the new pace of `worker`."""
        pace = seconds / worker.cost_of(piece)
        self._learn_fixed(worker.took, len(piece), seconds)
        if worker.reports and worker.pace:
            times = min(pace / worker.pace, 2 * self.spread)  # once is no rule
            self.spread += (RISE if times > self.spread else FALL) * (max(1.0, times) - self.spread)
        worker.took = worker.took.and_then(seconds, sum(chunk.cost for chunk in piece))
        old = pace if worker.pace is None else worker.pace
        worker.pace = old + LEARNING_RATE * (pace - old)
        # a single worker whose reports take long says nothing about the server
        self.lag += LAG_RATE * (min(late, max(2 * self.lag, LAG_STEP)) - self.lag)
        return worker.pace

    def _learn_fixed(self, before: Took, chunks: int, seconds: float) -> None:
        """A pass of so many chunks took so long, after larger ones in the same iteration."""
        if not before.passes or before.chunks < 2 * chunks * before.passes:
            return
        many, took = before.chunks / before.passes, before.seconds / before.passes
        if took > seconds:
            fixed = min(max((many * seconds - chunks * took) / (took - seconds), 0.0), MOST_FIXED)
            self.fixed += (LEARNING_RATE if self._knows_fixed else 1.0) * (fixed - self.fixed)
            self._knows_fixed = True
