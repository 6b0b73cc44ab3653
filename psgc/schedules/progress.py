"""What `dynamic` knows of chunks and workers, what it learns from reports, and when it expects a chunk to be done.

All times are seconds since the iteration began; for `lag` and `spread` see `Learning`.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf

LEAD = 0.1  # share of a chunk's time before its predicted end at which the next one is chosen once more
SOON = 0.5  # share of a chunk's time: two workers that would end a chunk within this of each other would both begin it
UNKNOWN = 5.0  # a worker without a report, after e seconds: expected to need this times e more
TRUSTED = 0.08  # surprise up to which the paces of one iteration are used in the next
LEARNING_RATE = 0.25  # weight of a worker's newest chunk in its pace
RISE, FALL = 0.25, 0.02  # weight of a chunk in the spread, when it took longer and when not
LAG_RATE = 0.25  # weight of the newest report in the lag
LAG_STEP = 1e-4  # seconds; a report counts as at most this late, or as twice the lag


class ChunkView:
    """A chunk in one iteration.

    cost: relative to an average chunk; wanted: copies that it needs; copies: those that count; takers: workers that
    were told it or are in it; doers: workers that have done it.
    """

    __slots__ = ("committed", "copies", "cost", "doers", "number", "takers", "wanted")

    def __init__(self, number: int, cost: float) -> None:
        self.number = number
        self.cost = cost

    def begin(self, wanted: int) -> None:
        """A new iteration, in which the chunk needs so many copies."""
        self.wanted, self.copies, self.committed = wanted, 0, False
        self.takers: tuple[WorkerView, ...] = ()
        self.doers: tuple[WorkerView, ...] = ()

    def expected(self, now: float, lag: float) -> float:
        """When its takers will have recovered it; infinite when they are too few."""
        missing = self.wanted - self.copies
        if missing > len(self.takers):
            return inf
        ends = [taker.free(now, lag) if taker.running is self else taker.through(now, lag) for taker in self.takers]
        return sorted(ends)[missing - 1]

    def length(self, now: float, lag: float, spread: float) -> float:
        """The cost of a copy. What is late is taken for a long chunk, up to `spread` times the usual length."""
        late = [w.elapsed(now, lag) / w.pace for w in self.takers if w.running is self and w.pace]
        return self.cost * max(1.0, min(spread, *late)) if late else self.cost


class WorkerView:
    """A worker in one iteration.

    own: its own share; held: all chunks that it holds, in order of preference; left: those that may have to be done;
    mean: its pace in the iteration before, in seconds per average chunk, or the least that it can have been; pace: the
    expected one, None before the first report; told: what it does next, in order; ahead: the cost of that; running: the
    chunk that it is in, from `since` until `due`; chosen: whether it was told one chunk that may still be changed;
    reports: how many there were; sum: of the paces that they told; alarm: when to choose for it again.
    """

    __slots__ = (
        "ahead", "alarm", "chosen", "due", "held", "left", "mean", "own", "pace", "rank", "reports", "running",
        "since", "sum", "told",
    )  # fmt: skip

    def __init__(self, rank: int, own: list[ChunkView], backups: list[ChunkView]) -> None:
        self.rank = rank
        self.own = own
        self.held = own + backups
        self.mean: float | None = None
        self.reports, self.sum = 0, 0.0

    def begin(self, pace: float | None) -> None:
        """A new iteration: the worker is told its own share."""
        self.pace = pace
        self.left = self.held
        self.told: dict[ChunkView, None] = {}
        self.ahead = 0.0
        self.running: ChunkView | None = None
        self.since = self.due = 0.0
        self.chosen = False
        self.reports, self.sum = 0, 0.0
        self.alarm = inf
        for chunk in self.own:
            self.tell(chunk)

    # what it does

    def tell(self, chunk: ChunkView) -> None:
        """The worker is to do `chunk` after all that it was told."""
        self.told[chunk] = None
        self.ahead += chunk.cost
        chunk.takers += (self,)

    def start_next(self, now: float) -> None:
        """The worker is in the next chunk that it was told, or rests."""
        if self.running is not None:
            self.forget(self.running)
        self.running = next(iter(self.told), None)
        self.alarm = inf
        if self.running is not None:
            self._strike(self.running)
        self.began(now)

    def began(self, now: float) -> None:
        """The worker has begun the chunk that it is in, or rests, since `now`."""
        self.since = self.due = now
        if self.running is not None and self.pace is not None:
            self.due += self.pace * self.running.cost

    def forget(self, chunk: ChunkView) -> None:
        """The worker does not do `chunk`, or has done it."""
        if chunk in self.told:
            self._strike(chunk)
        chunk.takers = tuple(taker for taker in chunk.takers if taker is not self)

    def forget_all(self) -> None:
        """The worker is in no chunk and was told none."""
        for chunk in tuple(self.told):
            self.forget(chunk)
        if self.running is not None:
            self.forget(self.running)
        self.running, self.alarm = None, inf

    def _strike(self, chunk: ChunkView) -> None:
        del self.told[chunk]
        self.ahead -= chunk.cost
        self.chosen = False

    # what is expected of it

    def elapsed(self, now: float, lag: float) -> float:
        """Seconds per average chunk that it has spent on its chunk so far: its pace cannot be less."""
        return 0.0 if self.running is None else max(0.0, now - self.since - lag) / self.running.cost

    def free(self, now: float, lag: float) -> float:
        """When it will have finished the chunk that it is in. A late chunk is expected to take as much longer."""
        if self.running is None:
            return now
        if self.pace is None:
            return now + UNKNOWN * max(0.0, now - self.since - lag)
        return self.due if self.due > now else now + max(0.0, now - self.due - lag)

    def through(self, now: float, lag: float) -> float:
        """When it will have done all that it was told."""
        pace = (1 + UNKNOWN) * self.elapsed(now, lag) if self.pace is None else self.pace
        return self.free(now, lag) + pace * self.ahead

    def choices(self) -> list[ChunkView]:
        """The chunks that it could do besides what it was told."""
        self.left = [chunk for chunk in self.left if not chunk.committed]
        return [chunk for chunk in self.left if self not in chunk.takers and self not in chunk.doers]

    def best(self, now: float, lag: float, spread: float) -> ChunkView | None:
        """The chunk that is predicted to be recovered last without it, of those that it would speed up.

        Those that nobody begins soon come first: a second copy helps only when it is the worker that is slow.
        """
        pace, start = self.pace, self.free(now, lag) + 2 * lag
        is_untried = pace is None and (self.running is None or self.running.committed)  # then any chunk will do
        best, begun, latest = None, True, -inf
        for chunk in self.choices():
            if chunk.copies >= chunk.wanted:  # they are being compared
                continue
            end = chunk.expected(now, lag)
            gain = end - start - (0.0 if pace is None else pace * chunk.length(now, lag, spread))
            if (end <= latest and not begun) or (gain < 0 and not is_untried):
                continue
            running = any(taker.running is chunk for taker in chunk.takers)
            if running and end < inf and pace is None and not is_untried:
                continue  # it is not needed, and nothing says yet which of them is sooner
            soon = running or (pace is not None and gain < SOON * pace * chunk.cost)
            if soon < begun or (soon == begun and end > latest):
                best, begun, latest = chunk, soon, end
        return best

    def next_alarm(self, now: float, lag: float, spread: float) -> float:
        """When to choose for it again; infinite when only a report can change the choice."""
        if self.pace is None or self.pace == inf:
            return inf
        if self.running is not None and not self.running.committed:
            when = self.free(now, lag) - LEAD * self.pace
        else:  # when another worker is so late that this one could be sooner
            gain = self.pace + 2 * lag
            late = [
                taker.since + lag + (gain / UNKNOWN if taker.pace is None else spread * gain + taker.pace)
                for chunk in self.choices()
                for taker in chunk.takers
                if taker.running is not None
            ]
            when = max(min(late, default=inf), now + LEAD * self.pace)
        return when if when > now else inf


class Learning:
    """What lasts from one iteration to the next. The paces themselves are with the workers.

    lag: seconds from the end of a chunk until the server handles its report, smoothed.
    spread: how many times as long as expected the longest chunks take, of workers that are no slower than before.
    """

    def __init__(self) -> None:
        self.lag = 0.0
        self.spread = 1.0
        self._surprise = 0.0  # how far paces are from those of the iteration before, as a share; a weighted mean

    def trusts_paces(self, workers: Collection[WorkerView], seconds: float) -> bool:
        """Whether the paces of the iteration that is over are a guide for the next; seconds: until its last report."""
        for worker in workers:
            before = worker.mean
            if worker.reports:  # the mean: single chunks of a worker that shares its processor differ much
                worker.mean = worker.sum / worker.reports
            elif before is not None and before < seconds:  # it was expected to report
                worker.mean = seconds
            if before is not None and worker.mean is not None:  # less than the lag is no difference
                change = max(0.0, abs(worker.mean - before) - self.lag) / max(worker.mean, before, 1e-300)
                self._surprise += (change - self._surprise) / len(workers)
        return self._surprise <= TRUSTED

    def learn(self, worker: WorkerView, pace: float, late: float) -> float:
        """A report: `pace` seconds per average chunk, and `late` seconds late. Returns the new pace of `worker`."""
        if worker.reports and worker.pace:
            times = min(pace / worker.pace, 2 * self.spread)  # once is no rule
            self.spread += (RISE if times > self.spread else FALL) * (max(1.0, times) - self.spread)
        worker.sum += pace
        old = pace if worker.pace is None else worker.pace
        worker.pace = old + LEARNING_RATE * (pace - old)
        # a single worker whose reports take long says nothing about the server
        self.lag += LAG_RATE * (min(late, max(2 * self.lag, LAG_STEP)) - self.lag)
        return worker.pace
