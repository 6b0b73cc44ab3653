"""What `dynamic` learns from reports."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from psgc.schedules.progress import ChunkView, Took, WorkerView

TRUSTED = 0.08  # surprise up to which the paces of one iteration are used in the next
DISTINCT = 3.0  # beyond that, how many times the surprise a pace has to differ from the usual one to be used
CHEAP = 0.15  # chunks: a pass costs next to nothing besides those in it
CHEAP_PIECES = ((TRUSTED / 2, 0.95), (TRUSTED, 0.5))  # then: the surprise up to which so large a fraction is one pass
LATE, LEAST = 2.5, 0.5  # weight of the lateness in the fraction that is one pass otherwise, and the least fraction
LATE_RATE, PACE_RATE = 0.3, 0.4  # weight of the newest iteration in the lateness, and in a pace where there are pieces
LEARNING_RATE = 0.25  # weight of a worker's newest chunk in its pace
MOST_FIXED = 10.0  # chunks: what a pass may cost besides those that are in it
FIXED_RATE, FEW = 0.1, 4  # weight of the newest pass in that cost, and how many passes say little about it
RISE, FALL = 0.25, 0.02  # weight of a chunk in the spread, when it took longer and when not
LAG_RATE = 0.25  # weight of the newest report in the lag
LAG_STEP = 1e-4  # seconds; a report counts as at most this late, or as twice the lag


@dataclass
class Learning:
    """What lasts from one iteration to the next. The paces themselves are with the workers."""

    lag: float = 0.0  # seconds from the end of a chunk until the server handles its report, smoothed
    fixed: float = 0.0  # what a pass costs besides its chunks, in average chunks; 0 until passes have differed
    spread: float = 1.0  # the longest chunks take so many times the expected time, on workers no slower than before
    late: float = 0.0  # of the slowest worker of an iteration, as a share of the expected time; a weighted mean
    _fixed_seen: int = 0  # passes from which `fixed` was learnt
    _fixed_sums: tuple[float, float] = (0.0, 0.0)  # weighted means, of which `fixed` is the ratio
    _surprise: float | None = None  # a weighted mean

    def trusts_paces(self, workers: Collection[WorkerView], seconds: float) -> bool:
        """Whether the paces of the last iteration predict those of the next. seconds: until its last report."""
        changes: list[float] = []
        if late := [(w.least_pace(seconds, self.lag) - self.lag) / w.expected - 1.0 for w in workers if w.expected]:
            self.late += LATE_RATE * (max(0.0, *late) - self.late)
        for worker in workers:
            before = None if worker.before is None else worker.before.pace(self.fixed)
            if worker.took.passes:  # the mean: single chunks of a worker that shares its processor differ much
                worker.before = worker.took
            elif before is not None and before < seconds and not worker.is_delayed:  # it was expected to report
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
        """The share of its queue that a worker does in one pass: less when workers are later; 0 for single chunks.

        A worker that is as late as usual ends a pass of this size before the others have done the rest.
        """
        if self._surprise is None:
            return 0.0
        if self._fixed_seen > FEW and self.fixed < CHEAP:
            return next((part for limit, part in CHEAP_PIECES if self._surprise <= limit), 0.0)
        return max(LEAST, 1.0 / (1.0 + LATE * self.late))

    def believed(self, paces: Mapping[int, float]) -> dict[int, float]:
        """The paces to expect when paces change much: the usual one, except of workers that differ from it by more."""
        usual, least = median(paces.values()), 1.0 + DISTINCT * (self._surprise or 0.0)
        return {rank: pace if max(pace, usual) > least * min(pace, usual) else usual for rank, pace in paces.items()}

    def learn(self, worker: WorkerView, piece: Collection[ChunkView], seconds: float, late: float) -> float:
        """Learn from a report of these chunks. Returns the pace of `worker` for the next iteration.

        In this iteration `worker.pace` follows the newest reports.

        seconds: that the chunks took
        late: seconds from their end until the server heard of it
        """
        pace = seconds / worker.cost_of(piece)
        self._learn_fixed(worker.took, len(piece), seconds)
        if worker.reports and worker.pace:
            times = min(pace / worker.pace, 2 * self.spread)  # once is no rule
            self.spread += (RISE if times > self.spread else FALL) * (max(1.0, times) - self.spread)
        worker.took = worker.took.and_then(seconds, sum(chunk.cost for chunk in piece))
        old = pace if worker.pace is None else worker.pace
        worker.pace = old + (1 - (1 - LEARNING_RATE) ** len(piece)) * (pace - old)
        # a single worker whose reports take long says nothing about the server
        self.lag += LAG_RATE * (min(late, max(2 * self.lag, LAG_STEP)) - self.lag)
        if worker.fraction and worker.before_this:
            return worker.before_this + PACE_RATE * (worker.took.pace(self.fixed) - worker.before_this)
        return worker.pace

    def _learn_fixed(self, before: Took, chunks: int, seconds: float) -> None:
        """A pass of so many chunks took so long, after larger ones in the same iteration."""
        if not before.seconds or before.chunks < 2 * chunks * before.passes:
            return
        many, took = before.chunks / before.passes, before.seconds / before.passes
        pace = took / many  # workers of any pace count alike
        sample = (many * seconds - chunks * took) / pace, (took - seconds) / pace
        self._fixed_seen += 1
        rate = max(FIXED_RATE, 1 / self._fixed_seen)
        # single passes differ much, and so would the mean of their ratios
        above, below = (old + rate * (new - old) for old, new in zip(self._fixed_sums, sample, strict=True))
        self._fixed_sums = above, below
        if below > 0:
            self.fixed = min(max(above / below, 0.0), MOST_FIXED)
