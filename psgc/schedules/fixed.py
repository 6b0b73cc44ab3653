"""The schedules in which every worker goes through its default queue; all but `skipping` skip nothing."""

from collections.abc import Mapping, Sequence, Set
from random import Random

from psgc.schedules.orders import Order, Skip
from psgc.schedules.schedule import Queues, Schedule, split


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

    @classmethod
    def default_queues(cls, ordered: Queues, own: Mapping[int, Set[int]], seed: int) -> tuple[Queues, Queues]:
        return split(ordered, own)[0], {}


class SkippingSchedule(Schedule):
    """The order of `static`; a recovered chunk is dropped from all queues that still hold it."""

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        return [Skip(worker, chunk, recovered=True) for worker in unreported]
