"""What rank 0's coordinator and schedule cost in large clusters, on a virtual clock; part of bench_overhead.py."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from psgc.config import Coding
from psgc.plan import make_plan
from psgc.schedules.dynamic import DynamicSchedule
from psgc.server.coordinator import Coordinator
from psgc.server.events import Event
from psgc.server.instructions import Instruction
from psgc.server.membership import Membership
from psgc.server.rebalance import queues_for
from psgc.simulation.virtual import VirtualCluster

ITERATIONS = 3


class TimedCoordinator:
    """A coordinator, and the CPU seconds that its events have taken, the schedule among them."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self.seconds = 0.0

    def handle(self, event: Event) -> list[Instruction]:
        began = time.process_time()
        instructions = self._coordinator.handle(event)
        self.seconds += time.process_time() - began
        return instructions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coordinator, name)


def measure_virtual(workers: int) -> tuple[int, float, float]:
    """workers, CPU seconds of rank 0 in an iteration (`blocks`, 16 chunks each), and to rebalance after a loss."""
    coding = Coding(assignment="blocks", chunks_per_worker=16, replication=3, coding_matrix="gaussian")
    plan = make_plan(coding, "dynamic", workers, seed=0)
    schedule = DynamicSchedule(plan.queues, plan.backups, plan.holders(), plan.parts)
    cluster: Any = VirtualCluster(plan.holders(), plan.queues, plan.parts, schedule)
    cluster._coordinator = coordinator = TimedCoordinator(cluster._coordinator)
    rng = np.random.default_rng(1)
    for _ in range(ITERATIONS):
        cluster.recover(dict(enumerate(rng.exponential(1.0, workers).tolist(), start=1)))
    everybody = Membership(plan.holders(), plan.parts, workers=plan.queues)
    began = time.process_time()
    membership = everybody.without([workers // 2])
    queues, backups = queues_for(membership, plan)
    DynamicSchedule(queues, backups, membership.holders, membership.parts).inherit(schedule)
    return workers, coordinator.seconds / ITERATIONS, time.process_time() - began


def virtual_table(rows: Sequence[tuple[int, float, float]]) -> str:
    """The rows of `measure_virtual` as Markdown."""
    lines = ["| workers (virtual clock) | CPU of rank 0 per iteration | waiting after a loss |", "|---|---|---|"]
    lines += [f"| {workers} | {cpu:.2f} s | {1e3 * waiting:.0f} ms |" for workers, cpu, waiting in rows]
    return "\n".join(lines)
