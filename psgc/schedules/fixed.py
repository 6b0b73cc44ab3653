"""The schedules in which every worker goes through its default queue; all but `skipping` skip nothing.

`full` is original gradient coding.
"""

from collections.abc import Mapping, Sequence, Set
from random import Random
from typing import Any

from psgc.schedules.schedule import Loss, Order, Pass, Queues, Schedule, Skip, split


class StaticSchedule(Schedule):
    """The optimized ordering, as in the paper."""

    keeps_queues = True


class RandomSchedule(Schedule):
    """Every worker's queue is shuffled."""

    keeps_queues = True
    tried_by_default = False

    @classmethod
    def default_queues(cls, ordered: Queues, own: Mapping[int, Set[int]], seed: int) -> tuple[Queues, Queues]:
        random = Random(seed)
        return {worker: random.sample(queue, len(queue)) for worker, queue in ordered.items()}, {}


class UncodedSchedule(Schedule):
    """No redundancy: every worker does its own share, and the server waits for all of them."""

    keeps_queues = True
    holds_backups = False
    joins = True

    @classmethod
    def default_queues(cls, ordered: Queues, own: Mapping[int, Set[int]], seed: int) -> tuple[Queues, Queues]:
        return split(ordered, own)[0], {}

    def allow_pieces(self, may: bool) -> bool:
        self.fractions = dict.fromkeys(self._queues, float(may))
        return False


class SkippingSchedule(Schedule):
    """The order of `static`; a recovered chunk is dropped from all queues that still hold it."""

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        return [Skip(worker, chunk, recovered=True) for worker in unreported]


class FullSchedule(Schedule):
    """The chunks of a worker count only when its whole load is done."""

    keeps_queues = True
    counts_whole_loads = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._load = {worker: frozenset(chunks) for worker, chunks in self._queues.items()}
        self._done: dict[int, dict[int, None]] = {}  # worker -> chunks of its load, in the order of their reports
        self._counted: set[tuple[int, int]] = set()  # (worker, chunk) that counted before the load was done
        self._urgent: set[int] = set()  # chunks that were recovered and then invalidated: they count at once

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

    def freed(self, it: Pass) -> list[Order]:
        orders, worker, (chunk, *_) = super().freed(it), it.worker, it.chunks
        if not it.is_done and chunk in self._load[worker] and chunk not in self._done[worker]:
            orders.append(self.tell_next(worker, chunk))
        return orders

    def lost(self, loss: Loss, now: float) -> list[Order]:
        orders = super().lost(loss, now)
        self._urgent.update(loss.invalidated)
        for chunk, (_, able) in loss.invalidated.items():
            for worker in able:  # a chunk of a load that is not complete has to be done again
                self._counted.discard((worker, chunk))
                if chunk in self._done[worker] and len(self._done[worker]) < len(self._load[worker]):
                    del self._done[worker][chunk]
                    if (order := self.tell_next(worker, chunk)) not in orders:
                        orders.append(order)
        return orders

    def disputed(self, chunk: int, copies: int, able: Sequence[int], now: float) -> list[Order]:
        # a worker that did it as part of a load that is not complete does not repeat it: its copy will count
        able = [w for w in able if chunk not in self._done[w] or len(self._done[w]) == len(self._load[w])]
        return super().disputed(chunk, copies, able, now)
