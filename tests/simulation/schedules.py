"""The schedules of a simulated world: the production ones, and one that orders all that an order may say."""

from collections.abc import Mapping, Sequence

from psgc.server.fixed_schedules import FixedSchedule
from psgc.server.orders import Loss, Order, Queue, Skip
from psgc.server.scheduler import make_schedule

FIXED = ("uncoded", "full", "random", "static")  # nothing is skipped
SCHEDULES = (*FIXED, "skipping", "reordering", "dynamic")


class Reordering(FixedSchedule):
    """Only here: new queues at the start and after every recovery."""

    def __init__(self, queues: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self._queues = queues
        self._left: dict[int, list[int]] = {}

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        super().begin(checked)
        self._left = {worker: list(queue[::-1]) for worker, queue in self._queues.items()}
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

    def _next(self, worker: int, chunk: int) -> Order:
        left = self._left[worker]
        left[:] = [chunk, *(c for c in left if c != chunk)]
        return super()._next(worker, chunk)


def make(
    name: str,
    queues: Mapping[int, Sequence[int]],
    backups: Mapping[int, Sequence[int]] | None = None,
    holders: Sequence[Sequence[int]] = (),
    parts: int = 1,
    costs: Sequence[float] | None = None,
) -> FixedSchedule:
    """As the production one, which knows nothing of `reordering`; `recipe` makes another such schedule."""
    schedule = (
        Reordering(queues) if name == "reordering" else make_schedule(name, queues, backups, holders, parts, costs)
    )
    schedule.recipe = lambda: make(name, queues, backups, holders, parts, costs)  # type: ignore[attr-defined]
    return schedule
