"""Server and workers together, over a network that delivers in any order that MPI allows, with deaths and returns.

Everything of server and workers is the production code, from the loops to encoders and decoder. `World` stands for MPI,
the compute threads and the clock. A `Case` says who holds what, and at every step which message arrives, which compute
thread goes on, and how much time passes. Workers are *deaf* (nothing reaches them), *slow* (no chunk gets done) or
*mute* (nothing of theirs arrives) for whole iterations. Their processes die, with or without a last word; they are
given up although they live; their gradients raise. What must hold is asserted where it happens.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from psgc import processes
from psgc.aggregation.replica import Replica
from psgc.aggregation.tree import Tree
from psgc.backend import Backend
from psgc.coding import worst_condition
from psgc.config import Config
from psgc.errors import PsgcError, RunFailed, UserError
from psgc.optimizer import Optimizer
from psgc.run.gradient_error import unseen
from psgc.run_rows import FOR_GOOD
from psgc.schedules import SCHEDULES
from psgc.schedules.learning import Learning
from psgc.server import cluster as server_cluster
from psgc.server import links as server_links
from psgc.server import loop as server_loop
from psgc.server.driver import ProblemDriver
from psgc.server.loop import Server
from psgc.server.settings import ServerSettings
from psgc.workers import loop as worker_loop
from psgc.workers import mailbox as worker_mailbox
from psgc.workers import reports as worker_reports
from tests.simulation import schedules
from tests.simulation.beliefs import check_beliefs, check_nobody_rests
from tests.simulation.case import Case, Nap
from tests.simulation.network import Clock
from tests.simulation.node import Node
from tests.simulation.outputs import Observer
from tests.simulation.schedules import FACTORIES, FIXED, Reordering
from tests.simulation.watched import Watch, WatchedCoordinator
from tests.unit.kept import held_chunks
from tests.unit.scripted import config_of

STEPS = 4000  # events of one iteration; more, and it does not end
PATIENCE = 200  # times in a row that the schedule may wake up while nothing else can happen
AGES = 1e6  # seconds; the schedule waits twice as long each time, and a clock of 1e60 s does not show 1 s any more
LONG = 30.0  # a worker says that all is well when it was silent for a quarter of that, or of the timeout
SECONDS = (1.0, 0.1, 1.0, 3.0, 1.0, 0.01, 1.0, 50.0)  # that a chunk takes
PASSING = (1.0, 0.1, 1.0, 3.0, 1.0, 0.01, 1.0)  # seconds that pass between two events


class World:
    """thorough: compare whole states as well, which takes its time."""

    watch: Watch  # of the coordinator

    def __init__(self, case: Case, thorough: bool = True) -> None:
        self.case = case
        self.plan = case.plan
        self.thorough = thorough
        self.clock = Clock()
        self.began_at = self.clock.now  # the iteration
        self.silence = min(case.timeout, LONG) / 4
        self.every = (case.verify.every or 0) if case.verify else 0
        self.is_idle = bool(case.verify and case.verify.idle)
        self.follows = (
            "" if case.schedule in ("reordering", "dynamic") else "fixed" if case.schedule in FIXED else "skipping"
        )
        shape = case.num_iterations, self.plan.num_chunks, case.dim
        rng = np.random.default_rng(7)
        self.table = rng.normal(size=shape) if case.reproducible else rng.integers(-9, 10, shape).astype(float)
        self.exactness = 1e-10 * self.plan.num_chunks * worst_condition(self.plan.coding_matrix, self.plan.assignment)
        self.counts: Counter[str] = Counter()
        self.iteration = -1
        self.steps = 0
        self.began = 0  # the step in which the iteration did
        self.events = 0  # that have happened since
        self.idle = 0  # steps since anything but time could go on
        self.faults = [fault for fault in case.faults if not fault.step]
        self.naps = list(case.naps)
        self.cut_off: set[int] = set()
        self.about_to_fail: set[int] = set()
        self.failed: set[int] = set()  # chunks, each on one worker only
        self.used: Counter[int] = Counter()  # copies of each chunk that are part of the gradient
        self.connect()

    def connect(self) -> None:
        """The workers, and the server's end of the network."""
        raise NotImplementedError

    def choose(self, below: int) -> int:
        self.steps += 1
        choices = self.case.choices
        return (choices[self.steps % len(choices)] + self.steps // len(choices)) % below

    # a run

    def run(self) -> None:
        """All iterations, or until too few workers are left."""
        with ExitStack() as stack:
            self.replace(stack)
            for module in (processes, server_links, server_loop, worker_loop, worker_mailbox, worker_reports):
                stack.enter_context(mock.patch.object(module, "time", self.clock))
            stack.enter_context(mock.patch.dict(SCHEDULES, reordering=Reordering))
            stack.enter_context(mock.patch.object(server_cluster, "SCHEDULES", FACTORIES))
            stack.enter_context(mock.patch.object(schedules, "FRACTION", self.case.fraction))
            stack.enter_context(mock.patch.object(Learning, "fraction", return_value=self.case.fraction))
            stack.enter_context(mock.patch.object(server_loop, "Coordinator", partial(WatchedCoordinator, self)))
            case = self.case
            config = config_of(
                case.timeout,
                case.reassigning,
                schedule=case.schedule,
                transfer="combined" if case.combined else "per_pass" if case.fraction else "per_chunk",
                recovery=case.recovery,
                verify=case.verify,
                aggregation="allreduce" if case.allreduce else "server",
                iterations=case.num_iterations,
                reproducible=case.reproducible,
            )
            self.server = self.make_server(config)
            try:
                self.server.run(np.zeros(case.dim), self.last, begins=self.begin)
            except (RunFailed, UserError) as error:
                self.stopped(error)
                return
            self.ended()

    @property
    def last(self) -> int:
        """The iteration that the server ends before."""
        return self.case.num_iterations

    def make_server(self, config: Config) -> Server:
        driver = ProblemDriver(self.replica())
        settings = ServerSettings(config=config, plan=self.plan, driver=driver)
        return Server(self.end, Backend(), Observer(self), settings)

    def stopped(self, error: PsgcError) -> None:
        """The run cannot go on."""
        self.check_too_few(str(error))
        self.counts["stopped with too few workers"] += 1

    def ended(self) -> None:
        """The run has had all iterations."""
        with suppress(RunFailed):
            for _ in range(STEPS):  # what is still on its way changes nothing
                self.server.poll()
                if self.idle:
                    break
        self.check_end()

    def replace(self, stack: ExitStack) -> None:
        """Put what only this world has in the place of what the production code uses."""

    def replica(self) -> Replica:
        """That of rank 0."""
        return Replica(self.optimizer(), Backend(), self.end.wake)

    def optimizer(self) -> Optimizer:
        """That of rank 0."""
        raise NotImplementedError

    def check_end(self) -> None:
        raise NotImplementedError

    def begin(self, iteration: int) -> None:
        self.iteration, self.began, self.events = iteration, self.steps, 0
        self.began_at = self.clock.now
        self.used.clear()
        assert not any(map(self.has_struck_out, self.here())), "a corrupt worker takes part"

    def check_exact(self, gradient: np.ndarray) -> None:
        gradients = self.table[self.iteration]
        expected = gradients.sum(axis=0)
        self.incomplete = self.server.coordinator.books.incomplete()  # as it is when the row of the iteration is closed
        self.compared = self.watch.compared()
        for chunk, contributors in self.incomplete.items():
            expected -= unseen(gradients[chunk], self.plan.coding_matrix, contributors)
        told = [chunk for chunk in range(self.plan.num_chunks) if self.watch.uses_a_wrong_copy(chunk)]
        # with `combined` a copy that counted may have been found wrong since then, and done again by others
        if told and not np.allclose(gradient, expected, rtol=0, atol=self.exactness):
            passed = [chunk for chunk in told if self.watch.is_unseen(chunk)]
            if self.is_idle:  # others were found in time, and done again
                assert passed
                assert {*passed}.issuperset(filter(self.watch.counts_wrong, told))
            else:
                assert passed == told
            self.counts["wrong unseen"] += 1
            return
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=self.exactness)
        if self.case.reproducible:
            tree = Tree[np.ndarray]()
            for chunk, row in enumerate(gradients):
                tree.add(chunk, row.copy())
            assert gradient.tobytes() == tree.total().tobytes(), "not the bits of the tree over all chunks"

    def check_too_few(self, text: str) -> None:
        here, needed = self.able(), self.plan.parts
        if self.every or "nobody is left to ask" in text:
            needed += 1 + max(Counter((when, chunk) for when, chunk, _ in self.case.wrong).values(), default=0)
        enough = len(here) >= needed
        if not self.case.reassigning:
            enough = enough and all(len(here & {*of}) >= needed for of in self.plan.holders())
        assert not enough, text

    def check_reason(self, worker: int, reason: str) -> None:
        assert not reason.startswith("it sent"), reason  # nothing here is malformed
        assert ("verify.strikes" in reason) <= self.has_struck_out(worker), reason
        has_text = reason.endswith(f"it raises{FOR_GOOD}")
        assert has_text == reason.startswith("chunk"), "a failure without its text"

    def loss(self, iteration: int) -> float:
        """That the row of an iteration is to say."""
        return float(self.plan.num_chunks)

    def has_struck_out(self, worker: int) -> bool:
        """Whether as many copies of a worker were wrong as it takes to give it up."""
        verify = self.case.verify
        return verify is not None and self.watch.strikes[worker] >= verify.strikes

    def here(self) -> set[int]:
        """The workers that the server counts on."""
        return self.nodes.keys() - set(self.server.cluster.detector.away)

    def able(self) -> set[int]:
        """Those of them that can take part."""
        return self.here()

    def is_cut_off(self, rank: int) -> bool:
        if rank in self.cut_off:
            self.cut_off.remove(rank)
            return True
        return False

    # a step

    def advance(self) -> list[Any]:
        """Let one or several things happen; what has arrived at the server."""
        if self.thorough:
            check_beliefs(self)
        messages: list[Any] = []
        for _ in range(1 + self.choose(3) // 2 * self.choose(4)):
            messages += self.step()
            if self.idle:
                break
        if self.idle and not self.end.arrived and self.server.coordinator.wake >= AGES:
            check_nobody_rests(self)
        return messages

    def step(self) -> list[Any]:
        self.faults_happen()
        able, asleep, chatter = self.possible()
        if not able:
            self.idle += 1
            assert self.idle < STEPS, "nothing happens any more"
            if not self.time_helps(able := asleep + chatter):  # those who are well say so meanwhile
                said = [what(self, node) for what, node in chatter]
                return [message for message in said if message is not None]
        else:
            self.idle = 0
            able += chatter
        self.events += 1
        assert self.events < STEPS, "it never ends"
        if self.choose(3) == 0:
            self.clock.now += self.case.pace * PASSING[self.choose(len(PASSING))]
        what, node = able[self.choose(len(able))]
        message = what(self, node)
        if self.thorough:
            assert node is None or node.alive() == len(held_chunks(node.state)), (
                "gradients in memory and chunks held are not the same"
            )
        return [] if message is None else [message]

    def time_helps(self, able: Sequence[Any]) -> bool:
        """Nothing but time goes on: whether anything of `able` does then."""
        wake = self.began_at + self.server.coordinator.wake
        if wake < self.began_at + AGES and self.idle <= PATIENCE:
            self.clock.now = max(self.clock.now, wake)
            return False
        self.clock.now += 0 if able else 1.0
        return bool(able)

    Possible = list[tuple[Callable[["World", Node], Any], Node]]

    def possible(self) -> tuple[Possible, Possible, Possible]:
        """What can happen; what of those that are asleep; what changes nothing but that a worker has been heard."""
        raise NotImplementedError

    def napping(self) -> dict[int, dict[str, Nap]]:
        """The naps of each worker at this moment, by kind."""
        naps: dict[int, dict[str, Nap]] = {}
        now, steps = self.iteration, self.steps - self.began
        for nap in self.naps:
            if (nap.first, nap.after) <= (now, steps) and now < nap.first + nap.length:
                of = naps.setdefault(nap.worker, {})
                if nap.stubborn or nap.kind not in of:
                    of[nap.kind] = nap
        return naps

    def faults_happen(self) -> None:
        while self.faults and (self.faults[0].first, self.faults[0].after) <= (self.iteration, self.steps - self.began):
            fault = self.faults.pop(0)
            node = self.nodes[fault.worker]
            if fault.kind == "cut off":
                self.cut_off.add(fault.worker)
            elif fault.kind == "raises":
                self.about_to_fail.add(fault.worker)
            elif not node.dead:
                self.counts["deaths"] += 1
                node.die(kept=self.choose(3))

    # what can happen

    def take(self, node: Node) -> None:
        node.take()

    def spin(self, node: Node) -> None:
        node.spin()

    def finish(self, node: Node) -> None:
        work = node.work
        assert work is not None
        if node.rank in self.about_to_fail and work.chunk not in self.failed and not work.is_check:
            self.about_to_fail.remove(node.rank)
            self.failed.add(work.chunk)
            node.fail()
        else:
            self.counts["pieces"] += len(work.piece) > 1
            row = self.table[(iteration := work.iteration), [*work.piece]].sum(axis=0)
            wrong = (what := (iteration, work.chunk, node.rank)) in self.case.wrong
            error = np.random.default_rng(what).uniform(1, 9, len(row)) if wrong else 0.0
            node.finish(row + error, SECONDS[self.choose(len(SECONDS))])
        node.spin()
