"""The schedules of a simulated world: the production ones, and one that orders all that an order may say."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from psgc import schedules as production
from psgc.schedules import Schedule
from psgc.schedules.schedule import Loss, Order, Queue, Queues, Skip

FIXED = tuple(name for name, schedule in production.SCHEDULES.items() if schedule.keeps_queues)
SCHEDULES = (*production.SCHEDULES, "reordering")


FRACTION = 0.0  # of what a worker has left that it does in one pass


class Reordering(Schedule):
    """Only here: new queues at the start and after every recovery."""

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        super().begin(checked)
        self._left: dict[int, list[int]] = {worker: list(queue[::-1]) for worker, queue in self._queues.items()}
        return [Queue(worker, tuple(left)) for worker, left in self._left.items() if left]

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        if chunk in self._left[worker]:
            self._left[worker].remove(chunk)
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        orders: list[Order] = []
        for worker in unreported:
            left = self._left[worker]
            left[:] = [c for c in left if c != chunk]
            left[:] = left[1:] + left[:1]
            orders += [Skip(worker, chunk, recovered=True)] if (worker + chunk) % 2 else []
            orders += [Queue(worker, tuple(left))] if left else []
        return orders

    def lost(self, loss: Loss, now: float) -> list[Order]:
        del self._left[loss.worker]
        return super().lost(loss, now)

    def tell_next(self, worker: int, chunk: int) -> Order:
        left = self._left[worker]
        left[:] = [chunk, *(c for c in left if c != chunk)]
        return super().tell_next(worker, chunk)


def make(name: str, *arguments: Any) -> Schedule:
    """The schedule, with `recipe`, which makes another one from the same arguments."""
    schedule = Reordering(*arguments) if name == "reordering" else production.SCHEDULES[name](*arguments)
    if name in ("static", "random", "skipping", "reordering"):  # only here: passes that do not count are frequent then
        schedule.allow_pieces = partial(_allow_pieces, schedule, arguments[0])  # type: ignore[method-assign]
    schedule.recipe = lambda: make(name, *arguments)  # type: ignore[attr-defined]
    return schedule


def _allow_pieces(schedule: Schedule, queues: Queues, may: bool) -> bool:
    schedule.fractions = dict.fromkeys(queues, FRACTION if may else 0.0)
    return False


FACTORIES = {name: partial(make, name) for name in SCHEDULES}  # in place of `psgc.schedules.SCHEDULES`
