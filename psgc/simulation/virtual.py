"""One iteration on a virtual clock: the production coordinator, schedules and worker states, without MPI and arrays.

Messages take no time. As in production a worker goes on with the head of its queue without waiting for an answer, and
a recovered chunk that it is in is not broken off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, isfinite

from psgc.server.coordinator import Coordinator, Discard, Finish, Instruction
from psgc.server.dynamic_schedule import DynamicSchedule
from psgc.server.fixed_schedules import FixedSchedule
from psgc.server.group import Group
from psgc.server.orders import Queue, Skip
from psgc.workers.state import Report, WorkerState


@dataclass(frozen=True)
class Trial:
    """time: seconds until recovery, inf when it is impossible; computed: chunk copies finished by then.

    useful: when each copy was finished that a chunk still needed, ascending (N * l of them when it recovered).
    """

    time: float
    computed: int
    useful: tuple[float, ...] = ()


class VirtualCluster:
    """Workers and a server that live as long as several iterations do, so that a schedule can learn.

    holders[i]: ranks that hold chunk i; queues: by rank, as in psgc.plan.Plan; parts: l.
    """

    def __init__(
        self,
        holders: Sequence[Sequence[int]],
        queues: Mapping[int, Sequence[int]],
        parts: int,
        schedule: FixedSchedule,
    ) -> None:
        self._schedule = schedule
        self._num_chunks, self._parts = len(holders), parts
        self._coordinator = Coordinator(Group(holders, parts, workers=queues), schedule, combined=False)
        self._workers = {rank: WorkerState(rank, queue, len(holders), False) for rank, queue in queues.items()}
        self._in: dict[int, int] = {}  # rank -> the chunk it is in
        self._iteration = -1

    def know(self, seconds: Mapping[int, float]) -> None:
        """Tell a schedule that learns what each worker takes for a chunk (inf: it has failed)."""
        if isinstance(self._schedule, DynamicSchedule):
            self._schedule.estimates.update(seconds)

    def recover(self, seconds: Mapping[int, float]) -> Trial:
        """One iteration in which the worker of each rank takes so many seconds per chunk; inf: it has failed."""
        self._iteration += 1
        self._seconds = seconds
        self._ends: list[tuple[float, int, int]] = []  # (when, rank, chunk) for every worker that is in a chunk
        self._recovered = False
        self._now = 0.0
        self._carry_out(self._coordinator.begin(self._iteration))  # the orders arrive together with the parameters
        for worker in self._workers.values():
            worker.begin(self._iteration)
        for rank, chunk in self._in.items():  # work on an older iteration is dropped at once
            self._workers[rank].finished(self._iteration - 1, chunk)
        self._in.clear()
        for rank in self._workers:
            self._take(rank)
        computed = 0
        useful: list[float] = []
        needed = dict.fromkeys(range(self._num_chunks), self._parts)
        while not self._recovered:
            wake = self._coordinator.wake
            if not self._ends and wake == inf:
                return Trial(inf, computed, tuple(useful))
            if not self._ends or wake < self._ends[0][0]:
                self._now = wake
                self._carry_out(self._coordinator.tick(wake))
                continue
            self._now, rank, chunk = heappop(self._ends)
            computed += 1
            if needed[chunk]:
                needed[chunk] -= 1
                useful.append(self._now)
            del self._in[rank]
            done = self._workers[rank].finished(self._iteration, chunk)
            self._take(rank)
            event = self._coordinator.report if isinstance(done, Report) else self._coordinator.abandoned
            self._carry_out(event(rank, self._iteration, chunk, self._now, seconds[rank]))
        return Trial(self._now, computed, tuple(useful))

    def _take(self, rank: int) -> None:
        chunk = self._workers[rank].take()
        if chunk is None:
            return
        self._in[rank] = chunk
        if isfinite(self._seconds[rank]):
            heappush(self._ends, (self._now + self._seconds[rank], rank, chunk))

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Skip(rank, chunk, False):
                    self._workers[rank].skip(self._iteration, chunk)
                case Skip(rank, chunk) | Discard(rank, chunk):
                    self._workers[rank].discard(self._iteration, chunk)
                case Queue(rank, chunks):
                    self._workers[rank].queue(self._iteration, chunks)
                    if rank not in self._in and self._workers[rank].iteration == self._iteration:
                        self._take(rank)
                case Finish():
                    self._recovered = True
