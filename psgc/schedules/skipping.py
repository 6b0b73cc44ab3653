"""The schedule `skipping`: the order of `static`, without the chunks that are recovered."""

from collections.abc import Sequence

from psgc.schedules.orders import Order, Skip
from psgc.schedules.schedule import Schedule


class SkippingSchedule(Schedule):
    """A recovered chunk is dropped from all queues that still hold it."""

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        return [Skip(worker, chunk, recovered=True) for worker in unreported]
