"""The schedule `dynamic`: the server decides, report by report, what each worker does next."""

from collections.abc import Iterable, Mapping, Sequence, Set
from copy import copy
from math import inf
from statistics import median
from typing import Any, Self

from psgc.schedules.decisions import LEAST_REST, LONG_REST, Decisions, balance, uneven
from psgc.schedules.progress import LEAD, WorkerView
from psgc.schedules.schedule import Loss, Order, Pass, Queue, Queues, split

RETRY = 16  # iterations without work after which the pace of a worker counts as unknown


class DynamicSchedule(Decisions):
    """Own shares first, evened out as the workers' paces show; then backups of what is predicted to be recovered last.

    1. A worker *pulls*: it takes over chunks that it holds from workers that have more left to do, as long as it would
       finish sooner than they. It does so before the iteration starts, after its first reports, and when it has one
       chunk left.
    2. A worker that was told nothing more *chooses*: of the chunks that it holds it takes the one predicted to be
       recovered last, if it would finish before the chunk is recovered without it.
    3. When no choice gains anything the worker is idle. It chooses again at its alarm, if not before.

    `tick` decides, for all reports that came before it at once. Choices are made ahead, so that no worker waits for an
    answer: when it starts the last chunk that it was told, shortly before the predicted end, and when another worker
    starts or recovers what it was told.

    The predictions (`psgc.schedules.progress`), at time `now`:

    * a worker needs its pace for each chunk: an exponentially weighted mean that lasts from iteration to iteration. A
      chunk that is overdue takes as much longer as it is late, and a pass over several chunks HELD_UP times that;
    * a worker begins its first pass when it did in the last iterations, in the median of STARTS: a slow one makes its
      step late, and hears late that the next iteration has begun;
    * a worker whose pace is unknown, or that is in a pass of the iteration before (`delayed`), still needs UNKNOWN
      times as long as it has taken so far;
    * paces that change much from one iteration to the next count as unknown. But where workers do several chunks in one
      pass, a worker is expected to have its pace of before if that differs from the usual pace by more than paces
      change, else the usual pace;
    * after RETRY iterations without work the pace of a worker counts as unknown: it may be quick again.

    The server hears of a chunk some time after it was done: the *lag*. So a worker is overdue only when it is later
    than the lag, and work changes hands only for a gain of twice the lag. Otherwise a server would take its backlog of
    reports for slow workers, and order copies that make the backlog longer.

    A chunk may be late because it is long: then a copy takes as long. So a late chunk is copied only when it has taken
    longer than long chunks usually do: the *spread*. The chunks of one pass are copied together: a worker that
    cannot do all of them copies none before the pass is late. All idle workers share the copy, and begin when the pass
    is half as late as a worker's share of it takes.
    """

    is_adaptive = True
    joins = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._plans = False  # with costs that it was told and that differ
        self._may_join = False  # in the next iteration

    @classmethod
    def default_queues(cls, ordered: Queues, own: Mapping[int, Set[int]], seed: int) -> tuple[Queues, Queues]:
        return split(ordered, own)

    def know_costs(self, costs: Sequence[float]) -> bool:
        self._plans = uneven(costs)
        for chunk, cost in zip(self.chunks, costs, strict=True):
            chunk.cost = cost
        return self._plans

    def allow_pieces(self, may: bool) -> bool:
        self._may_join = may
        self.fractions = {}  # where workers may not, they begin before `begin`
        return may  # a worker that has begun a large piece gives no chunks of it to others

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        workers, paces = self.workers.values(), self._paces_to_expect()
        before = self._latest
        self._forget_plans()
        for chunk in self.chunks:
            chunk.begin(self._parts)
        for number in checked:
            self.chunks[number].wanted += 1
        for worker in workers:
            rank = worker.rank
            worker.before_this = self.estimates.get(rank)
            worker.begin(paces.get(rank), self.fractions.get(rank, 0.0), self.learning.fixed)
        resting, self.resting = self.resting & self.workers.keys(), frozenset()
        if resting and before:
            self._rest_ends = max(LEAST_REST, LONG_REST * before)
        more = dict.fromkeys([*self._second_shares(checked), *self._shares_of(resting)])
        if self._plans:
            able = [[self.workers[rank] for rank in ranks] for ranks in self._holders]
            if resting:
                able = [[w for w in of if chunk in w.left] for chunk, of in zip(self.chunks, able, strict=True)]
            balance(self.chunks, [*workers], able)
        orders: list[Order] = [] if self._plans else [self._queue(worker) for worker in more]
        fastest_first = sorted(workers, key=lambda w: w.pace or 0.0)
        for worker in fastest_first:
            orders += self._pull(worker, 0.0)
        for worker in fastest_first:
            orders += self._start_next(worker, 0.0)
        self.bare |= dict.fromkeys(worker for worker in fastest_first if not worker.told)
        orders += self._choose_for_the_bare(0.0)
        if self._plans:
            told = {order.worker for order in orders if isinstance(order, Queue)}
            orders += [self._queue(w) for w in workers if w.running is not None and w.rank not in told]
        # a worker that has nothing to do must hear so: it would do its own share
        return orders + [Queue(w.rank, ()) for w in workers if w.running is None and w.own]

    def _paces_to_expect(self) -> Mapping[int, float]:
        """By worker, from the iterations before. Sets `fractions`, how much of its queue each does in one pass."""
        workers, learning = self.workers.values(), self.learning
        for worker in workers:
            has_worked = worker.reports or worker.running is not None or worker.is_delayed
            worker.spared = 0 if has_worked else worker.spared + 1
            if worker.spared >= RETRY:
                worker.spared, worker.before = 0, None
                self.estimates.pop(worker.rank, None)
        for worker in workers:  # of a pass that is not finished it is known how long it takes at least
            if len(worker.piece) > 1 and worker.rank in self.estimates:
                least = worker.least_pace(self._latest, learning.lag) - learning.lag
                worker.is_guessed = worker.is_guessed or least > self.estimates[worker.rank]
                self.estimates[worker.rank] = max(self.estimates[worker.rank], least)
        is_steady = learning.trusts_paces(workers, self._latest)
        # a worker of which nothing is known may be slow: others take its chunks one by one
        fraction = learning.fraction() if self._may_join else 0.0
        self.fractions = dict.fromkeys(self.estimates, fraction) if fraction else {}
        usual = median(self.estimates.values() or [0.0])
        for rank in self.fractions:  # one that was quicker than usual has more to do, and may not be quick again
            pace = self.estimates[rank] + learning.lag  # less than the lag is no difference
            if pace < usual:
                self.fractions[rank] *= pace / usual
        if is_steady:
            return self.estimates
        if self.fractions:  # without paces it could not be seen that a large piece is late
            return learning.believed(self.estimates)
        self.estimates.clear()  # begin as for the first time
        return self.estimates

    def _idle(self) -> dict[WorkerView, None]:
        return dict.fromkeys(worker for worker in self.workers.values() if worker.is_idle)

    def _second_shares(self, checked: Sequence[int]) -> Iterable[WorkerView]:
        """Give the additional copy of each checked chunk to another holder, in equal shares. Returns the workers."""
        more: dict[WorkerView, int] = {}
        for number in checked:
            chunk = self.chunks[number]
            workers = [self.workers[rank] for rank in self._holders[number]]
            if others := [worker for worker in workers if worker not in chunk.takers]:
                worker = min(others, key=lambda w: more.get(w, 0))
                worker.tell(chunk)
                more[worker] = more.get(worker, 0) + 1
        return more

    def _shares_of(self, resting: Set[int]) -> Iterable[WorkerView]:
        """Give chunks of resting workers to other holders, if one is to spare. Returns workers with changed shares."""
        more: dict[WorkerView, None] = {}
        for worker in [self.workers[rank] for rank in sorted(resting)]:
            worker.before = None  # that it reports nothing is no surprise
            for chunk in worker.held:
                others = [self.workers[r] for r in self._holders[chunk.number] if r not in resting]
                if len(others) <= chunk.wanted:  # else one of them may stop
                    continue
                worker.left = [other for other in worker.left if other is not chunk]
                if chunk in worker.told:
                    worker.forget(chunk)
                    more[worker] = None
                    other = min((w for w in others if w not in chunk.takers), key=lambda w: w.ahead, default=None)
                    if other is not None:
                        other.tell(chunk)
                        more[other] = None
        return more

    def delayed(self, worker: int) -> None:
        view = self.workers[worker]
        if not view.reports and not view.is_delayed:
            view.wait()
            self._to_pull |= self._idle()

    def begins_late(self, worker: int, now: float) -> list[Order]:
        view = self.workers[worker]
        if not view.is_delayed:
            return []
        view.is_delayed = False
        if not view.told:
            self.bare[view] = None
            return []
        return self._start_next(view, now)

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        self.chunks[chunk].copies += 1
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        it = self.chunks[chunk]
        it.committed = True
        workers = [worker for worker in it.takers if worker.rank in unreported]
        for worker in workers:  # one that hears so before it has begun the chunk reports nothing
            if it in worker.piece and not worker.told:
                if worker.pace is None:
                    self.bare[worker] = None
                elif worker.alarm == inf:  # its last alarm is over: nothing else would have it choose
                    self._wake_at(worker, worker.due + max(LEAD * worker.pace, self.learning.lag))
        return self._withdraw(it, workers)

    def _learn(self, it: Pass) -> None:
        by, piece = self.workers[it.worker], [self.chunks[number] for number in it.chunks]
        by.learn_start(it.now - it.seconds - self.learning.lag)
        if it.is_done and by.is_guessed:  # it may have stood still for a while, and be as quick as before
            by.is_guessed, by.pace, by.before_this = False, None, None
        # an abandoned pass may have been left before its end: it can only show that the worker is slower
        if it.is_done or by.pace is None or it.seconds > by.pace * by.cost_of(piece):
            self.estimates[it.worker] = self.learning.learn(by, piece, it.seconds, it.late)
        self._latest = it.now

    def ended(self, it: Pass) -> None:
        by = self.workers[it.worker]
        self._learn(it)
        by.reports += 1
        by.running, by.piece = None, ()

    def freed(self, it: Pass) -> list[Order]:
        by, piece, now = self.workers[it.worker], [self.chunks[number] for number in it.chunks], it.now
        self._learn(it)
        by.is_delayed, running = False, by.running
        if running is piece[0]:
            by.reported(piece)
        if it.is_done:
            for one in piece:
                if one not in by.piece:
                    by.forget(one)
                one.doers += (by,)
        orders: list[Order] = []
        if running is None or running is piece[0] or by.is_unwanted:
            orders = self._start_next(by, now)
        else:  # an order crossed its report: it did this chunk first, and has begun the one we thought it was in
            by.began(now)
            holders = [self.workers[rank] for rank in self._holders[running.number]]
            self.bare |= dict.fromkeys(w for w in holders if w.running is None and not w.told)
        by.reports += 1
        if len(by.told) <= 1 or by.reports & (by.reports - 1) == 0:  # often at first, when there is most to learn
            self._to_pull[by] = None
        if not by.told:
            self.bare[by] = None
        return orders

    def again(self, worker: int, chunks: Sequence[int], now: float) -> list[Order]:
        by = self.workers[worker]
        for chunk in (self.chunks[number] for number in chunks):
            if chunk not in by.told and chunk not in by.piece:  # it may have been told so since, and have begun it
                by.tell(chunk)
        if not chunks:
            return []
        by.fraction = 0.0  # it does them one by one, and others may take them
        orders = [] if by.piece else self._start_next(by, now)
        self._to_pull |= self._idle()
        return [*orders, self._queue(by)]

    def lost(self, loss: Loss, now: float) -> list[Order]:
        self._holders = loss.holders
        lost = self.workers.pop(loss.worker)
        self._know_holders()
        self._to_pull.pop(lost, None)
        self.bare.pop(lost, None)
        for worker in (lost, *(self.workers.values() if loss.collected else ())):  # everybody has dropped everything
            worker.forget_all()
        for number in loss.dropped:
            self.chunks[number].copies -= 1
        for rank, number in loss.reassigned:
            worker = self.workers[rank]
            worker.held = [*worker.held, self.chunks[number]]
        self._end_rest()
        in_it: list[WorkerView] = []
        for number, (needed, able) in loss.invalidated.items():
            in_it += self._invalidate(number, self.chunks[number].wanted - needed, able)
        return self._share_out(in_it, now)

    def disputed(self, chunk: int, copies: int, able: Sequence[int], now: float) -> list[Order]:
        self.chunks[chunk].wanted = copies + 1
        return self._share_out(self._invalidate(chunk, copies, able), now)

    def _invalidate(self, number: int, copies: int, able: Sequence[int]) -> list[WorkerView]:
        """Only so many copies of this chunk are left; `able` workers may do it. Returns those that seem to be in it."""
        chunk = self.chunks[number]
        workers = [self.workers[rank] for rank in able]
        for worker in workers:  # one that did not hold the chunk does from now on
            worker.held = worker.held if chunk in worker.held else [*worker.held, chunk]
            worker.left = worker.left if chunk in worker.left else [*worker.left, chunk]
        chunk.committed, chunk.copies = False, copies
        chunk.takers = tuple(w for w in workers if chunk in w.piece or chunk in w.told)
        chunk.doers = tuple(w for w in chunk.doers if w not in workers)
        return [worker for worker in workers if chunk in worker.piece]

    def _share_out(self, in_it: Sequence[WorkerView], now: float) -> list[Order]:
        """in_it: these may have dropped the chunk that they were in, because it was recovered before they began it."""
        self.bare |= dict.fromkeys(w for w in self.workers.values() if not w.told)
        orders = self._choose_for_the_bare(now)
        return orders + [order for worker in in_it if (order := self._queue(worker)) not in orders]

    def inherit(self, other: Self) -> None:
        self.estimates = {rank: pace for rank, pace in other.estimates.items() if rank in self.workers}
        for rank, worker in self.workers.items():
            if (before := other.workers.get(rank)) is not None:
                worker.inherit(before)
        self.learning, self._latest = copy(other.learning), other._latest
