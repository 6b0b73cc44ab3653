"""An observer for the simulated world, which looks at what the server writes down."""

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from psgc.record.run_record import RunRecord
from psgc.run_rows import IterationRow, Outcome, WorkerEvent
from psgc.server.observer import Approximation, IterationRecord


@dataclass
class Observer:
    """Keeps what the server writes down of the chunks."""

    world: Any
    lost_once: set[int] = field(default_factory=set)

    def chunk(self, worker: int, chunk: int, iteration: int, start: float, seconds: float, outcome: Outcome) -> None:
        self.world.used[chunk] += outcome == Outcome.USED and iteration == self.world.server.log.row.iteration

    def iteration(self, row: IterationRecord) -> None:
        world = self.world
        if row.recovered or row.missing:  # it was finished
            assert row.recovered == world.plan.num_chunks - len(world.incomplete)
            copies = dict.fromkeys(range(world.plan.num_chunks), world.plan.parts)
            copies |= {chunk: len(roles) for chunk, roles in world.incomplete.items()}
            if world.case.combined:  # a copy that is lost was shown right all the same, and another one counts
                assert all(world.used[chunk] >= world.plan.parts for chunk in world.compared)
                copies |= {chunk: world.used[chunk] for chunk in world.compared}
            else:
                copies |= world.compared
            assert +world.used == +Counter(copies)
            assert row.loss == pytest.approx(world.loss(row.iteration))
            assert row.missing == len(world.incomplete)
            lacking = world.plan.parts * len(world.incomplete) - sum(map(len, world.incomplete.values()))
            assert row.error_measure == lacking / (world.plan.parts * world.plan.num_chunks)
        world.used.clear()

    def approximate(self, approximation: Approximation) -> None:
        self.world.counts["approximate"] += 1
        assert approximation.incomplete
        assert approximation.used is approximation.plain

    def stepped(self, done: int, row: IterationRow, params: object) -> bool:
        assert done == self.world.iteration + 1 == row.iteration + 1
        return False

    def say(self, line: str) -> None:
        """A gradient that takes long is said, and decides nothing."""

    def wrong(self, worker: int, host: str, iteration: int, reason: str) -> None:
        assert self.world.case.verify

    def spoiled(self, iteration: int) -> str:
        assert self.world.case.verify
        return ""

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None:
        self.world.check_reason(worker, reason)
        self.world.counts["lost"] += 1
        self.lost_once.add(worker)

    def returned(self, worker: int, iteration: int) -> None:
        assert not self.world.nodes[worker].dead or not self.world.nodes[worker].told_dead
        self.world.counts["returns"] += 1

    def failure_text(self, worker: int, text: str) -> str:
        return text


class Record(RunRecord):
    """Of losses and returns, in memory, for a rank that takes over."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        written = SimpleNamespace(events=self.events, event=self.events.append, chunk=lambda *_: None)
        super().__init__(written, None)  # type: ignore[arg-type]

    def say(self, line: str) -> None: ...


class LateObserver(Observer):
    """For `terms`: nothing is written any more when rank 0 has died."""

    def chunk(self, *arguments: Any) -> None:
        if not self.world.is_orphaned:
            super().chunk(*arguments)

    def iteration(self, row: IterationRecord) -> None:
        if not self.world.is_orphaned:
            super().iteration(row)
            self.world.history.rows.append(row.iteration)

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None:
        super().lost(worker, host, iteration, reason)
        if not self.world.is_orphaned:
            self.world.history.record.lost(worker, host, iteration, reason)

    def returned(self, worker: int, iteration: int) -> None:
        super().returned(worker, iteration)
        assert worker not in self.world.history.failed, "it was lost for good"
        if not self.world.is_orphaned:
            self.world.history.record.returned(worker, iteration)

    def failure_text(self, worker: int, text: str) -> str:
        self.world.history.failed.add(worker)
        return super().failure_text(worker, text)
