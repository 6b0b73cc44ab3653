"""The schedules in which nobody is told what to do next as long as nobody is lost: all but `dynamic`.

A schedule hears from the coordinator and answers with orders to workers:

* `begin`      an iteration starts;
* `counts`     a worker reports a chunk: which of its copies count from now on?
* `committed`  a chunk is recovered;
* `freed`      a worker is through with a chunk, reported or abandoned, and goes on with the next in its queue;
* `lost`       a worker is not there any more;
* `disputed`   copies of a chunk do not agree (`verify`): it takes one more;
* `tick`       time has passed; asked for with `wake`.

All times are seconds since the iteration began, and come with the events.
"""

from collections.abc import Mapping, Sequence
from math import inf

from psgc.server.orders import Loss, Next, Order, Skip


class FixedSchedule:
    """Every worker goes through its default queue and skips nothing: `uncoded`, `random` and `static`.

    They differ only in the queues that the workers were given (`psgc.plan`). What a lost worker has left is shared out
    at once, so that whoever does most of it in the lost one's stead is through as soon as possible.
    """

    def __init__(self) -> None:
        self._paces: dict[int, float] = {}  # seconds that each worker took for its newest chunk
        self._substitutes: dict[int, dict[int, None]] = {}  # worker -> chunks of this iteration that it was told next

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        """Orders at the start of an iteration; `checked` chunks need one copy more than others (`verify`)."""
        self._substitutes = {}
        return []

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        """The chunks of `worker` whose copies count from now on, after it reported `chunk`."""
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        """Orders when `chunk` is recovered; `unreported` are its holders that have not reported it."""
        return []

    def freed(
        self, worker: int, chunk: int, now: float, seconds: float, done: bool = True, late: float = 0.0
    ) -> list[Order]:
        """Orders when `worker` is through with `chunk`, done or abandoned, after `seconds`; `counts` comes first.

        done: False when its copy was from before the chunk was invalidated, and it may be told to do it again; late:
        how many seconds ago that was, since the server hears of it only now.
        """
        self._paces[worker] = seconds
        return []

    def lost(self, loss: Loss, now: float) -> list[Order]:
        """Orders when a worker is lost during an iteration; none when everything is recovered all the same."""
        orders: list[Order] = []
        for worker, chunk in loss.reassigned:
            if chunk not in loss.invalidated:
                orders.append(self._next(worker, chunk))
        for chunk, (needed, able) in loss.invalidated.items():
            orders += self._have_done(chunk, needed, able)
        return orders

    def disputed(self, chunk: int, copies: int, able: Sequence[int], now: float) -> list[Order]:
        """Orders when so many `copies` of `chunk` do not agree, and one of the workers `able` is to do it as well.

        If it had been recovered, it is not any more.
        """
        return self._have_done(chunk, 1, able)

    def _have_done(self, chunk: int, needed: int, able: Sequence[int]) -> list[Order]:
        told = [worker for worker in able if chunk in self._substitutes.get(worker, {})]
        others = sorted((worker for worker in able if worker not in told), key=self._time_for_one_more)
        return [self._next(worker, chunk) for worker in [*told, *others][:needed]]

    def _next(self, worker: int, chunk: int) -> Order:
        self._substitutes.setdefault(worker, {})[chunk] = None
        return Next(worker, chunk)

    def _time_for_one_more(self, worker: int) -> tuple[float, int]:
        usual = max(self._paces.values(), default=1.0)  # nobody knows: as slow as any
        return (len(self._substitutes.get(worker, ())) + 1) * self._paces.get(worker, usual), worker

    def inherit(self, other: "FixedSchedule") -> None:
        """Know what `other`, the schedule of the iterations before, has learnt of the workers."""
        self._paces = dict(other._paces)

    @property
    def wake(self) -> float:
        """When `tick` should be called."""
        return inf

    def tick(self, now: float) -> list[Order]:
        """Orders that are due because time has passed."""
        return []


class FullSchedule(FixedSchedule):
    """Original gradient coding: what a worker has done counts only when its whole load is done."""

    def __init__(self, queues: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self._load = {worker: frozenset(chunks) for worker, chunks in queues.items()}
        self._done: dict[int, dict[int, None]] = {}  # worker -> chunks of its load, in the order of their reports
        self._counted: set[tuple[int, int]] = set()  # (worker, chunk), before the load was done
        self._urgent: set[int] = set()  # chunks that were lost after they were recovered: they count at once

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        self._done = {worker: {} for worker in self._load}
        self._counted.clear()
        self._urgent.clear()
        return super().begin(checked)

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        done, load = self._done[worker], self._load[worker]
        if len(done) == len(load):
            return (chunk,)
        if chunk in load:
            done[chunk] = None
            if len(done) == len(load):
                return [c for c in done if (worker, c) not in self._counted]
        if chunk not in self._urgent and chunk not in self._substitutes.get(worker, ()):
            return ()
        self._counted.add((worker, chunk))
        return (chunk,)

    def freed(
        self, worker: int, chunk: int, now: float, seconds: float, done: bool = True, late: float = 0.0
    ) -> list[Order]:
        orders = super().freed(worker, chunk, now, seconds, done, late)
        if not done and self._has_to_do(worker, chunk):
            orders.append(self._next(worker, chunk))
        return orders

    def lost(self, loss: Loss, now: float) -> list[Order]:
        orders = super().lost(loss, now)
        self._urgent.update(loss.invalidated)
        for chunk, (_, able) in loss.invalidated.items():
            for worker in able:  # what it had done of its load, and did not count yet, has to be done again
                self._counted.discard((worker, chunk))
                if chunk in self._done[worker] and len(self._done[worker]) < len(self._load[worker]):
                    del self._done[worker][chunk]
                    orders += [order] if (order := self._next(worker, chunk)) not in orders else []
        return orders

    def disputed(self, chunk: int, copies: int, able: Sequence[int], now: float) -> list[Order]:
        # who has done it, as part of a load that is not done yet, does not do it again: its copy will count
        return super().disputed(chunk, copies, [w for w in able if chunk not in self._done[w]], now)

    def _has_to_do(self, worker: int, chunk: int) -> bool:
        """Whether `chunk` is missing to the worker's load."""
        return chunk in self._load[worker] and chunk not in self._done[worker]


class SkippingSchedule(FixedSchedule):
    """The fixed order, but a recovered chunk is dropped from the queues that still hold it."""

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        return [Skip(worker, chunk, recovered=True) for worker in unreported]
