"""Server, workers and the user's scripts: the world of `replicated`, in which a script on each rank makes the steps.

The scripts begin alike. Each makes calls, waits for the sum of each, and makes a step with it; what passes between it
and the loop of its rank is the production code (`psgc.torch.hand_over`, `psgc.torch.working`, `psgc.torch.serving`).
Scripts are slow to make their next call, or in the middle of something; they end before that of rank 0, after it, or
with an error; one makes another call than the others, or goes on differently. Whoever has missed sums gets a state.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from unittest import mock

import numpy as np

from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.config import Config
from psgc.errors import PsgcError
from psgc.messages import Records
from psgc.run.ending import CalledOff
from psgc.server import ending, states
from psgc.server.loop import Server
from psgc.server.settings import ServerSettings
from psgc.torch import serving, working
from psgc.torch.serving import ScriptDriver
from psgc.torch.settings import OPEN_END
from tests.simulation.case import Case
from tests.simulation.mesh import Link
from tests.simulation.outputs import Observer
from tests.simulation.replicated import CHECKED, ReplicatedWorld
from tests.simulation.replicated_node import ReplicatedNode, Told
from tests.simulation.script_node import Script, ScriptNode
from tests.simulation.world import STEPS, World

PATIENCE = 10.0  # seconds that the scripts of workers have to come to their end
TAIL = 2  # entries of a vector behind the gradient: the loss and the number of examples
ENDS = ("ends", "raises there")
WRONG = (*ENDS, "another", "differs")  # what scripts do
STOPPED = {"deaf", "slow", "mute"}  # of a process: its script goes no further
NOTICED = 8  # calls after which it is known that a script differs
BEYOND = 3  # iterations after the end of rank 0's script in which others may still compute


class ScriptWorld(ReplicatedWorld):
    """As ReplicatedWorld. The script of rank 0 makes case.num_iterations calls."""

    nodes: dict[int, ScriptNode]  # type: ignore[assignment]
    is_ending = has_failed = False

    def __init__(self, case: Case, thorough: bool = False) -> None:
        super().__init__(case, thorough)
        self.faults = [fault for fault in self.faults if fault.kind not in WRONG]
        self.table = np.concatenate([self.table] + [self.table[:1]] * BEYOND)
        self.table[..., -1] = 1.0  # an example in each chunk

    def connect(self) -> None:
        self.sums: dict[int, bytes] = {}  # by iteration
        self.ahead: set[int] = set()  # ranks whose scripts have been further than the term begins
        ranks = self.link_ranks()
        self.scripts = {rank: Script(self, rank, self.case.dim) for rank in ranks}
        self.faulty = self.faulty_ranks()
        self.make_nodes(0, dict.fromkeys(ranks, True))

    def link_ranks(self) -> range:
        """All ranks, each with a link to each."""
        ranks = range(self.plan.num_workers + 1)
        self.links = {(a, b): Link() for a in ranks for b in ranks if a != b}
        return ranks

    def faulty_ranks(self) -> set[int]:
        naps = {nap.worker for nap in self.case.naps if nap.kind != "away"}
        return {fault.worker for fault in self.case.faults} | naps

    def make_nodes(self, first: int, alike: Mapping[int, bool]) -> None:
        """The workers, and the end of rank 0. alike: whether a worker has the state of iteration `first`."""
        case = self.case
        eager = lambda: self.choose(2) == 0  # noqa: E731
        with ExitStack() as stack:
            self.replace(stack)
            self.nodes = {
                rank: ScriptNode(
                    *(rank, self.plan, case.combined, case.dim, self.silence, self.follows, self.clock, case.verify),
                    end=self.mesh_end(rank, eager),
                    injector=Told(partial(self.at, rank)),
                    script=self.scripts[rank],
                    last=self.last,
                    first=first,
                    alike=alike.get(rank, False),
                    reproducible=case.reproducible,
                    fraction=case.fraction,
                )
                for rank in self.scripts
                if rank
            }
        self.end = self.mesh_end(  # type: ignore[assignment]
            *(0, eager, self.advance, self.is_cut_off, self.check_sent, self.kill)
        )

    def replace(self, stack: ExitStack) -> None:
        super().replace(stack)
        stack.enter_context(mock.patch.object(states, "CHECKED", CHECKED))
        stack.enter_context(mock.patch.object(serving, "WAITING_BYTES", self.case.waiting))
        for module in (working, ending):
            stack.enter_context(mock.patch.object(module, "time", self.clock))

    @property
    def last(self) -> int:
        return OPEN_END

    def make_server(self, config: Config) -> Server:
        it = self.scripts[0]
        driver = ScriptDriver(it.hand_over, it.replica, self.case.dim - TAIL, self.end.hosts, Backend())
        costs = partial(driver.costs, num_chunks=self.plan.num_chunks)
        settings = ServerSettings(config=config, plan=self.plan, has_loss=False, driver=driver, known_costs=costs)
        return Server(self.end, Backend(), Observer(self), settings)

    def is_stepping(self, node: ReplicatedNode | None) -> bool:
        return False  # the step of a script is one of its own events

    def loss(self, iteration: int) -> float:
        total = self.table[iteration].sum(axis=0)[-TAIL:]
        return float(total[0] / total[1])

    def kill(self, rank: int) -> None:
        if not self.nodes[rank].dead:
            assert rank in self.faulty or self.has_failed, "a process that is well is killed"
            self.counts["killed"] += 1
            self.nodes[rank].die(kept=0)

    def does(self, rank: int, kind: str, iteration: int) -> bool:
        """Whether the script of `rank` does something wrong with its call for `iteration`."""
        return any((it.worker, it.kind, it.first) == (rank, kind, iteration) for it in self.case.faults)

    # what must hold

    def check_sent(self, dest: int, records: Records) -> None:
        if not self.is_ending:  # then even the lost are told
            super().check_sent(dest, records)

    def check_replica(self, rank: int, replica: Replica) -> None:
        """Of the scripts: see `check_scripts`."""

    def check_sum(self, rank: int, iteration: int, vector: np.ndarray) -> None:
        if rank == 0:
            self.check_exact(vector)
            self.counts["iterations"] += 1
        content = np.asarray(vector).tobytes()
        assert self.sums.setdefault(iteration, content) == content, f"rank {rank} was given another sum of {iteration}"

    def check_too_few(self, text: str) -> None:
        assert not self.scripts[0].hand_over.is_ended, f"a finished run fails: {text}"
        if "has fallen behind" not in text:  # else nobody but rank 0 has a state, and it has none to give
            World.check_too_few(self, text)

    def able(self) -> set[int]:
        return super().able() - self.server.cluster.left_out

    def check_reason(self, worker: int, reason: str) -> None:
        may_be_behind = "has fallen behind" in reason and self.iteration in self.case.partial
        may_be_late = 0 in self.faulty
        has_loaded = any(is_loaded for _, is_loaded in self.scripts[worker].came.values())
        may_be_wrong = "differ" in reason and has_loaded  # the state of a rank that differs, before that was noticed
        assert may_be_behind or worker in self.faulty or may_be_late or may_be_wrong, f"worker {worker}: {reason}"
        reason_of = {"ended": "ends", "raises there": "raises there", "differ": "differs"}
        for said, kind in reason_of.items():
            assert said not in reason or any(fault.kind == kind for fault in self.case.faults), reason

    def stopped(self, error: PsgcError) -> None:
        if "another call" in str(error):
            assert any(fault.kind == "another" for fault in self.case.faults), error
            self.counts["another call"] += 1
        elif "every rank must run the same script" in str(error) or "rank 0 differs from" in str(error):  # most do
            assert any(fault.kind == "differs" for fault in self.case.faults), error
            self.counts["differs from the beginning"] += 1
        else:
            super().stopped(error)
        self.has_failed = True  # what is still being sent to a stopped rank may keep others
        self.scripts[0].hand_over.stop(error)
        self.stop_workers(-1)

    def ended(self) -> None:
        assert self.scripts[0].error is None
        self.stop_workers(self.scripts[0].hand_over.called + 1)
        assert self.scripts[0].iteration == self.length(0)

    def stop_workers(self, done: int) -> None:
        here, self.is_ending, self.events = self.here(), True, 0
        lacking = self.server.summing.states.lack_a_state()  # who is left out may hear so from STOP first
        self.at_steps = [fault for fault in self.at_steps if fault.kind != "stops"]  # here nobody would wake it up
        self.server.stop_workers(PATIENCE, done)
        self.naps.clear()
        for _ in range(STEPS):
            self.end.poll()
            if self.idle > 10:
                break
        for rank, script in self.scripts.items():
            if rank == 0 or not self.nodes[rank].dead:
                assert script.is_over, f"the script of rank {rank} does not end"
                late = rank and self.length(rank) > self.length(0)
                assert script.error is None or rank == 0 or late or isinstance(script.error, CalledOff), script.error
        if done >= 0:
            for rank in here - self.faulty:
                left = isinstance(self.scripts[rank].error, CalledOff)
                knows = self.nodes[rank].allreduce.is_behind or rank in lacking | self.server.observer.lost_once
                assert not left or knows, "left without a sum although it follows"
                self.counts["left behind" if left else "workers at the end"] += 1
        self.check_scripts()

    def check_scripts(self) -> None:
        """All scripts were the same, unless one differs on purpose: then it is noticed soon."""
        right = {iteration: content for iteration, (content, _) in self.scripts[0].came.items()}
        differs = any(fault.kind == "differs" for fault in self.case.faults)
        for rank, script in self.scripts.items():
            wrong: list[int] = []
            for iteration, (content, is_loaded) in script.came.items():
                is_right = right.get(iteration, content) == content
                may_differ = (differs if is_loaded else wrong) or self.does(rank, "differs", iteration)
                assert is_right or may_differ, f"rank {rank} differs at iteration {iteration}"
                wrong = [] if is_right else [*wrong, iteration]
                assert len(wrong) <= NOTICED, f"rank {rank} differs since iteration {wrong[0]}, and nobody notices"

    # a step

    def length(self, rank: int) -> int:
        """How many calls the script of a rank makes."""
        ends = [fault.first for fault in self.case.faults if fault.worker == rank and fault.kind in ENDS]
        return min(ends, default=self.case.num_iterations)

    def possible(self) -> tuple[World.Possible, World.Possible, World.Possible]:
        able, asleep, chatter = super().possible()
        naps = self.napping()
        for rank, script in self.scripts.items():
            node = self.nodes.get(rank)
            if node and not node.dead and node.may_say_goodbye:
                able.append((World.spin, node))
            if (script.is_over and script.hand_over.is_ended) or (node and (node.dead or node.work is not None)):
                continue
            if script.is_in_call and not script.hand_over.is_due():
                continue
            found = naps.get(rank, {})
            if {kind for kind, nap in found.items() if nap.stubborn} >= STOPPED:
                continue
            (asleep if {"away", "slow"} & found.keys() else able).append(
                (partial(ScriptWorld.script_goes_on, rank=rank), node)
            )
        return able, asleep, chatter

    def script_goes_on(self, node: ScriptNode | None, rank: int) -> None:
        script = self.scripts[rank]
        if script.is_in_call:
            if not script.hand_over.make_state():
                script.take_answer()
        elif script.iteration < self.length(rank):
            script.call()
        else:
            script.end()
            if node:
                raises = any(fault.worker == rank and fault.kind == "raises there" for fault in self.case.faults)
                node.mailbox.ended(script.hand_over.called + 1, "it raises there" if raises else "", int(raises))
        if node:
            node.spin()

    def script_rests(self, rank: int) -> None:
        """It has the time to make its next call, unless it is away."""
        script = self.scripts[rank]
        if not {"away", "slow"}.isdisjoint(self.napping().get(rank, {})):
            return
        if script.is_in_call and script.hand_over.is_answered():
            script.take_answer()
        if not (script.is_in_call or script.is_over):
            self.script_goes_on(None, rank)

    def finish(self, node: ScriptNode) -> None:
        if not (node.work and node.mailbox.wants(node.work)) and self.choose(2):
            node.give_up()
            node.spin()
        else:
            super().finish(node)
