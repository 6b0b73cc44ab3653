"""One iteration on a virtual clock: the production coordinator, schedules and worker states, without MPI and arrays.

Messages take no time. As in production, a worker continues with its queue without waiting for an answer, and finishes
its present chunk even if that chunk is recovered meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf, isfinite
from typing import NamedTuple

from psgc.schedules import Schedule
from psgc.server import events
from psgc.server.coordinator import Coordinator
from psgc.server.instructions import Roles, Target, carry_out
from psgc.server.membership import Membership
from psgc.workers.state import WorkerState


@dataclass(frozen=True)
class Simulated:
    """An iteration until its gradient was recovered."""

    time: float  # seconds; inf: it cannot be recovered
    computed: int  # copies finished by then
    useful: tuple[float, ...] = ()  # times from which needed copies counted, ascending; N * l in the end
    spent: float = 0.0  # seconds of computing, also on unfinished chunks
    used: float = 0.0  # seconds of computing copies that are in the gradient
    reported: int = 0  # copies
    orders: int = 0  # records sent to workers
    contributors: int = 0  # workers with a copy in the gradient
    passes: int = 0  # number of passes that computed the finished copies


class Passes(NamedTuple):
    """The passes of workers."""

    joins: bool = False  # whether workers can do several chunks in one pass (transfer `combined`)
    cost: float = 0.0  # the cost of a pass besides its chunks, in average chunks
    pause: float = 0.0  # seconds between two passes of a worker


ALONE = Passes()


class VirtualCluster(Target):
    """A server and workers that keep their state over several iterations, so that a schedule can learn.

    holders: for each chunk the ranks that hold it
    queues: the queue of each worker, by rank
    costs: the cost of each chunk relative to an average one; None: all equal
    breaks_off: whether a new iteration ends the work on an older one at once; otherwise a worker finishes its chunk
    """

    def __init__(
        self,
        holders: Sequence[Sequence[int]],
        queues: Mapping[int, Sequence[int]],
        parts: int,
        schedule: Schedule,
        costs: Sequence[float] | None = None,
        breaks_off: bool = True,
        passes: Passes = ALONE,
    ) -> None:
        self._schedule, self._passes, joins = schedule, passes, passes.joins
        self._num_chunks, self._parts = len(holders), parts
        self._coordinator = Coordinator(Membership(holders, parts, workers=queues), schedule, combined=joins)
        self._workers = {rank: WorkerState(rank, queue, len(holders), joins) for rank, queue in queues.items()}
        self._costs, self._breaks_off = costs, breaks_off
        self._pieces: dict[int, tuple[int, ...]] = {}  # rank -> all chunks of its present pass
        self._in: dict[int, tuple[int, int]] = {}  # rank -> iteration and number of its present chunk
        self.begun: list[tuple[int, int, float]] = []  # (rank, chunk, when) in the newest iteration
        self._ends: list[tuple[float, int, int]] = []  # (when, rank, chunk) of passes that will be finished
        self._now = 0.0
        self._iteration = -1

    def know(self, seconds: Mapping[int, float]) -> None:
        """Tell an adaptive schedule how many seconds each worker takes for a chunk (inf: it has failed)."""
        if self._schedule.is_adaptive:
            self._schedule.estimates.update(seconds)

    def recover(self, seconds: Mapping[int, float], costs: Sequence[float] | None = None) -> Simulated:
        """One iteration. seconds: seconds per chunk of the worker of each rank; inf: it has failed.

        costs: the costs of the chunks from this iteration on; None: as before
        """
        self._iteration += 1
        self._costs = self._costs if costs is None else costs
        self._seconds = seconds
        self._ends = [] if self._breaks_off else [(end - self._now, rank, chunk) for end, rank, chunk in self._ends]
        heapify(self._ends)
        self._recovered, self._orders, self._now = False, 0, 0.0
        self.begun = []
        self._schedule.allow_pieces(self._passes.joins)
        self._bring(events.Begin(self._iteration))  # the orders arrive together with the parameters
        for rank, worker in self._workers.items():
            worker.begin(self._iteration, self._schedule.fractions.get(rank, 0.0))
        busy = {rank for _, rank, _ in self._ends}
        for rank in [rank for rank in self._in if rank not in busy]:
            self._workers[rank].finished(*self._in.pop(rank))
        for rank in [rank for rank in self._workers if rank not in busy]:
            self._take(rank)
        done: list[tuple[int, int, float]] = []  # (rank, chunk, seconds)
        reported = passes = 0
        useful: list[float] = []
        while not self._recovered:
            wake = self._coordinator.wake
            if not self._ends and wake == inf:
                return Simulated(inf, len(done), tuple(useful))
            if not self._ends or wake < self._ends[0][0]:
                self._now = wake
                self._bring(events.Tick(wake))
                continue
            self._now, rank, chunk = heappop(self._ends)
            (iteration, _), piece, took = self._in.pop(rank), self._pieces[rank], self._takes(rank)
            wanted, _ = self._workers[rank].finished(iteration, chunk)
            if iteration < self._iteration:
                self._take(rank)
                continue
            passes += 1
            done += [(rank, one, took / len(piece)) for one in piece]
            reported += wanted * len(piece)
            event = events.Report if wanted else events.Abandoned
            self._take(rank)
            self._bring(event(rank, self._iteration, chunk, self._now, took, others=piece[1:]))
            useful += [self._now] * (self._num_chunks * self._parts - self._coordinator.books.missing - len(useful))
        return self._result(done, tuple(useful), reported, passes)

    def _result(
        self, done: Sequence[tuple[int, int, float]], useful: tuple[float, ...], reported: int, passes: int
    ) -> Simulated:
        used = {(rank, chunk): seconds for rank, chunk, seconds in done if self.used(rank, chunk)}
        spent = sum(seconds for _, _, seconds in done)
        for end, rank, _ in self._ends:
            if self._in[rank][0] == self._iteration:
                left = end - self._now if self._breaks_off else 0.0
                spent += max(0.0, self._takes(rank) - left)
        return Simulated(
            time=self._now,
            computed=len(done),
            useful=useful,
            spent=spent,
            used=sum(used.values()),
            reported=reported,
            orders=self._orders,
            contributors=len({rank for rank, _ in used}),
            passes=passes,
        )

    def used(self, rank: int, chunk: int) -> bool:
        """Whether the copy of this rank is in the newest gradient."""
        return self._coordinator.books.used(rank, chunk)

    def _cost(self, chunk: int) -> float:
        return 1.0 if self._costs is None else self._costs[chunk]

    def _take(self, rank: int) -> None:
        chunk = self._workers[rank].take(self._passes.joins)
        if chunk is None:
            return
        self._in[rank], self._pieces[rank] = (self._iteration, chunk), self._workers[rank].piece
        self.begun += [(rank, one, self._now) for one in self._pieces[rank]]
        if isfinite(self._seconds[rank]):
            heappush(self._ends, (self._now + (self._takes(rank) + self._passes.pause), rank, chunk))

    def _takes(self, rank: int) -> float:
        return self._seconds[rank] * (self._passes.cost + sum(map(self._cost, self._pieces[rank])))

    def _bring(self, event: events.Event) -> None:
        carry_out(self._coordinator.handle(event), self)

    # what the coordinator wants done

    def finish(self) -> None:
        self._recovered = True

    def share(self, contributors: tuple[tuple[int, int, int], ...]) -> None:
        self._bring(events.Summed())

    def commit(self, chunk: int, contributors: tuple[int, ...], told: Roles, serial: int) -> None:
        for worker, _ in told:
            if self._passes.joins:
                self._workers[worker].commit(self._iteration, chunk)

    def discard(self, worker: int, chunk: int) -> None:
        self._workers[worker].discard(self._iteration, chunk)

    def invalidate(self, worker: int, chunk: int, attempt: int) -> None:
        self._workers[worker].invalidate(self._iteration, chunk, attempt)

    def skip(self, worker: int, chunk: int, recovered: bool) -> None:
        self._orders += 1
        state = self._workers[worker]
        (state.discard if recovered else state.skip)(self._iteration, chunk)

    def queue(self, worker: int, chunks: tuple[int, ...]) -> None:
        self._orders += max(1, len(chunks))
        self._workers[worker].queue(self._iteration, chunks)
        if worker not in self._in and self._workers[worker].iteration == self._iteration:
            self._take(worker)
