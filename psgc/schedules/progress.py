"""What `dynamic` knows of chunks and workers in an iteration, and when it expects a chunk to be done.

All times are seconds since the iteration began; for `lag` and `spread` see `psgc.schedules.learning`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from statistics import median
from typing import NamedTuple

from psgc.iteration import piece_length

LEAD = 0.1  # share of a chunk's time before its predicted end at which the next one is chosen once more
SOON = 0.5  # share of a chunk's time: two workers that would end a chunk within this of each other would both begin it
STARTS = 3  # iterations whose median says when a worker begins: one late start is no rule
HELD_UP = 2.0  # times as much longer as it is late that an overdue pass over several chunks is expected to take
UNKNOWN = 5.0  # a worker without a report, after e seconds: expected to need this times e more


@dataclass(slots=True, eq=False, repr=False)
class ChunkView:
    """A chunk in one iteration."""

    number: int
    cost: float  # relative to an average chunk
    wanted: int = 0  # copies that it needs
    copies: int = 0  # those that count
    committed: bool = False
    takers: tuple[WorkerView, ...] = ()  # workers that were told it or are in it
    doers: tuple[WorkerView, ...] = ()  # workers that have done it
    holders: tuple[WorkerView, ...] = ()  # workers that can do it

    def begin(self, wanted: int) -> None:
        """A new iteration, in which the chunk needs so many copies."""
        self.wanted, self.copies, self.committed = wanted, 0, False
        self.takers = self.doers = ()

    def expected(self, now: float, lag: float) -> float:
        """When its takers will have recovered it; infinite when they are too few."""
        missing = self.wanted - self.copies
        if missing > len(self.takers):
            return inf
        ends = [taker.free(now, lag) if self in taker.piece else taker.through(now, lag) for taker in self.takers]
        return sorted(ends)[missing - 1]

    def length(self, now: float, lag: float, spread: float) -> float:
        """The cost of a copy. What is late is taken for a long chunk, up to `spread` times the usual length."""
        late = [w.elapsed(now, lag) / w.pace for w in self.takers if self in w.piece and w.pace]
        return self.cost * max(1.0, min(spread, *late)) if late else self.cost

    def with_others(self) -> list[ChunkView]:
        """The chunk, and the chunks that must be copied with it: of a pass all chunks count, or none."""
        piece = next((taker.piece for taker in self.takers if self in taker.piece), ())
        return [self, *(it for it in piece if it is not self and not it.committed and len(it.takers) == 1)]

    def share(self, now: float, lag: float, spread: float) -> float:
        """The cost of a copy of `with_others`, for each of the workers that would share it."""
        chunks = self.with_others()
        lengths = [chunk.length(now, lag, spread) for chunk in chunks]
        return max(*lengths, sum(lengths) / num_idle(chunks))


def num_idle(chunks: Collection[ChunkView]) -> int:
    """The number of idle workers that can do some of these chunks, at least 1."""
    return max(1, len({worker for chunk in chunks for worker in chunk.holders if worker.is_idle}))


class Took(NamedTuple):
    """What a worker has done in an iteration: passes over chunks of this cost in so many seconds."""

    seconds: float = 0.0
    chunks: float = 0.0
    passes: int = 0

    def and_then(self, seconds: float, chunks: float) -> Took:
        return Took(self.seconds + seconds, self.chunks + chunks, self.passes + 1)

    def pace(self, fixed: float) -> float:
        """Seconds per average chunk, when a pass costs as much as `fixed` chunks besides."""
        return self.seconds / (self.chunks + fixed * self.passes)


@dataclass(slots=True, eq=False, repr=False)
class WorkerView:
    """A worker in one iteration. Paces are in seconds per average chunk."""

    rank: int
    own: list[ChunkView]  # its own share
    backups: list[ChunkView]  # the other chunks that it holds
    held: list[ChunkView] = field(init=False)  # all chunks that it holds, in order of preference
    left: list[ChunkView] = field(default_factory=list)  # those of `held` that may have to be done
    told: dict[ChunkView, None] = field(default_factory=dict)  # what it does next, in order
    ahead: float = 0.0  # the cost of `told`
    chosen: bool = False  # whether it was told one chunk that may still be changed
    running: ChunkView | None = None  # the chunk that it is in, from `since` until `due`
    since: float = 0.0
    due: float = 0.0
    piece: tuple[ChunkView, ...] = ()  # all chunks that it is in, in one pass
    cost: float = 0.0  # of that pass
    is_delayed: bool = False  # it is still in a pass of an earlier iteration, and has begun nothing that it was told
    fraction: float = 0.0  # the share of `told` that it does in one pass
    fixed: float = 0.0  # the cost of a pass besides that of its chunks
    pace: float | None = None  # the pace that is expected of it now, None before the first report
    expected: float | None = None  # the pace that was expected when the iteration began
    before_this: float | None = None  # the mean pace of the iterations before
    is_guessed: bool = False  # whether `pace` is only a lower bound, from a pass that was not finished
    before: Took | None = None  # what it took in the iteration before, or a lower bound
    took: Took = field(default_factory=Took)  # what it took in this iteration
    reports: int = 0  # how many passes it has finished or left
    spared: int = 0  # iterations in a row in which it had nothing to do
    starts: tuple[float, ...] = ()  # in the last iterations, seconds until it began its first pass
    start: float = 0.0  # the same, as expected in this iteration
    alarm: float = inf  # when to choose for it again

    def __post_init__(self) -> None:
        self.held = self.own + self.backups

    def begin(self, pace: float | None, fraction: float = 0.0, fixed: float = 0.0) -> None:
        """A new iteration: the worker is told its own share."""
        self.pace, self.fraction, self.fixed = pace, fraction, fixed
        self.expected, self.left = pace, self.held
        self.told, self.ahead, self.chosen = {}, 0.0, False
        self.running, self.piece, self.is_delayed = None, (), False
        self.since = self.due = self.cost = 0.0
        self.reports, self.took, self.alarm = 0, Took(), inf
        self.start = median(self.starts) if len(self.starts) == STARTS else 0.0
        for chunk in self.own:
            self.tell(chunk)

    def inherit(self, other: WorkerView) -> None:
        """Know what `other`, the same worker in another schedule, has shown in the iteration that is over."""
        of_passes = ("before", "took", "reports", "expected", "fixed", "running", "piece", "since", "cost", "starts")
        for name in (*of_passes, "spared", "is_delayed", "is_guessed"):
            setattr(self, name, getattr(other, name))

    # what it does

    def tell(self, chunk: ChunkView) -> None:
        """The worker is to do `chunk` after all that it was told."""
        self.told[chunk] = None
        self.ahead += chunk.cost
        chunk.takers += (self,)

    def copy(self, chunk: ChunkView) -> None:
        """The worker is to do `chunk`, and those of the chunks that must be copied with it that it can do."""
        choices = self.choices()
        for one in chunk.with_others():
            if one in choices:
                self.tell(one)

    def start_next(self, now: float) -> None:
        """The worker is in the next chunks that it was told, or idle."""
        for chunk in self.piece:
            self.forget(chunk)
        self.piece = tuple(islice(self.told, piece_length(len(self.told), self.fraction)))
        self.running = self.piece[0] if self.piece else None
        self.alarm = inf
        for chunk in self.piece:
            self._strike(chunk)
        self.began(now)

    def wait(self) -> None:
        """It has begun nothing: what it was believed to be in comes next, after the pass that it is in."""
        self.is_delayed = True
        self.reported(())
        self.running, self.alarm = None, inf

    def began(self, now: float) -> None:
        """The worker is in its chunk, or idle, since `now`; it begins at `start` if that is later."""
        self.since = self.due = max(now, self.start)
        self.cost = self.cost_of(self.piece)
        if self.pace is not None:
            self.due += self.pace * self.cost

    def cost_of(self, piece: Collection[ChunkView]) -> float:
        return self.fixed + sum(chunk.cost for chunk in piece) if piece else 0.0

    def reported(self, piece: Collection[ChunkView]) -> None:
        """Its pass had only these chunks. The other chunks that it was believed to be in come next."""
        rest = [chunk for chunk in self.piece if chunk not in piece]
        self.piece = tuple(chunk for chunk in self.piece if chunk in piece)
        for chunk in rest:
            if chunk.committed:
                self.forget(chunk)
        rest = [chunk for chunk in rest if not chunk.committed]
        self.told = dict.fromkeys([*rest, *self.told])
        self.ahead += sum(chunk.cost for chunk in rest)

    def forget(self, chunk: ChunkView) -> None:
        if chunk in self.told:
            self._strike(chunk)
        chunk.takers = tuple(taker for taker in chunk.takers if taker is not self)

    def forget_all(self) -> None:
        for chunk in (*self.told, *self.piece):
            self.forget(chunk)
        self.running, self.piece, self.alarm = None, (), inf

    def _strike(self, chunk: ChunkView) -> None:
        del self.told[chunk]
        self.ahead -= chunk.cost
        self.chosen = False

    # what is expected of it

    def learn_start(self, begun: float) -> None:
        """It began at `begun` the pass that it has just reported. Later passes say nothing."""
        if not (self.reports or self.is_delayed) and self.since == self.start:
            self.starts = (*self.starts, max(0.0, begun))[-STARTS:]

    def elapsed(self, now: float, lag: float) -> float:
        """Seconds per average chunk that it has spent on its pass so far: its pace cannot be less."""
        return 0.0 if self.running is None else max(0.0, now - self.since - lag) / self.cost

    def least_pace(self, now: float, lag: float) -> float:
        """What its pace is at least, from its reports and the pass that it is in; 0 when these say nothing."""
        return max(self.took.pace(self.fixed) if self.took.passes else 0.0, self.elapsed(now, lag))

    @property
    def is_idle(self) -> bool:
        """Whether it is in no pass, and was told nothing."""
        return self.running is None and not self.told and not self.is_delayed

    @property
    def is_unwanted(self) -> bool:
        """Whether the pass that it is in cannot count any more."""
        return any(chunk.committed for chunk in self.piece)

    @property
    def delay_factor(self) -> float:
        """A late chunk may be a long one, of which a copy takes as long. A late pass was held up: copies begin sooner.

        An idle worker that copies for nothing loses little.
        """
        return HELD_UP if len(self.piece) > 1 else 1.0

    def free(self, now: float, lag: float) -> float:
        """When it will have finished the pass that it is in. A late one takes `delay_factor` times as much longer."""
        if self.running is None and not self.is_delayed:
            return max(now, self.start)
        if self.pace is None or self.is_delayed:
            return now + UNKNOWN * max(0.0, now - self.since - lag)
        return self.due if self.due > now else now + self.delay_factor * max(0.0, now - self.due - lag)

    def through(self, now: float, lag: float) -> float:
        """When it will have finished all that it was told."""
        pace = (1 + UNKNOWN) * self.elapsed(now, lag) if self.pace is None else self.pace
        return self.free(now, lag) + pace * (self.ahead + self.fixed * bool(self.told))

    def choices(self) -> list[ChunkView]:
        """The chunks that it could do besides what it was told."""
        self.left = [chunk for chunk in self.left if not chunk.committed]
        return [chunk for chunk in self.left if self not in chunk.takers and self not in chunk.doers]

    def best(self, now: float, lag: float, spread: float) -> ChunkView | None:
        """The chunk that is predicted to be recovered last without it, of those that it would speed up.

        Chunks that no worker begins soon come first: a second copy helps only when the worker of the first is slow.
        """
        pace, start = self.pace, self.free(now, lag) + 2 * lag
        is_untried = pace is None and (self.running is None or self.is_unwanted)  # then any chunk will do
        best, begun, latest = None, True, -inf
        for chunk in self.choices():
            if chunk.copies >= chunk.wanted:  # its copies are being compared
                continue
            end = chunk.expected(now, lag)
            if end <= latest and not begun:
                continue
            gain = end - start - (0.0 if pace is None else pace * (self.fixed + chunk.cost))
            if gain >= 0 and pace is not None:  # `share` takes long to compute, and is at least the cost
                gain = end - start - pace * (self.fixed + chunk.share(now, lag, spread))
            if gain < 0 and not is_untried:
                continue
            running = any(chunk in taker.piece for taker in chunk.takers)
            if running and end < inf and pace is None and not is_untried:
                continue  # it is not needed, and nothing says yet which of them is sooner
            if not self._may_copy(chunk, now, lag):
                continue
            soon = running or (pace is not None and gain < SOON * pace * chunk.cost)
            if soon < begun or (soon == begun and end > latest):
                best, begun, latest = chunk, soon, end
        return best

    def _may_copy(self, chunk: ChunkView, now: float, lag: float) -> bool:
        """Whether this worker can do all that must be copied together, or the pass over these chunks is late."""
        can = all(one in self.left for one in chunk.with_others())
        return can or all(now > taker.due + lag for taker in chunk.takers if chunk in taker.piece)

    def next_alarm(self, now: float, lag: float, spread: float) -> float:
        """When to choose for it again; infinite when only a report can change the choice."""
        if self.pace is None or self.pace == inf:
            return inf
        if self.running is not None and not self.is_unwanted:
            when = self.free(now, lag) - LEAD * self.pace
        else:  # when another worker is so late that this one could be sooner
            late = [
                taker.since
                + lag
                + (
                    gain / UNKNOWN
                    if taker.pace is None or taker.is_delayed
                    else spread * gain / taker.delay_factor + taker.pace * many
                )
                for taker in {taker for chunk in self.choices() for taker in chunk.takers}
                if taker.running is not None or taker.is_delayed
                for many in [self.fixed + max(1, len(taker.piece))]
                for share in [self.fixed + max(1, len(taker.piece) / num_idle(taker.piece))]
                for gain in [self.pace * share + 2 * lag]
            ]
            when = max(min(late, default=inf), now + LEAD * self.pace)
        return when if when > now else inf
