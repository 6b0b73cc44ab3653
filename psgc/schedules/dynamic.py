"""The schedule `dynamic`: the server decides, report by report, who does what next."""

from collections.abc import Iterable, Mapping, Sequence, Set
from copy import copy
from heapq import heappop, heappush
from math import inf
from typing import Any, Self

from psgc.schedules.balance import balance, uneven
from psgc.schedules.learning import Learning
from psgc.schedules.orders import Loss, Order, Queue, Skip
from psgc.schedules.progress import LEAD, Chunk, Worker
from psgc.schedules.schedule import Queues, Schedule, split


class DynamicSchedule(Schedule):
    """Own shares first, evened out as the workers' paces show; then backups of what is predicted to be recovered last.

    1. A worker *pulls*: it takes over chunks that it holds from workers that have a longer way to go, the longest
       first, as long as it would still be through sooner than they. It does so before the iteration starts, after its
       first reports, when there is most to learn, and when it has one chunk left.
    2. A worker that was told nothing more *chooses*: of the chunks that it holds, the one predicted to be recovered
       last, if it would be GAIN of the way through before the chunk is recovered without it.
    3. When nothing would be gained the worker rests, until its alarm at the latest.

    `tick` decides, for all the reports that came before it at once. Choices are made ahead, so that no worker waits for
    an answer: when a worker starts the last chunk that it was told, shortly before the predicted end, and when another
    worker starts or recovers what it was told.

    The predictions (`psgc.schedules.progress`), at time `now`:

    * a worker needs its pace for each chunk: an exponentially weighted mean that lasts from iteration to iteration. A
      chunk that is overdue takes as much longer as it is late;
    * a worker without a report needs UNKNOWN times what it has taken so far.

    The server hears of a chunk some time after it was done: the *lag*. A worker is overdue only once it is later than
    that, and work changes hands only for a gain of twice the lag. Otherwise a server with a backlog of reports would
    take it for slowness, and order copies that make it longer.
    """

    is_adaptive = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        costs = self._costs or [1.0] * len(self._holders)
        self._chunks = chunks = [Chunk(number, cost) for number, cost in enumerate(costs)]
        self._workers = {
            rank: Worker(rank, [chunks[i] for i in own], [chunks[i] for i in self._backups.get(rank, ())])
            for rank, own in self._queues.items()
        }
        self._plans = False  # with costs that it was told and that differ
        self._resting: Set[int] = frozenset()  # in the next iteration
        self.learning = Learning()
        self._latest = 0.0  # when something was last heard in this iteration

    @classmethod
    def default_queues(cls, ordered: Queues, own: Mapping[int, Set[int]], seed: int) -> tuple[Queues, Queues]:
        return split(ordered, own)

    def know_costs(self, costs: Sequence[float]) -> bool:
        self._plans = uneven(costs)
        for chunk, cost in zip(self._chunks, costs, strict=True):
            chunk.cost = cost
        return self._plans

    def rest(self, workers: Set[int]) -> None:
        self._resting = workers

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        workers = self._workers.values()
        if not self.learning.trusts_paces(workers, self._latest):  # begin as for the first time
            self.estimates.clear()
        self._latest = 0.0
        for chunk in self._chunks:
            chunk.begin(self._parts)
        for number in checked:
            self._chunks[number].wanted += 1
        self._to_pull: dict[Worker, None] = {}  # workers that may take over more
        self._bare: dict[Worker, None] = {}  # workers that have lost the last chunk they were told
        self._alarms: list[tuple[float, int]] = []
        for worker in workers:
            worker.begin(self.estimates.get(worker.rank))
        resting, self._resting = self._resting & self._workers.keys(), frozenset()
        more = dict.fromkeys([*self._second_shares(checked), *self._shares_of(resting)])
        if self._plans:
            able = [[self._workers[rank] for rank in ranks] for ranks in self._holders]
            if resting:
                able = [[w for w in of if chunk in w.left] for chunk, of in zip(self._chunks, able, strict=True)]
            balance(self._chunks, [*workers], able)
        orders: list[Order] = [] if self._plans else [self._queue(worker) for worker in more]
        fastest_first = sorted(workers, key=lambda w: w.pace or 0.0)
        for worker in fastest_first:
            orders += self._pull(worker, 0.0)
        for worker in fastest_first:
            orders += self._start_next(worker, 0.0)
        self._bare |= dict.fromkeys(worker for worker in fastest_first if not worker.told)
        orders += self._choose_for_the_bare(0.0)
        if self._plans:
            told = {order.worker for order in orders if isinstance(order, Queue)}
            orders += [self._queue(w) for w in workers if w.running is not None and w.rank not in told]
        # a worker that rests must hear so: it would do its own share
        return orders + [Queue(w.rank, ()) for w in workers if w.running is None and w.own]

    def _second_shares(self, checked: Sequence[int]) -> Iterable[Worker]:
        """Who does the copy more of each checked chunk, shared out evenly among those that hold it besides."""
        more: dict[Worker, int] = {}
        for number in checked:
            chunk = self._chunks[number]
            workers = [self._workers[rank] for rank in self._holders[number]]
            if others := [worker for worker in workers if worker not in chunk.takers]:
                worker = min(others, key=lambda w: more.get(w, 0))
                worker.tell(chunk)
                more[worker] = more.get(worker, 0) + 1
        return more

    def _shares_of(self, resting: Set[int]) -> Iterable[Worker]:
        """Who does the chunks of workers that rest. Those do what fewer than two others hold, and nothing else."""
        more: dict[Worker, None] = {}
        for worker in [self._workers[rank] for rank in sorted(resting)]:
            worker.newest = None  # that it reports nothing is no surprise
            for chunk in worker.held:
                others = [self._workers[r] for r in self._holders[chunk.number] if r not in resting]
                if len(others) < max(2, chunk.wanted):
                    continue
                worker.left = [other for other in worker.left if other is not chunk]
                if chunk in worker.told:
                    worker.forget(chunk)
                    other = min((w for w in others if w not in chunk.takers), key=lambda w: w.ahead, default=None)
                    if other is not None:
                        other.tell(chunk)
                        more[other] = None
        return more

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        self._chunks[chunk].copies += 1
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        it = self._chunks[chunk]
        it.committed = True
        workers = [worker for worker in it.takers if worker.rank in unreported]
        for worker in workers:  # one that hears so before it has begun the chunk reports nothing
            if worker.running is it and worker.pace is None and not worker.told:
                self._bare[worker] = None
        return self._withdraw(it, workers)

    def _withdraw(self, chunk: Chunk, workers: Sequence[Worker]) -> list[Order]:
        """These workers need not begin `chunk`; if it is recovered, they need not do it at all."""
        for worker in workers:
            if worker.running is not chunk:
                worker.forget(chunk)
                if not worker.told:
                    self._bare[worker] = None
        return [Skip(worker.rank, chunk.number, chunk.committed) for worker in workers]

    def freed(
        self, worker: int, chunk: int, now: float, seconds: float, done: bool = True, late: float = 0.0
    ) -> list[Order]:
        by, it = self._workers[worker], self._chunks[chunk]
        self.estimates[worker] = self.learning.learn(by, seconds / it.cost, late, len(self._workers))
        self._latest = now
        running = by.running
        if done:
            if running is not it:
                by.forget(it)
            it.doers += (by,)
        orders: list[Order] = []
        if running is None or running is it or running.committed:
            orders = self._start_next(by, now)
        else:  # an order crossed its report: it did this chunk first, and has begun the one we thought it was in
            by.began(now)
            holders = [self._workers[rank] for rank in self._holders[running.number]]
            self._bare |= dict.fromkeys(w for w in holders if w.running is None and not w.told)
        by.reports += 1
        if len(by.told) <= 1 or by.reports & (by.reports - 1) == 0:  # often at first, when there is most to learn
            self._to_pull[by] = None
        if not by.told:
            self._bare[by] = None
        return orders

    def lost(self, loss: Loss, now: float) -> list[Order]:
        self._holders = loss.holders
        lost = self._workers.pop(loss.worker)
        self._to_pull.pop(lost, None)
        self._bare.pop(lost, None)
        for worker in (lost, *(self._workers.values() if loss.collected else ())):  # everybody has dropped everything
            worker.forget_all()
        for number in loss.dropped:
            self._chunks[number].copies -= 1
        for rank, number in loss.reassigned:
            worker = self._workers[rank]
            worker.held = [*worker.held, self._chunks[number]]
        for worker in self._workers.values():  # those that rested may be needed
            worker.left = worker.held
        in_it: list[Worker] = []
        for number, (needed, able) in loss.invalidated.items():
            in_it += self._invalidate(number, self._chunks[number].wanted - needed, able)
        return self._share_out(in_it, now)

    def disputed(self, chunk: int, copies: int, able: Sequence[int], now: float) -> list[Order]:
        self._chunks[chunk].wanted = copies + 1
        return self._share_out(self._invalidate(chunk, copies, able), now)

    def _invalidate(self, number: int, copies: int, able: Sequence[int]) -> list[Worker]:
        """Only so many copies are there, and those who are `able` have to do it; who of them seems to be in it."""
        chunk = self._chunks[number]
        workers = [self._workers[rank] for rank in able]
        for worker in workers:
            if chunk not in worker.left:
                worker.left = [*worker.left, chunk]
        chunk.committed, chunk.copies = False, copies
        chunk.takers = tuple(w for w in workers if w.running is chunk or chunk in w.told)
        chunk.doers = tuple(w for w in chunk.doers if w not in workers)
        return [worker for worker in workers if worker.running is chunk]

    def _share_out(self, in_it: Sequence[Worker], now: float) -> list[Order]:
        """in_it: may have dropped what they were in, when it was recovered, before they began it."""
        self._bare |= dict.fromkeys(w for w in self._workers.values() if not w.told)
        orders = self._choose_for_the_bare(now)
        return orders + [order for worker in in_it if (order := self._queue(worker)) not in orders]

    def inherit(self, other: Self) -> None:
        self.estimates = {rank: pace for rank, pace in other.estimates.items() if rank in self._workers}
        for rank, worker in self._workers.items():
            if (before := other._workers.get(rank)) is not None:
                worker.newest, worker.reports = before.newest, before.reports
        self.learning, self._latest = copy(other.learning), other._latest

    def tick(self, now: float) -> list[Order]:
        orders: list[Order] = []
        for worker in self._to_pull:
            orders += self._pull(worker, now)
            if worker.running is None and worker.told:
                orders += self._start_next(worker, now)
        self._to_pull.clear()
        while self._next_alarm() <= now:
            worker = self._workers[heappop(self._alarms)[1]]
            worker.alarm = inf
            if not worker.told or worker.chosen:
                orders += self._choose(worker, now)
        return orders + self._choose_for_the_bare(now)

    @property
    def wake(self) -> float:
        return self._latest if self._to_pull or self._bare else self._next_alarm()

    def _next_alarm(self) -> float:
        while self._alarms:
            when, rank = self._alarms[0]
            if (worker := self._workers.get(rank)) is not None and worker.alarm == when:
                return when
            heappop(self._alarms)
        return inf

    # what they lead to

    def _start_next(self, worker: Worker, now: float) -> list[Order]:
        """`worker` goes on with the head of what it was told; nobody else needs to begin with that then."""
        worker.start_next(now)
        chunk = worker.running
        if chunk is None:
            return []
        others = [taker for taker in chunk.takers if taker.running is not chunk]
        started = chunk.copies + len(chunk.takers) - len(others)
        return self._withdraw(chunk, others) if started >= chunk.wanted else []

    def _pull(self, worker: Worker, now: float) -> list[Order]:
        """Take over what holders with a longer way to go were told, as long as `worker` would be through sooner."""
        pace, lag = worker.pace, self.learning.lag
        if pace is None or pace == inf or worker.chosen:
            return []
        limit = worker.through(now, lag) + 2 * lag
        ends: dict[Worker, float] = {}  # when others will be through
        offers: dict[Worker, set[Chunk]] = {}  # what those that will be through later were told
        for chunk in worker.choices():
            for other in chunk.takers:
                if other.running is chunk:
                    continue
                end = ends.get(other)
                if end is None:
                    end = other.through(now, lag)
                    if other.pace is None and other.elapsed(now, lag) <= (1 + LEAD) * pace:
                        end = 0.0  # it may be as fast as `worker`, and its report under way
                    ends[other] = end
                if end > limit + pace * chunk.cost:
                    offers.setdefault(other, set()).add(chunk)
        orders: list[Order] = []
        while offers:
            other = max(offers, key=ends.__getitem__)
            chunk = next(chunk for chunk in reversed(other.told) if chunk in offers[other])
            offers[other].remove(chunk)
            if not offers[other]:
                del offers[other]
            # before it starts: it may begin the first of its default queue before it reads that it need not
            is_first = other.running is None and chunk is next(iter(other.told))
            needed = 2 * pace * chunk.cost if is_first else pace * chunk.cost
            if chunk in worker.told or (is_first and len(other.told) > 1) or ends[other] <= limit + needed:
                continue
            orders += self._withdraw(chunk, [other])
            worker.tell(chunk)
            ends[other] = other.through(now, lag)
            limit += pace * chunk.cost
        return [*orders, self._queue(worker)] if orders else []

    def _choose_for_the_bare(self, now: float) -> list[Order]:
        orders: list[Order] = []
        while self._bare:
            worker = next(iter(self._bare))
            del self._bare[worker]
            if not worker.told:
                orders += self._choose(worker, now)
        return orders

    def _choose(self, worker: Worker, now: float) -> list[Order]:
        """Decide what `worker` does after the chunk it is in, or at once when it rests."""
        lag = self.learning.lag
        before = tuple(worker.told)
        for chunk in before:
            worker.forget(chunk)
        orders: list[Order] = []
        running = worker.running
        if running is not None and running.committed and worker.pace is not None and now > worker.due:
            worker.forget_all()  # it heard that the chunk is recovered before it began it, and reports nothing
        best = worker.best(now, lag)
        rested = worker.running is None
        if rested and best is not None:
            worker.tell(best)
            orders += self._start_next(worker, now)
            best = worker.best(now, lag)
        if best is not None:
            worker.tell(best)
            worker.chosen = True
        worker.alarm = worker.next_alarm(now, lag)
        if worker.alarm < inf:
            heappush(self._alarms, (worker.alarm, worker.rank))
        begun = rested and worker.running is not None
        if begun or tuple(worker.told) != before:
            orders.append(self._queue(worker))
        return orders

    def _queue(self, worker: Worker) -> Queue:
        """What `worker` was told, and before it what it is in: it may not have begun that when the order arrives."""
        running = worker.running
        first = () if running is None or running.committed else (running,)
        return Queue(worker.rank, tuple(chunk.number for chunk in (*first, *worker.told)))
