"""The decisions of the schedule `dynamic`: which worker takes over which chunks, and which backup it does next."""

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf
from statistics import median
from typing import Any

from psgc.schedules.learning import Learning
from psgc.schedules.progress import LEAD, ChunkView, WorkerView
from psgc.schedules.schedule import Order, Queue, Schedule, Skip

UNEVEN = 1.1  # costs that differ by no more than this factor count as equal
LONG_REST, LEAST_REST = 3.0, 0.1  # times the iteration before, and seconds at least, after which no worker rests
ROUNDS = 10  # passes over all chunks, at most


class Decisions(Schedule):
    """The decisions of `dynamic`, and what they depend on. `psgc.schedules.dynamic` says when they are made.

    chunks, workers: what is believed of each; bare: the workers that have lost the last chunk they were told.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        costs = self._costs or [1.0] * len(self._holders)
        self.chunks = chunks = [ChunkView(number, cost) for number, cost in enumerate(costs)]
        self.workers = {
            rank: WorkerView(rank, [chunks[i] for i in own], [chunks[i] for i in self._backups.get(rank, ())])
            for rank, own in self._queues.items()
        }
        self.learning = Learning()
        self._know_holders()
        self._forget_plans()

    def _know_holders(self) -> None:
        for chunk, ranks in zip(self.chunks, self._holders, strict=True):
            chunk.holders = tuple(self.workers[rank] for rank in ranks)

    def _forget_plans(self) -> None:
        self._latest = 0.0  # when something was last heard in this iteration
        self._to_pull: dict[WorkerView, None] = {}  # workers that may take over more
        self.bare: dict[WorkerView, None] = {}
        self._alarms: list[tuple[float, int]] = []
        self._rest_ends = inf  # when the workers that rest do what is left, should the iteration last so long

    def _end_rest(self) -> None:
        """The workers that rest may be needed."""
        self._rest_ends = inf
        for worker in self.workers.values():
            worker.left = worker.held
            if not worker.told:
                self.bare[worker] = None

    def tick(self, now: float) -> list[Order]:
        orders: list[Order] = []
        if now >= self._rest_ends:
            self._end_rest()
        for worker in self._to_pull:
            orders += self._pull(worker, now)
            if worker.running is None and worker.told and not worker.is_delayed:
                orders += self._start_next(worker, now)
        self._to_pull.clear()
        while self._next_alarm() <= now:
            worker = self.workers[heappop(self._alarms)[1]]
            worker.alarm = inf
            if not worker.told or worker.chosen:
                orders += self._choose(worker, now)
        return orders + self._choose_for_the_bare(now)

    def free_until(self, worker: int, is_over: Callable[[int], bool]) -> float:
        view = self.workers[worker]
        return view.alarm if view.running is None and not view.told else 0.0

    @property
    def wake(self) -> float:
        return self._latest if self._to_pull or self.bare else min(self._next_alarm(), self._rest_ends)

    def _next_alarm(self) -> float:
        while self._alarms:
            when, rank = self._alarms[0]
            if (worker := self.workers.get(rank)) is not None and worker.alarm == when:
                return when
            heappop(self._alarms)
        return inf

    def _withdraw(self, chunk: ChunkView, workers: Sequence[WorkerView]) -> list[Order]:
        """These workers need not begin `chunk`; if it is recovered, they need not do it at all."""
        for worker in workers:
            if chunk not in worker.piece:
                worker.forget(chunk)
                if not worker.told:
                    self.bare[worker] = None
        return [Skip(worker.rank, chunk.number, chunk.committed) for worker in workers]

    def _start_next(self, worker: WorkerView, now: float) -> list[Order]:
        """`worker` begins the first chunks that it was told. Others need not begin them if enough are in them."""
        worker.start_next(now)
        orders: list[Order] = []
        for chunk in worker.piece:
            others = [taker for taker in chunk.takers if chunk not in taker.piece]
            if chunk.copies + len(chunk.takers) - len(others) >= chunk.wanted:
                orders += self._withdraw(chunk, others)
        return orders

    def _pull(self, worker: WorkerView, now: float) -> list[Order]:
        """Take over chunks from holders that have more left to do, as long as `worker` would finish sooner."""
        pace, lag = worker.pace, self.learning.lag
        if pace is None or pace == inf or worker.chosen or worker.is_delayed:
            return []
        limit = worker.through(now, lag) + 2 * lag
        ends: dict[WorkerView, float] = {}  # when others will have finished
        offers: dict[WorkerView, set[ChunkView]] = {}  # chunks that workers which finish later were told
        for chunk in worker.choices():
            for other in chunk.takers:
                if chunk in other.piece:
                    continue
                end = ends.get(other)
                if end is None:
                    end = other.through(now, lag)
                    if other.pace is None and not other.is_delayed and other.elapsed(now, lag) <= (1 + LEAD) * pace:
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
            is_first = other.running is None and not other.is_delayed and chunk is next(iter(other.told))
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
        while self.bare:
            worker = next(iter(self.bare))
            del self.bare[worker]
            if not worker.told and not worker.is_delayed:
                orders += self._choose(worker, now)
        return orders

    def _choose(self, worker: WorkerView, now: float) -> list[Order]:
        """Decide what `worker` does after the chunk it is in, or at once when it is idle."""
        lag, spread = self.learning.lag, self.learning.spread
        before = tuple(worker.told)
        for chunk in before:
            worker.forget(chunk)
        orders: list[Order] = []
        if worker.is_unwanted and worker.pace is not None and now > worker.due:
            worker.forget_all()  # it heard that the chunk is recovered before it began it, and reports nothing
        best = worker.best(now, lag, spread)
        begun: list[WorkerView] = []
        if worker.running is None and best is not None:
            begun = copy_together(worker, best)
            for one in begun:
                orders += self._start_next(one, now)
            best = None if worker.told else worker.best(now, lag, spread)
        if best is not None:
            worker.copy(best)
            worker.chosen = True
        for one in dict.fromkeys([worker, *begun]):
            self._wake_at(one, one.next_alarm(now, lag, spread))
        if tuple(worker.told) != before and worker not in begun:
            begun.append(worker)
        return [*orders, *map(self._queue, begun)]

    def _wake_at(self, worker: WorkerView, when: float) -> None:
        """Choose for it again then, if it is finite."""
        worker.alarm = when
        if when < inf:
            heappush(self._alarms, (when, worker.rank))

    def _queue(self, worker: WorkerView) -> Queue:
        """The order to do what `worker` was told. It begins with the chunks that it is in: they may not have begun."""
        first = [chunk for chunk in worker.piece if not chunk.committed]
        return Queue(worker.rank, tuple(chunk.number for chunk in (*first, *worker.told)))


def uneven(costs: Sequence[float]) -> bool:
    """Whether a plan pays: the costs, each > 0, differ by more than the factor UNEVEN."""
    return max(costs, default=1.0) > UNEVEN * min(costs, default=1.0)


def copy_together(worker: WorkerView, chunk: ChunkView) -> list[WorkerView]:
    """`worker` is to copy `chunk`, and idle workers the chunks that must be copied with it. Returns these workers.

    They share the chunks so that they finish at the same time.
    """
    _, *others = chunk.with_others()
    able = {one: [other for other in one.holders if other.is_idle and one in other.choices()] for one in others}
    usual = median([other.pace for of in able.values() for other in of if other.pace] or [1.0])
    worker.tell(chunk)
    copying = {worker: None}
    for one in sorted(others, key=lambda one: len(able[one])):
        if able[one]:
            other = min(able[one], key=lambda other: (other.pace or usual) * (other.ahead + one.cost))
            other.tell(one)
            copying[other] = None
    return [*copying]


def balance(
    chunks: Iterable[ChunkView], workers: Sequence[WorkerView], holders: Sequence[Sequence[WorkerView]]
) -> None:
    """Plan for chunks of known, different costs: no worker has much more to do than others.

    Chunks move between holders, none of which is in a chunk, until no move shortens the longer of two queues.
    The queues of the workers are then sorted by cost, the longest chunk first: what is left late is small, and fills
    gaps. Exchanges of two chunks gain 1 to 4 % where costs are known exactly, and nothing where they are off by 10 %.

    holders[i]: of chunk i. A worker takes its pace times the cost of a chunk, 1 when its pace is not known.
    """
    known = [worker.pace for worker in workers if worker.pace is not None]
    usual = sorted(known)[len(known) // 2] if known else 1.0
    paces = {worker: usual if worker.pace is None else worker.pace for worker in workers}
    longest_first = sorted(chunks, key=lambda chunk: -chunk.cost)
    for _ in range(ROUNDS):
        told = [(chunk, worker) for chunk in longest_first for worker in chunk.takers]
        if not sum(_move(chunk, worker, holders[chunk.number], paces) for chunk, worker in told):
            break
    for worker in workers:
        worker.told = dict.fromkeys(sorted(worker.told, key=lambda chunk: -chunk.cost))


def _move(chunk: ChunkView, worker: WorkerView, holders: Sequence[WorkerView], paces: dict[WorkerView, float]) -> bool:
    others = [other for other in holders if other not in chunk.takers]
    if not others:
        return False
    other = min(others, key=lambda w: w.start + paces[w] * (w.ahead + chunk.cost))
    end = other.start + paces[other] * (other.ahead + chunk.cost)
    if end >= (worker.start + paces[worker] * worker.ahead) * (1 - 1e-9):
        return False
    worker.forget(chunk)
    other.tell(chunk)
    return True
