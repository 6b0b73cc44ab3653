"""The schedule `dynamic`: the server decides, report by report, who does what next."""

from collections.abc import Mapping, Sequence, Set
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import Any, Self

from psgc.schedules.orders import Loss, Order, Queue, Skip
from psgc.schedules.schedule import Queues, Schedule, split

QUEUE_OF_OTHERS = 2.0  # chunks a worker is expected to do up to a given backup, that one included
UNKNOWN = 5.0  # a worker never heard of, after e seconds: expected to need this times e more
TRUSTED = 0.08  # surprise up to which what one iteration has taught is believed in the next
LEARNING_RATE = 0.5  # weight of a worker's newest chunk in its estimated seconds per chunk
GAIN = 0.5  # share of a chunk that must be done before the others are predicted to be: predictions err
LAG_RATE = 0.25  # weight of the newest report in the lag
LAG_STEP = 1e-4  # seconds; a report counts as at most this late, or as twice the lag
LEAD = 0.1  # share of a chunk's time before its predicted end at which the next one is decided once more


class DynamicSchedule(Schedule):
    """Own shares first, evened out as the workers' paces show; then backups of what is predicted to be recovered last.

    The default queue of a worker is its own share.

    1. A worker *pulls*: it takes over chunks that it holds from holders that have a longer way to go, the longest
       first, as long as it would still be through sooner than they. Often at first, when there is most to learn, and
       when it has one chunk left.
    2. A worker that was told nothing more *chooses*: the chunk predicted to be recovered last without it (the rarest of
       several), if it would be GAIN of the way through before those that are in it or were told to do it are done.
    3. When nothing would be gained the worker rests, until `wake` at the latest.

    That is decided in `tick`, for all the reports that came before it at once.
    Choices are made ahead, so that nobody waits for an answer: when a worker starts the last chunk it was told, once
    more shortly before the predicted end, and again when somebody else starts or recovers what it was told.

    The predictions, at time `now`:

    * a worker takes its estimated seconds per chunk, an exponentially weighted mean that survives across iterations.
      A chunk that is overdue takes as much longer as it is late: |expected - elapsed|;
    * a worker never heard of needs UNKNOWN times what it has taken so far;
    * a holder that was told a chunk comes to it at the end of what it was told; one that was not, QUEUE_OF_OTHERS
      chunks later;
    * a chunk is recovered when the last of the copies that it still needs is done.

    The server hears of a chunk some time after it was done: the *lag*. A worker is overdue only once it is later than
    that, work is given to another worker only for a gain of twice the lag, and paces that differ by less than the lag
    are taken for the same. Otherwise a server with a backlog of
    reports would take the backlog for slowness, and answer it with orders for copies that make the backlog longer.
    """

    is_adaptive = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._own = dict(self._queues)
        self._chunks = {worker: (*own, *self._backups.get(worker, ())) for worker, own in self._own.items()}
        self._last: dict[int, float] = {}  # each worker's newest pace, or the least it can have been
        self._reports: dict[int, int] = {}  # of each worker in this iteration
        self._latest = 0.0  # when something was last heard in this iteration
        self._lag = 0.0  # seconds from the end of a chunk until the server handles its report, smoothed
        self._surprise = 0.0  # how far paces are from those of the iteration before, as a share; a weighted mean

    @classmethod
    def default_queues(cls, ordered: Queues, own: Mapping[int, Set[int]], seed: int) -> tuple[Queues, Queues]:
        return split(ordered, own)

    # events

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        for worker in self._own:  # who was to report in the iteration before, and did not, surprises as well
            if not self._reports.get(worker, 1) and self._last.get(worker, inf) < self._latest:
                self._be_surprised(1 - self._last[worker] / self._latest)
                self._last[worker] = self._latest
        self._latest = 0.0
        if self._surprise > TRUSTED:  # paces that change at every iteration mislead: begin as for the first time
            self.estimates.clear()
        self._wanted = [self._parts] * len(self._holders)  # copies
        for chunk in checked:
            self._wanted[chunk] += 1
        latest = self._could_be_done() if len(self.estimates) == len(self._own) else inf
        self._copies = [0] * len(self._holders)  # that count
        self._started = [0] * len(self._holders)  # copies done or in work
        self._committed = bytearray(len(self._holders))
        self._taken: dict[int, set[int]] = {worker: set() for worker in self._own}  # done or in work
        # what each worker will do next, in order; who is too slow for its share of one chunk does not begin with it
        self._told = {
            worker: dict.fromkeys(
                () if len(chunks) <= self._parts and self.estimates.get(worker, 0) > latest + 2 * self._lag else chunks
            )
            for worker, chunks in self._own.items()
        }
        more = self._second_shares(checked)
        for worker, chunks in more.items():
            self._told[worker] |= dict.fromkeys(chunks)
        self._ahead = {worker: sum(map(self._cost, chunks)) for worker, chunks in self._told.items()}  # their cost
        self._chosen: set[int] = set()  # workers that were told one chunk, and that may still be changed
        self._running: dict[int, int | None] = dict.fromkeys(self._own)
        self._since = dict.fromkeys(self._own, 0.0)
        self._reports = dict.fromkeys(self._own, 0)
        self._to_pull: dict[int, None] = {}  # workers that may take over more
        self._bare: dict[int, None] = {}  # workers that have lost the last chunk they were told
        self._alarms: list[tuple[float, int]] = []
        self._alarm: dict[int, float] = {}  # the one alarm of each worker that is valid
        orders = [order for worker in self._own for order in self._start_next(worker, 0.0)]
        for worker in sorted(self._own, key=lambda w: self.estimates.get(w, 0.0)):
            orders += self._choose(worker, 0.0) if not self._told[worker] else self._pull(worker, 0.0)
        orders += self._choose_for_the_bare(0.0)
        orders += [self._queue(worker) for worker in more]
        # who rests must hear so: it would do its own share
        return orders + [Queue(w, ()) for w, running in self._running.items() if running is None and self._own[w]]

    def _second_shares(self, checked: Sequence[int]) -> dict[int, list[int]]:
        """Who does the copy more of each checked chunk, shared out evenly among those that hold it besides."""
        more: dict[int, list[int]] = {}
        for chunk in checked:
            others = [worker for worker in self._holders[chunk] if chunk not in self._own[worker]]
            if others:
                worker = min(others, key=lambda w: len(more.get(w, ())))
                more.setdefault(worker, []).append(chunk)
        return more

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        self._copies[chunk] += 1
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        self._committed[chunk] = True
        return self._withdraw(chunk, unreported)

    def freed(
        self, worker: int, chunk: int, now: float, seconds: float, done: bool = True, late: float = 0.0
    ) -> list[Order]:
        self._learn(worker, chunk, seconds)
        self._learn_lag(late)
        self._latest = now
        orders: list[Order] = []
        running = self._running[worker]
        if done:
            self._forget(worker, chunk)
            self._started[chunk] += chunk not in self._taken[worker]
            self._taken[worker].add(chunk)
        elif running == chunk:
            self._taken[worker].discard(chunk)
            self._started[chunk] -= 1
        if running is None or running == chunk or self._committed[running]:
            orders += self._start_next(worker, now)
        else:  # an order crossed its report: it did this chunk first, and has begun the one we thought it was in
            self._since[worker] = now
        self._reports[worker] += 1
        count = self._reports[worker]
        if len(self._told[worker]) <= 1 or count & (count - 1) == 0:  # often at first, when there is most to learn
            self._to_pull[worker] = None
        if not self._told[worker]:
            self._bare[worker] = None
        return orders

    def lost(self, loss: Loss, now: float) -> list[Order]:
        worker, self._holders = loss.worker, loss.holders
        if (running := self._running.pop(worker)) is not None:
            self._started[running] -= 1
        for what in (self._own, self._chunks, self._told, self._taken, self._ahead, self._since, self._reports):
            del what[worker]
        for where in (self._to_pull, self._bare, self._alarm):
            where.pop(worker, None)
        self._chosen.discard(worker)
        if loss.collected:  # everybody has dropped everything
            self._chosen.clear()
            self._alarm.clear()
            self._running = dict.fromkeys(self._own)
            self._told = {w: {} for w in self._own}
            self._ahead = dict.fromkeys(self._own, 0.0)
        for chunk in loss.dropped:
            self._copies[chunk] -= 1
            self._started[chunk] -= 1
        for new_holder, chunk in loss.reassigned:
            self._chunks[new_holder] = (*self._chunks[new_holder], chunk)
        attempt: list[int] = []
        for chunk, (needed, able) in loss.invalidated.items():
            attempt += self._invalidate(chunk, self._wanted[chunk] - needed, able)
        return self._share_out(attempt, now)

    def disputed(self, chunk: int, copies: int, able: Sequence[int], now: float) -> list[Order]:
        for worker in able:
            if chunk not in self._chunks[worker]:  # it has taken over it
                self._chunks[worker] = (*self._chunks[worker], chunk)
        self._wanted[chunk] = copies + 1
        return self._share_out(self._invalidate(chunk, copies, able), now)

    def _invalidate(self, chunk: int, copies: int, able: Sequence[int]) -> list[int]:
        """Only so many copies are there, and those who are `able` have to do it; who of them seems to be in it."""
        in_it = [w for w in able if self._running[w] == chunk]
        for w in able:
            self._taken[w].discard(chunk)
        for w in in_it:
            self._taken[w].add(chunk)
        self._committed[chunk] = False
        self._copies[chunk] = copies
        self._started[chunk] = copies + len(in_it)
        return in_it

    def _share_out(self, attempt: Sequence[int], now: float) -> list[Order]:
        """again: who may have dropped what it was in, when it was recovered, before it began it."""
        self._bare |= dict.fromkeys(w for w in self._own if not self._told[w])
        orders = self._choose_for_the_bare(now)
        return orders + [order for worker in attempt if (order := self._queue(worker)) not in orders]

    def inherit(self, other: Self) -> None:
        self.estimates = {worker: pace for worker, pace in other.estimates.items() if worker in self._own}
        self._last = {worker: pace for worker, pace in other._last.items() if worker in self._own}
        self._lag, self._surprise = other._lag, other._surprise

    def tick(self, now: float) -> list[Order]:
        orders: list[Order] = []
        for worker in self._to_pull:
            orders += self._pull(worker, now)
        self._to_pull.clear()
        while self._alarms and self._alarms[0][0] <= now:
            when, worker = heappop(self._alarms)
            if self._alarm.get(worker) != when:
                continue
            del self._alarm[worker]
            if not self._told[worker] or worker in self._chosen:
                orders += self._choose(worker, now)
        return orders + self._choose_for_the_bare(now)

    @property
    def wake(self) -> float:
        if self._to_pull or self._bare:
            return self._latest
        while self._alarms and self._alarm.get(self._alarms[0][1]) != self._alarms[0][0]:
            heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else inf

    # what they lead to

    def _start_next(self, worker: int, now: float) -> list[Order]:
        """`worker` goes on with the head of what it was told; nobody else needs to begin with that then."""
        self._alarm.pop(worker, None)
        self._since[worker] = now
        if not self._told[worker]:
            self._running[worker] = None
            return []
        chunk = next(iter(self._told[worker]))
        self._forget(worker, chunk)
        self._running[worker] = chunk
        self._taken[worker].add(chunk)
        self._started[chunk] += 1
        if self._started[chunk] < self._wanted[chunk]:
            return []
        return self._withdraw(chunk, [w for w in self._holders[chunk] if w != worker and self._running[w] != chunk])

    def _withdraw(self, chunk: int, workers: Sequence[int]) -> list[Order]:
        orders: list[Order] = []
        for worker in workers:
            if chunk in self._told[worker]:
                self._forget(worker, chunk)
                if not self._told[worker]:
                    self._bare[worker] = None
            elif not self._committed[chunk] or self._running[worker] != chunk:
                continue
            orders.append(Skip(worker, chunk, bool(self._committed[chunk])))
        return orders

    def _tell(self, worker: int, chunk: int) -> None:
        self._told[worker][chunk] = None
        self._ahead[worker] += self._cost(chunk)

    def _forget(self, worker: int, chunk: int) -> None:
        if chunk in self._told[worker]:
            del self._told[worker][chunk]
            self._ahead[worker] -= self._cost(chunk)
            self._chosen.discard(worker)

    def _pull(self, worker: int, now: float) -> list[Order]:
        """Take over what holders with a longer way to go were told, as long as `worker` would be through sooner."""
        pace = self.estimates.get(worker)
        if pace is None or pace == inf or worker in self._chosen:
            return []
        gain = 2 * self._lag
        told, taken = self._told[worker], self._taken[worker]
        orders: list[Order] = []
        through = self._through(worker, now)
        while True:
            busiest, latest, moved = -1, through, -1
            for chunk in self._chunks[worker]:
                if self._committed[chunk] or chunk in taken or chunk in told:
                    continue
                for other in self._holders[chunk]:
                    if chunk not in self._told[other]:
                        continue
                    if other not in self.estimates and now - self._since[other] <= (1 + LEAD) * pace + self._lag:
                        continue  # as fast as `worker`, for all we know: its report may be under way
                    end = self._through(other, now)
                    if end > latest and end > through + pace * self._cost(chunk) + gain:
                        busiest, latest, moved = other, end, chunk
            if busiest < 0:
                break
            self._forget(busiest, moved)
            if not self._told[busiest]:
                self._bare[busiest] = None
            orders.append(Skip(busiest, moved, recovered=False))
            self._tell(worker, moved)
            through += pace * self._cost(moved)
        if orders and self._running[worker] is None:
            orders += self._start_next(worker, now)
        return [*orders, self._queue(worker)] if orders else []

    def _choose_for_the_bare(self, now: float) -> list[Order]:
        orders: list[Order] = []
        while self._bare:
            worker = next(iter(self._bare))
            del self._bare[worker]
            if not self._told[worker]:
                orders += self._choose(worker, now)
        return orders

    def _choose(self, worker: int, now: float) -> list[Order]:
        """Decide what `worker` does after the chunk it is in, or at once when it rests."""
        before = tuple(self._told[worker])
        for chunk in before:
            self._forget(worker, chunk)
        orders: list[Order] = []
        running, pace = self._running[worker], self.estimates.get(worker, inf)
        if running is not None and self._committed[running] and now > self._since[worker] + pace * self._cost(running):
            self._running[worker] = None  # it heard that the chunk is recovered before it began it, and reports nothing
        best = self._best(worker, now)
        rested = self._running[worker] is None
        if rested and best is not None:
            self._tell(worker, best)
            orders += self._start_next(worker, now)
            best = self._best(worker, now)
        if best is not None:
            self._tell(worker, best)
            self._chosen.add(worker)
        self._set_alarm(worker, now)
        begun = rested and self._running[worker] is not None
        if begun or tuple(self._told[worker]) != before:
            orders.append(self._queue(worker))
        return orders

    def _queue(self, worker: int) -> Queue:
        """What `worker` was told, and before it what it is in: it may not have begun that when the order arrives."""
        running = self._running[worker]
        first = () if running is None or self._committed[running] else (running,)
        return Queue(worker, (*first, *self._told[worker]))

    def _best(self, worker: int, now: float) -> int | None:
        """The chunk whose recovery is predicted last without `worker`, if it would be sooner; the rarest of several."""
        pace = self.estimates.get(worker)
        free = now if pace is None else self._free(worker, pace, now)
        taken, gain = self._taken[worker], 2 * self._lag
        best, best_key = None, (-inf, 0)
        for chunk in self._chunks[worker]:
            if self._committed[chunk] or chunk in taken:
                continue
            need = self._wanted[chunk] - self._copies[chunk]
            if need < 1:  # they are being compared
                continue
            others: list[float] = []
            certain: list[float] = []  # of those that are in it or have been told to do it
            for other in self._holders[chunk]:
                running = self._running[other] == chunk
                if other == worker or (chunk in self._taken[other] and not running):
                    continue
                expected = self._expected(other, chunk, now)
                others.append(expected)
                if running or chunk in self._told[other]:
                    certain.append(expected)
            key = (_nth(others, need), -len(others))
            if key > best_key and (pace is None or free + GAIN * pace * self._cost(chunk) + gain < _nth(certain, need)):
                best, best_key = chunk, key
        return best

    def _expected(self, worker: int, chunk: int, now: float) -> float:
        """When `worker` is predicted to have done `chunk`, if nobody else does it."""
        if chunk in self._told[worker]:
            return self._through(worker, now)
        pace, free = self._pace_and_free(worker, now)
        if self._running[worker] == chunk:
            return free
        return free + pace * ((0 if worker in self._chosen else self._ahead[worker]) + QUEUE_OF_OTHERS)

    def _through(self, worker: int, now: float) -> float:
        """When `worker` is predicted to be through with all it was told."""
        pace, free = self._pace_and_free(worker, now)
        return free + pace * self._ahead[worker]

    def _pace_and_free(self, worker: int, now: float) -> tuple[float, float]:
        """Predicted seconds per chunk, and when the worker will be through with the chunk it is in."""
        pace = self.estimates.get(worker)
        if pace is None:
            elapsed = max(0.0, now - self._since[worker] - self._lag)
            return (1 + UNKNOWN) * elapsed, now + UNKNOWN * elapsed
        return pace, self._free(worker, pace, now)

    def _free(self, worker: int, pace: float, now: float) -> float:
        running = self._running[worker]
        if running is None:
            return now
        left = self._since[worker] + pace * self._cost(running) - now
        return now + (left if left > 0 else max(0.0, -left - self._lag))

    def _set_alarm(self, worker: int, now: float) -> None:
        pace = self.estimates.get(worker)
        if pace is None or pace == inf:
            return
        running = self._running[worker]
        if running is not None and not self._committed[running]:
            when = self._free(worker, pace, now) - LEAD * pace
        else:  # a backup gains something once another holder is as late as this worker would need for it
            gain = pace + 2 * self._lag
            late = [
                self._since[other]
                + self._lag
                + (gain + self.estimates[other] if other in self.estimates else gain / UNKNOWN)
                for chunk in self._chunks[worker]
                if not self._committed[chunk] and chunk not in self._taken[worker]
                for other in self._holders[chunk]
                if self._running[other] == chunk or (self._running[other] is not None and chunk in self._told[other])
            ]
            when = max(min(late, default=inf), now + LEAD * pace)
        if now < when < inf:
            self._alarm[worker] = when
            heappush(self._alarms, (when, worker))

    def _be_surprised(self, share: float) -> None:
        self._surprise += (share - self._surprise) / len(self._own)

    def _learn(self, worker: int, chunk: int, seconds: float) -> None:
        pace = seconds / self._cost(chunk)
        before = self._last.get(worker)
        if before is not None and self._reports[worker] == 0 and before < inf:
            self._be_surprised(max(0.0, abs(pace - before) - self._lag) / max(pace, before, 1e-300))
        self._last[worker] = pace
        old = self.estimates.get(worker, pace)
        self.estimates[worker] = old + LEARNING_RATE * (pace - old)

    def _learn_lag(self, late: float) -> None:
        """One worker whose reports take long says nothing of the server: the lag follows what most reports say."""
        self._lag += LAG_RATE * (min(late, max(2 * self._lag, LAG_STEP)) - self._lag)

    def _could_be_done(self) -> float:
        """When as many chunks could be done as are needed, if everybody held all of them."""
        ends = [(pace, pace) for pace in self.estimates.values()]
        heapify(ends)
        for _ in range(sum(self._wanted) - 1):
            end, pace = ends[0]
            heapreplace(ends, (end + pace, pace))
        return ends[0][0]

    def _cost(self, chunk: int) -> float:
        return 1.0 if self._costs is None else self._costs[chunk]


def _nth(times: list[float], n: int) -> float:
    """The n-th smallest, infinite when there are fewer."""
    return sorted(times)[n - 1] if len(times) >= n else inf
