"""Server and workers together: the world of `world`, with blocks between all ranks and a NumPy problem.

Every rank runs the production code, from the loops to replicas, exchanges and states. Ranks die or stop at the steps of
the protocol at which faults can be injected, between two instructions of their loop. All replicas that are at one
iteration are the same to the last bit.
"""

from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from psgc import vectors
from psgc.aggregation import allreduce, pool, replica, slices
from psgc.aggregation.map import Map
from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.errors import RunFailed
from psgc.messages import Kind, Records
from psgc.optimizer import Adam, Momentum, Optimizer
from psgc.server import loop as server_loop
from psgc.server import outbox
from psgc.server.events import COLLECTING
from psgc.server.outbox import LASTING
from psgc.server.summing import Summing
from psgc.workers import reports as worker_reports
from tests.simulation.case import Case, Fault, Nap
from tests.simulation.mesh import Link, MeshEnd, shared
from tests.simulation.node import Killed
from tests.simulation.replicated_node import ReplicatedNode, SlowReplica, Told
from tests.simulation.world import STEPS, World
from tests.unit.kept import is_empty

LARGEST = 64  # bytes of a block: 8 entries
SMALL = 16  # bytes from which a slice is cut into several blocks
CHECKED = 2  # digests are compared at every so many iterations
BURST = 4  # vectors that come at once, at most
AT_REST = (
    60  # times in a row that nothing happens: a rank that was sent much is sent the rest once it says that all is well
)


class WatchedSumming(Summing):
    """world: looks at each map."""

    def __init__(self, world: "ReplicatedWorld", *arguments: Any, **others: Any) -> None:
        self._world = world
        super().__init__(*arguments, **others)
        mapped = self.allreduce.mapped
        self.allreduce.mapped = lambda made, own: (world.check_map(made), mapped(made, own))  # type: ignore

    def follows(self, worker: int) -> bool:
        """Whether the worker needs no state."""
        return bool(self.states.replicas.following([worker]))

    @property
    def gradient(self) -> np.ndarray:
        """Loss and gradient error are read from it."""
        self._world.read = super().gradient.copy()
        return super().gradient

    def hand_out(self, gradient: np.ndarray, now: float) -> None:
        self._world.read = gradient.copy()
        super().hand_out(gradient, now)


class ReplicatedWorld(World):
    """As World. faults with a step happen at that step of the protocol."""

    nodes: dict[int, ReplicatedNode]  # type: ignore[assignment]
    read: np.ndarray  # the newest gradient that the server has read

    def __init__(self, case: Case, thorough: bool = False) -> None:
        self.params: dict[int, bytes] = {}  # of the replicas, by iteration
        self.states: dict[int, tuple[Any, ...]] = {}  # the same with the optimizer's
        self.at_steps = [fault for fault in case.faults if fault.step]
        self.times: Counter[Fault] = Counter()  # that a worker was at the step of a fault
        self.memories = shared(case.hosts, case.dim)
        super().__init__(case, thorough)

    def connect(self) -> None:
        case, clock = self.case, self.clock
        ranks = range(self.plan.num_workers + 1)
        self.links = {(a, b): Link() for a in ranks for b in ranks if a != b}
        eager = lambda: self.choose(2) == 0  # noqa: E731
        with ExitStack() as stack:
            self.replace(stack)
            self.nodes = {
                rank: ReplicatedNode(
                    *(rank, self.plan, case.combined, case.dim, self.silence, self.follows, clock, case.verify),
                    end=end,
                    injector=Told(partial(self.at, rank)),
                    check=partial(self.check_replica, rank),
                    params=self.params,
                    replica=SlowReplica(self.new_optimizer(), Backend(), end.wake),
                    last=case.num_iterations,
                    reproducible=case.reproducible,
                    fraction=case.fraction,
                )
                for rank in ranks[1:]
                if (end := self.mesh_end(rank, eager))
            }
        self.end = self.mesh_end(0, eager, self.advance, self.is_cut_off, self.check_sent)  # type: ignore[assignment]

    def mesh_end(self, rank: int, *more: Any) -> MeshEnd:
        """The transport of a rank."""
        end = MeshEnd(rank, self.links, self.clock, *more)
        if self.case.hosts:
            end.shared = self.memories[rank]
        return end

    def replace(self, stack: ExitStack) -> None:
        for module in (slices, pool):
            stack.enter_context(mock.patch.object(module, "BLOCK", LARGEST))
        stack.enter_context(mock.patch.object(pool, "LEAST_ROOM", 0))
        stack.enter_context(mock.patch.object(vectors, "BUNDLE", 0))  # receives have room for one vector
        for module in (outbox, worker_reports):
            stack.enter_context(mock.patch.object(module, "UNHEARD", self.case.unheard))
        for least in ("LEAST_BLOCK", "LEAST_WITHIN_HOST"):
            stack.enter_context(mock.patch.object(slices, least, SMALL))
        if self.case.dim % 8 != 1:  # a slice for each rank, otherwise for few
            stack.enter_context(mock.patch.object(slices, "LEAST_SLICE", SMALL))
        stack.enter_context(mock.patch.object(pool, "time", self.clock))
        stack.enter_context(mock.patch.object(replica, "CHECKED", CHECKED))
        stack.enter_context(mock.patch.object(server_loop, "Summing", partial(WatchedSumming, self)))
        if self.case.dim % 2:  # commits go at once, as those of large gradients
            stack.enter_context(mock.patch.object(server_loop, "SMALL", 0))

    def replica(self) -> Replica:
        return SlowReplica(self.optimizer(), Backend(), self.end.wake)

    def new_optimizer(self) -> Optimizer:
        """One with numbers and vectors in its state, or with vectors alone."""
        return Adam(0.1, 0.9, 0.99, 1e-8) if self.case.dim % 2 else Momentum(0.5, 0.9, nesterov=False)

    def optimizer(self) -> Optimizer:
        """That of rank 0, which looks at each gradient."""
        optimizer = self.new_optimizer()
        step = optimizer.step

        def checked(params: np.ndarray, gradient: np.ndarray, iteration: int = 0) -> np.ndarray:
            self.check_exact(gradient)
            assert self.read.tobytes() == gradient.tobytes(), "the server has read another gradient"
            self.counts["iterations"] += 1
            return step(params, gradient, iteration)

        optimizer.step = checked  # type: ignore[method-assign]
        return optimizer

    @property
    def summing(self) -> WatchedSumming:
        return self.server.summing  # type: ignore[return-value]

    @property
    def rank_0(self) -> allreduce.AllReduce:
        return self.summing.allreduce

    def begin(self, iteration: int) -> None:
        super().begin(iteration)
        assert self.rank_0.steps == iteration
        self.check_replica(0, self.rank_0.replica)

    # what must hold

    def check_too_few(self, text: str) -> None:
        assert self.rank_0.steps < self.case.num_iterations, f"a finished run fails: {text}"
        super().check_too_few(text)

    def check_reason(self, worker: int, reason: str) -> None:
        assert "differ" not in reason, reason
        super().check_reason(worker, reason)

    def check_replica(self, rank: int, replica: Replica) -> None:
        """It is the same as all others that have been at this iteration."""
        steps, params = replica.steps, replica.params.tobytes()
        assert self.params.setdefault(steps, params) == params, f"rank {rank} differs at iteration {steps}"
        if not replica.is_stepping:  # else the optimizer may be further
            _, vectors, numbers = replica.snapshot()
            state = tuple(np.asarray(vector).tobytes() for vector in vectors), numbers
            assert self.states.setdefault(steps, state) == state, f"rank {rank}'s optimizer differs at {steps}"

    def check_map(self, made: Map) -> None:
        watch = self.watch
        if self.case.combined:
            assert watch.it.phase == COLLECTING, "a map while something is done again"
            assert tuple(sorted(map(tuple, made.contributors))) == watch.contributors()
        else:
            assert watch.finished, "a map before the gradient is known"
            assert [contributor.rank for contributor in made.contributors] == [0]
        assert {*made.receivers} <= {0, *watch.it.membership.live}
        assert {part.owner for part in made.slices} <= ({*made.receivers} if self.case.allreduce else {0})
        self.counts["maps after the first"] += made.attempt > 0
        self.counts["left out"] += len(watch.it.membership.live) + 1 - len(made.receivers)

    def check_sent(self, dest: int, records: Records) -> None:
        lasting = np.isin(records["kind"], LASTING).all()
        assert dest not in self.end.forgotten or lasting, "told what to do now to a worker that is lost"
        self.counts["states"] += bool((records["kind"] == Kind.GIVE).any())

    def check_end(self) -> None:
        """Everybody who takes part has the same parameters, or knows that it lacks them; nothing is left over."""
        self.naps.clear()
        try:
            for _ in range(STEPS):
                lost = self.counts["lost"]
                self.server.poll()
                if self.idle > AT_REST and self.counts["lost"] == lost:  # else others are told in the next poll
                    break
        except RunFailed:
            return
        self.check_replica(0, self.rank_0.replica)
        self.check_empty(self.rank_0)
        away = self.nodes.keys() - self.here()
        for rank in self.here():
            node = self.nodes[rank]
            assert away <= node.end.forgotten | node.end.told, f"rank {rank} was not told who left"
            if node.allreduce.steps == self.case.num_iterations:
                self.counts["workers at the end"] += 1
                self.check_empty(node.allreduce)
            else:
                assert not self.summing.follows(rank), "rank 0 does not know that it needs a state"
                self.counts["behind at the end"] += 1

    def check_empty(self, it: allreduce.AllReduce) -> None:
        assert is_empty(it.exchange), "exchanges are left over"
        assert not it.is_busy
        assert not it.pool.in_use, "blocks are left over"
        assert not it.receiver.incoming, "states are left over"
        assert len(it.blocks.gradients) + len(it.blocks.spare) <= 4

    # faults at steps of the protocol

    def at(self, rank: int, step: str, iteration: int) -> None:
        for fault in [fault for fault in self.at_steps if (fault.worker, fault.step) == (rank, step)]:
            if iteration < fault.first:
                continue
            self.times[fault] += 1
            if self.times[fault] <= fault.after:
                continue
            self.at_steps.remove(fault)
            self.counts[f"{fault.kind} {step}"] += 1
            match fault.kind:
                case "cut off":
                    self.cut_off.add(rank)
                case "raises":
                    self.about_to_fail.add(rank)
                case "stops":
                    now = self.iteration, 1 + fault.after % 2, self.steps - self.began
                    self.naps += [Nap(kind, rank, *now, stubborn=True) for kind in ("deaf", "slow", "mute")]
                case "dies":
                    self.counts["deaths"] += 1
                    self.nodes[rank].die(kept=self.choose(4))
                    raise Killed

    # a step

    def is_stepping(self, node: ReplicatedNode | None) -> bool:
        return (node.allreduce if node else self.rank_0).replica.is_unfinished  # type: ignore[attr-defined]

    def possible(self) -> tuple[World.Possible, World.Possible, World.Possible]:
        where: tuple[World.Possible, ...] = ([], [], [])  # what can happen, those that are asleep, never
        able, chatter = where[0], []
        asleep = {kind: [0] * (len(self.nodes) + 1) for kind in ("deaf", "slow", "mute", "clogged", "late", "away")}
        for rank, naps in self.napping().items():
            for kind, nap in naps.items():
                asleep[kind][rank] = 1 + nap.stubborn  # place in `where`
        deaf, slow, mute, clogged, late, _ = asleep.values()
        ranks: list[tuple[int, Any]] = [(0, None), *self.nodes.items()]
        dead = [rank for rank, node in self.nodes.items() if node.dead]
        for rank, node in ranks:
            if rank in dead:
                continue
            end = node.end if node else self.end
            vectors: tuple[list[int], ...] = ([], [], [])  # sources
            for source, _ in ranks:
                if source == rank or not ((link := self.links[source, rank]).control or link.vectors):
                    continue
                reached = deaf[rank] if deaf[rank] > mute[source] else mute[source]
                if link.control:
                    to = chatter if not (rank or reached) and link.only_says_alive() else where[reached]
                    to.append((partial(ReplicatedWorld.control_comes, source=source), node))
                if link.vectors and end.posted:
                    vectors[max(reached, clogged[rank], late[source])].append(source)
            for sources, to in zip(vectors, where, strict=True):
                if sources:
                    to.append((partial(ReplicatedWorld.vectors_come, sources=sources), node))
            able += [(partial(ReplicatedWorld.death_is_seen, dead=d), node) for d in dead if d not in end.told]
            # before anybody has done a chunk there is no limit, and nobody is given up for one
            in_node = where[slow[rank] if self.server.cluster.detector.slowest else min(1, slow[rank])]
            if self.is_stepping(node):
                where[min(1, slow[rank])].append((ReplicatedWorld.step_is_made, node))
            if node is None:
                continue
            if node.work is not None:
                in_node.append((World.finish, node))
            elif not node.waiting:
                able.append((World.take, node))
            if end.has_news:
                able.append((World.spin, node))
            if self.clock.now - node.last_sent > node.silence:
                chatter.append((World.spin, node))
        return able, where[1], chatter

    def control_comes(self, node: ReplicatedNode | None, source: int) -> None:
        (node.end if node else self.end).control_comes(source)
        if node:
            node.spin()

    def vectors_come(self, node: ReplicatedNode | None, sources: list[int]) -> None:
        end = node.end if node else self.end
        for _ in range(1 + self.choose(BURST)):
            if not (end.posted and sources):
                break
            source = sources[self.choose(len(sources))]
            vectors = self.links[source, end.rank].vectors
            end.vector_comes(source, self.choose(len(vectors)))
            if not vectors:
                sources = [other for other in sources if other != source]
        if node:
            node.spin()

    def step_is_made(self, node: ReplicatedNode | None) -> None:
        (node.allreduce if node else self.rank_0).replica.may_end = True  # type: ignore[attr-defined]
        if node:
            node.spin()

    def death_is_seen(self, node: ReplicatedNode | None, dead: int) -> None:
        """What has arrived comes first."""
        end = node.end if node else self.end
        if not self.links[dead, end.rank].is_empty and self.choose(2):
            return
        end.death_is_seen(dead)
        if node:
            node.spin()
        else:
            self.nodes[dead].told_dead = True
