"""A run of the server's loop against a script, with a clock that the script moves."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from psgc import processes
from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.config import Coding, Recovery
from psgc.optimizer import make_optimizer
from psgc.plan import make_plan
from psgc.run_rows import Outcome
from psgc.server import links, loop
from psgc.server.driver import ProblemDriver
from psgc.server.loop import Server
from psgc.server.settings import ServerSettings
from tests.simulation.network import Clock
from tests.unit.scripted import Following, config_of, done

WORKERS, SEED, TIMEOUT = 4, 5, 30.0
approximate = partial(Recovery, mode="approximate")


class Run:
    """A server of so many workers, its transport, its clock, and what it told its observer.

    Chunk i has the gradient (2^i,). settings: of its configuration; given: other arguments of `Server`.
    iteration: the newest that has begun; steps: how many have been made.
    """

    def __init__(
        self, monkeypatch, schedule="static", workers=WORKERS, chunks_per_worker=2, replication=2, parts=1,
        combined=False, given=None, **settings,
    ):  # fmt: skip
        self.transport, self.clock = Following(workers + 1), Clock()
        self.iteration = -1
        self.rows, self.gradient_error, self.lost, self.returned, self.outcomes, self.said = [], [], {}, [], {}, []
        self.wrong, self.steps, self.is_enough = [], 0, lambda row, params: False
        for module in (loop, links, processes):
            monkeypatch.setattr(module, "time", self.clock)
        observer = SimpleNamespace(
            iteration=self.rows.append,
            approximate=self.gradient_error.append,
            stepped=self._stepped,
            lost=lambda worker, host, iteration, reason: self.lost.update({worker: (iteration, reason)}),
            returned=lambda worker, iteration: self.returned.append((worker, iteration)),
            chunk=self._chunk,
            failure_text=lambda worker, text: text or "it raised",
            wrong=lambda *what: self.wrong.append(what),
            say=self.said.append,
        )
        coding = Coding(chunks_per_worker=chunks_per_worker, replication=replication, parts=parts)
        self.plan = make_plan(coding, schedule, workers, SEED)
        transfer = "combined" if combined else "per_chunk"
        config = config_of(TIMEOUT, schedule=schedule, transfer=transfer, seed=SEED, **settings)
        driver = ProblemDriver(Replica(make_optimizer(config.optimizer), Backend(), self.transport.wake))
        given = ServerSettings(config=config, plan=self.plan, driver=driver, **(given or {}))
        self.server = Server(self.transport, Backend(), observer, given)

    def _begins(self, iteration):
        self.iteration = iteration

    def _stepped(self, done, row, params):
        self.steps = done
        return self.is_enough(row, params)

    def _chunk(self, worker, chunk, iteration, start, seconds, outcome):
        self.outcomes[worker, chunk, iteration] = Outcome(outcome)

    def follow(self, script, iterations, dim=1, first=0):
        self.transport.script = script
        return self.server.run(np.zeros(dim), iterations, first, begins=self._begins)

    def queues(self, iteration, workers, seconds=1.0):
        """The reports of these workers for all of their queues, which take so many seconds a chunk."""
        return [done(w, iteration, c, 2.0**c, seconds) for w in workers for c in self.plan.queues[w]]

    def seconds(self, number, *messages):
        """Time passes; in every second these arrive."""
        for _ in range(number):
            self.clock.now += 1.0
            yield list(messages)


@pytest.fixture
def make_run(monkeypatch):
    return lambda *arguments, **more: Run(monkeypatch, *arguments, **more)
