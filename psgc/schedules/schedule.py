"""What a schedule is: the coordinator tells it what happened, and it answers with orders to workers.

* `begin`      an iteration starts;
* `counts`     a worker reports a chunk: which of its copies count from now on?
* `committed`  a chunk is recovered;
* `freed`      a worker has left a pass, finished or not, and goes on with the next chunks in its queue;
* `again`      what a worker has done in one pass does not count;
* `lost`       a worker is lost;
* `disputed`   copies of a chunk do not agree (`verify`): one more is needed;
* `tick`       the time that `wake` asked for has come.

All times are seconds since the iteration began, and come with the events. A schedule is pure: no clock, no MPI, no
arrays.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple, Self, TypeAlias

Queues: TypeAlias = "dict[int, list[int]]"  # chunks by worker, in the order in which it does them


@dataclass(frozen=True, slots=True)
class Skip:
    """`worker` need not begin `chunk`. If it has begun, it goes on unless `recovered`: the copy may count."""

    worker: int
    chunk: int
    recovered: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """`worker` does exactly `chunks` next, in this order, after the chunk it is in."""

    worker: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Next:
    """`worker` does `chunk` before all else, after the chunk it is in."""

    worker: int
    chunk: int


Order = Skip | Queue | Next


class Pass(NamedTuple):
    """What `worker` has finished or abandoned: a chunk, or several, in so many seconds."""

    worker: int
    chunks: tuple[int, ...]
    now: float  # when the server hears of it
    seconds: float
    is_done: bool = True  # False when it does not count, so that the worker may have to repeat it
    late: float = 0.0  # seconds between its end and `now`


@dataclass(frozen=True)
class Loss:
    """What the loss of `worker` has changed.

    invalidated: chunks that were recovered before this or an earlier loss and are not now: how many copies they need,
    and the live workers whose copies would count.
    """

    worker: int
    dropped: Sequence[int]  # chunks, not recovered, that have one copy less
    invalidated: Mapping[int, tuple[int, Sequence[int]]]
    reassigned: Sequence[tuple[int, int]]  # (worker, chunk): the worker holds the chunk from now on
    holders: Sequence[Sequence[int]]  # of each chunk the live workers, new ones among them
    collected: bool  # whether the workers had been told that there is nothing more to do


class Schedule:
    """Every worker goes through its default queue. What was invalidated goes to the workers that are free soonest.

    A subclass changes what it does differently, and says so in the class attributes.

    queues: the default queue of each worker, by rank; backups: the other chunks that it holds, in order of preference;
    holders: for each chunk the workers that hold it; parts: l, the copies that recover a chunk; costs: what each chunk
    takes relative to an average one, None when all take the same.
    """

    is_adaptive: ClassVar[bool] = False  # learns `estimates`, which last from one iteration to the next
    keeps_queues: ClassVar[bool] = False  # a worker leaves its default queue only after a loss or a dispute
    counts_whole_loads: ClassVar[bool] = False  # chunks count only when all chunks of their worker are done
    holds_backups: ClassVar[bool] = True  # False: only `parts` workers hold a chunk
    joins: ClassVar[bool] = False  # has workers do several chunks in one pass where they may (`allow_pieces`)
    tried_by_default: ClassVar[bool] = True  # simulations and `psgc replay` try it unless told otherwise

    def __init__(
        self,
        queues: Mapping[int, Sequence[int]],
        backups: Mapping[int, Sequence[int]] | None = None,
        holders: Sequence[Sequence[int]] = (),
        parts: int = 1,
        costs: Sequence[float] | None = None,
    ) -> None:
        self._queues, self._backups = queues, backups or {}
        self._holders, self._parts, self._costs = holders, parts, costs
        self.estimates: dict[int, float] = {}  # seconds per average chunk by worker; empty unless adaptive
        self.resting: Set[int] = frozenset()  # in the next iteration
        self.fractions: dict[int, float] = {}  # by worker: how much of what it has left it does in one pass; else 0
        self._paces: dict[int, float] = {}  # seconds that each worker took for its newest chunk
        self._substitutes: dict[int, dict[int, None]] = {}  # worker -> chunks of this iteration that it was told next

    @classmethod
    def default_queues(cls, ordered: Queues, own: Mapping[int, Set[int]], seed: int) -> tuple[Queues, Queues]:
        """The default queue and the backups of each worker.

        ordered: all chunks that each worker holds, in the optimized order; own: its chunks when no chunk is done more
        than `parts` times; seed: for schedules that draw at random.
        """
        return ordered, {}

    def know_costs(self, costs: Sequence[float]) -> bool:
        """What the chunks of the next iterations take, relative to an average one. A schedule need not use it.

        Returns whether it has a plan of its own for them: then its orders should come before a worker begins.
        """
        return False

    def allow_pieces(self, may: bool) -> bool:
        """Let workers do several chunks in one pass from now on (`fractions`), or not. Returns as `know_costs`."""
        return False

    def rest(self, workers: Set[int]) -> None:
        """In the next iteration these should do only chunks that too few others hold. A schedule need not use it."""
        self.resting = workers

    def begin(self, checked: Sequence[int] = ()) -> list[Order]:
        """Orders at the start of an iteration; `checked` chunks need one more copy than others (`verify`)."""
        self._substitutes = {}
        return []

    def delayed(self, worker: int) -> None:
        """`worker` is still in a pass of an earlier iteration, and has begun nothing of this one."""

    def begins_late(self, worker: int, now: float) -> list[Order]:
        """Orders when a pass of an earlier iteration ends: `worker` begins this iteration only now."""
        return []

    def counts(self, worker: int, chunk: int) -> Sequence[int]:
        """The chunks of `worker` whose copies count from now on, after it reported `chunk`."""
        return (chunk,)

    def committed(self, chunk: int, unreported: Sequence[int]) -> list[Order]:
        """Orders when `chunk` is recovered; `unreported` are its holders that have not reported it."""
        return []

    def freed(self, it: Pass) -> list[Order]:
        """Orders when a worker has left a pass, finished or not; `counts` comes first."""
        self.ended(it)
        return []

    def ended(self, it: Pass) -> None:
        """Learn from the pass whose report ends the iteration, after which there are no orders."""
        self._paces[it.worker] = it.seconds / len(it.chunks)

    def again(self, worker: int, chunks: Sequence[int], now: float) -> list[Order]:
        """Orders for these chunks, of a pass of `worker` that does not count; `freed` comes first."""
        return [self.tell_next(worker, chunk) for chunk in reversed(chunks)]

    def lost(self, loss: Loss, now: float) -> list[Order]:
        """Orders when a worker is lost during an iteration; none when everything is recovered without it."""
        orders = [self.tell_next(worker, chunk) for worker, chunk in loss.reassigned if chunk not in loss.invalidated]
        for chunk, (needed, able) in loss.invalidated.items():
            orders += self._substitute(chunk, needed, able)
        return orders

    def disputed(self, chunk: int, copies: int, able: Sequence[int], now: float) -> list[Order]:
        """Orders when `copies` of `chunk` do not agree: it is not recovered, and one of `able` has to do it as well."""
        return self._substitute(chunk, 1, able)

    def free_until(self, worker: int, is_over: Callable[[int], bool]) -> float:
        """Until when a worker has nothing to do, as far as is known; 0 unless all its chunks are over."""
        return inf if all(map(is_over, (*self._queues[worker], *self._substitutes.get(worker, ())))) else 0.0

    @property
    def wake(self) -> float:
        return inf

    def tick(self, now: float) -> list[Order]:
        """Orders that are due because time has passed."""
        return []

    def inherit(self, other: Self) -> None:
        """Take over what `other`, the schedule of the iterations before, has learnt about the workers."""
        self._paces = dict(other._paces)

    def _substitute(self, chunk: int, needed: int, able: Sequence[int]) -> list[Order]:
        """Give `chunk` to workers that were told so already, then to those that would finish it first."""
        told = [worker for worker in able if chunk in self._substitutes.get(worker, {})]
        others = sorted((worker for worker in able if worker not in told), key=self._time_for_one_more)
        return [self.tell_next(worker, chunk) for worker in [*told, *others][:needed]]

    def tell_next(self, worker: int, chunk: int) -> Order:
        self._substitutes.setdefault(worker, {})[chunk] = None
        return Next(worker, chunk)

    def _time_for_one_more(self, worker: int) -> tuple[float, int]:
        usual = max(self._paces.values(), default=1.0)  # a worker without a report counts as the slowest
        return (len(self._substitutes.get(worker, ())) + 1) * self._paces.get(worker, usual), worker


def split(ordered: Queues, own: Mapping[int, Set[int]]) -> tuple[Queues, Queues]:
    """Each worker's chunks in two: its own share, and the backups."""
    return (
        {worker: [chunk for chunk in queue if chunk in own[worker]] for worker, queue in ordered.items()},
        {worker: [chunk for chunk in queue if chunk not in own[worker]] for worker, queue in ordered.items()},
    )
