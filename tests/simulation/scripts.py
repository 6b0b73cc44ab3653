"""Server, workers and the user's scripts: the world of `replicated`, in which a script on each rank makes the steps.

The scripts begin alike. Each makes calls, waits for the sum of each, and makes a step with it; what passes between it
and the loop of its rank is the production code (`psgc.torch.hand_over`, `psgc.torch.working`, `psgc.torch.serving`).
Scripts are slow to make their next call, or in the middle of something; they end before that of rank 0, after it, or
with an error; one makes another call than the others, or goes on differently. Whoever has missed sums gets a state.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from typing import Any
from unittest import mock

import numpy as np

from psgc.aggregation import replica
from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.config import Config
from psgc.errors import PsgcError, RunFailed
from psgc.messages import Kind, Records, record
from psgc.server import ending, replicated
from psgc.server.loop import Server
from psgc.server.settings import ServerSettings
from psgc.torch import working
from psgc.torch.hand_over import HandOver, Left, ScriptReplica, State
from psgc.torch.serving import Script as ServerScript
from psgc.torch.settings import OPEN_END
from psgc.torch.working import WithAllReduce
from psgc.workers.loop import SERVER
from psgc.workers.mailbox import Work
from tests.simulation.case import Case
from tests.simulation.mesh import Link, MeshEnd
from tests.simulation.outputs import Observer
from tests.simulation.replicated import CHECKED, ReplicatedWorld
from tests.simulation.replicated_node import ReplicatedNode, Told
from tests.simulation.world import STEPS, World

PATIENCE = 10.0  # seconds that the scripts of workers have to come to their end
TAIL = 2  # entries of a vector behind the gradient: the loss and the number of examples
ENDS = ("ends", "raises there")
WRONG = (*ENDS, "another", "differs")  # what scripts do
STOPPED = {"deaf", "slow", "mute"}  # of a process: its script goes no further
NOTICED = 8  # calls after which it is known that a script differs
OTHER = 0.5  # in the signature of another call


class WatchedHandOver(HandOver):
    """Tells the world what the script is given."""

    def __init__(self, world: "ScriptWorld", rank: int, state: Callable[[], bytes]) -> None:
        super().__init__(0, state=state)
        self._world, self._of = world, rank

    def give(self, iteration: int, vector: Any, is_own: bool = False) -> None:
        self._world.check_sum(self._of, iteration, vector)
        super().give(iteration, vector, is_own)


class WatchedReplica(ScriptReplica):
    is_unfinished = False  # the step of a script is one of its own events


class Script:
    """The script of one rank, with momentum. error: that has ended it, if one has.

    came: by iteration of its calls, its state then, and whether it had just loaded that.
    """

    def __init__(self, world: "ScriptWorld", rank: int, dim: int) -> None:
        self._world, self._rank = world, rank
        self.hand_over = WatchedHandOver(world, rank, self._state)
        self.iteration = 0  # of the call that it is in, or makes next
        self.params, self.velocity = np.zeros(dim), np.zeros(dim)
        self.is_in_call = self.is_over = self._has_loaded = False
        self.error: BaseException | None = None
        self.came: dict[int, tuple[bytes, bool]] = {}
        self.replica = WatchedReplica(self.hand_over, "float64", Backend())

    @property
    def signature(self) -> float:
        return self.iteration + OTHER * self._world.does(self._rank, "another", self.iteration)

    def call(self) -> None:
        costs = [1.0] * self._world.plan.num_chunks
        self.is_in_call, content = True, self._content()
        self.came[self.iteration] = content, self._has_loaded
        self._has_loaded = False
        digest = blake2b(content, digest_size=16).digest() if replica.is_checked(self.iteration, 0) else b""
        self.hand_over.call(
            self.iteration, self.iteration not in self._world.case.partial, self.signature, costs, costs, digest
        )

    def take_answer(self) -> None:
        """The newest call is answered."""
        self.is_in_call = False
        try:
            answer = self.hand_over.answer()
        except (PsgcError, Left) as error:
            self.error = error
            self.end()
            return
        if isinstance(answer, State):
            faults = [(fault.kind, fault.worker) for fault in self._world.case.faults]
            is_wrong = ("differs", self._rank) in faults  # then it may make the same call again, as the others make it
            assert answer.iteration > self.iteration - is_wrong
            self.iteration, self._has_loaded = answer.iteration, True
            self.params[:], self.velocity[:] = np.split(np.frombuffer(answer.blob), 2)
            self._world.counts["states loaded"] += 1
        else:
            self.velocity[:] = 0.5 * self.velocity + answer.vector
            self.params -= 0.1 * self.velocity
            self.iteration += 1
            if answer.is_own:
                answer.vector.fill(np.nan)
        if self._world.does(self._rank, "differs", self.iteration):
            self._world.counts["differs"] += 1
            self.params += self._rank

    def may_do(self, iteration: int) -> bool:
        """Whether it may do a chunk of this iteration. Of one that is over at rank 0 it counts for nothing."""
        return iteration == self.iteration or iteration < self._world.iteration

    def end(self) -> None:
        self.is_over = True
        self.hand_over.end()

    def _state(self) -> bytes:
        assert self.is_in_call, "the state of a script that is between two calls"
        return self._content()

    def _content(self) -> bytes:
        return np.concatenate([self.params, self.velocity]).tobytes()


class ScriptNode(ReplicatedNode, WithAllReduce):
    """One worker. script: of this rank; has_left: its process has left the run."""

    def __init__(self, *arguments: Any, script: Script, **others: Any) -> None:
        self.script, self._waits, self._has_said_goodbye, self.has_left = script, False, False, False
        others |= {"hand_over": script.hand_over, "replica": script.replica, "last": OPEN_END, "alike": True}
        super().__init__(*arguments, **others)
        script.hand_over.alert = lambda: setattr(self, "waiting", False)

    @property
    def waiting(self) -> bool:  # type: ignore[override]
        script = self.script
        return self._waits or self._has_said_goodbye or not script.is_in_call or script.hand_over.is_due()

    @waiting.setter
    def waiting(self, waits: bool) -> None:
        self._waits = waits

    @property
    def loss(self) -> float:  # type: ignore[override]
        return self.script.signature

    def next_work(self) -> Work:
        work = self.mailbox.take(self.script.hand_over.is_due)
        assert work is not None
        assert self.script.may_do(work.iteration), "a chunk of another call"
        return work

    def check_params(self, iteration: int, params: np.ndarray) -> None:
        """They are the script's, which the world looks at."""

    def give_up(self) -> None:
        """The script leaves its chunk, which is not wanted any more."""
        work, self.work = self.work, None
        assert work is not None
        self.mailbox.gave_up(work, 0.0, 1.0)

    @property
    def may_say_goodbye(self) -> bool:
        return self._stopped and not self._has_said_goodbye and not self.end.sending()

    def spin(self) -> None:
        super().spin()
        if self.dead:
            return
        if self.may_say_goodbye:
            self._has_said_goodbye = True
            self.mailbox.stop()
            self.end.send(SERVER, [record(Kind.GOODBYE)])
        if self._in_order is not None and not self.has_left:
            self.has_left = True
            self._hand_over.stop(Left(0) if self.calls is None else RunFailed("the script of rank 0 has ended"))


class ScriptWorld(ReplicatedWorld):
    """As ReplicatedWorld. The script of rank 0 makes case.num_iterations calls."""

    nodes: dict[int, ScriptNode]  # type: ignore[assignment]
    is_ending = has_failed = False

    def __init__(self, case: Case, thorough: bool = False) -> None:
        super().__init__(case, thorough)
        self.faults = [fault for fault in self.faults if fault.kind not in WRONG]
        self.table[..., -1] = 1.0  # an example in each chunk

    def connect(self) -> None:
        case, clock = self.case, self.clock
        ranks = range(self.plan.num_workers + 1)
        self.links = {(a, b): Link() for a in ranks for b in ranks if a != b}
        self.sums: dict[int, bytes] = {}  # by iteration
        self.scripts = {rank: Script(self, rank, case.dim) for rank in ranks}
        self.faulty = {fault.worker for fault in case.faults} | {nap.worker for nap in case.naps if nap.kind != "away"}
        eager = lambda: self.choose(2) == 0  # noqa: E731
        with ExitStack() as stack:
            self.replace(stack)
            self.nodes = {
                rank: ScriptNode(
                    *(rank, self.plan, True, case.dim, self.silence, self.follows, clock, self.every),
                    end=MeshEnd(rank, self.links, clock, eager),
                    injector=Told(partial(self.at, rank)),
                    check=lambda _: None,
                    params={},
                    coding_matrix=self.plan.coding_matrix,
                    script=self.scripts[rank],
                )
                for rank in ranks[1:]
            }
        self.end = MeshEnd(  # type: ignore[assignment]
            *(0, self.links, clock, eager, self.advance, self.is_cut_off, self.check_sent, self.kill)
        )

    def replace(self, stack: ExitStack) -> None:
        super().replace(stack)
        stack.enter_context(mock.patch.object(replicated, "CHECKED", CHECKED))
        stack.enter_context(mock.patch.object(replicated, "WAITING_BYTES", self.case.waiting))
        for module in (working, ending):
            stack.enter_context(mock.patch.object(module, "time", self.clock))

    @property
    def last(self) -> int:
        return OPEN_END

    def make_server(self, config: Config) -> Server:
        it = self.scripts[0]
        early = config.aggregation == "server"
        script = ServerScript(it.hand_over, it.replica, self.case.dim - TAIL, early, self.end.hosts, Backend())
        costs = partial(script.costs, num_chunks=self.plan.num_chunks)
        settings = ServerSettings(config=config, plan=self.plan, has_loss=False, script=script, known_costs=costs)
        return Server(self.end, Backend(), Observer(self), settings)

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

    def check_reason(self, worker: int, reason: str) -> None:
        may_be_behind = "has fallen behind" in reason and self.iteration in self.case.partial
        assert may_be_behind or worker in self.faulty or {0} & self.faulty, f"worker {worker}: {reason}"
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
        self.stop_workers(self.scripts[0].hand_over.given + 1)
        assert self.scripts[0].iteration == self.length(0)

    def stop_workers(self, done: int) -> None:
        here, self.is_ending, self.events = self.here(), True, 0
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
                assert script.error is None or rank == 0 or late or isinstance(script.error, Left), script.error
        if done >= 0:
            for rank in here - self.faulty:
                left = isinstance(self.scripts[rank].error, Left)
                assert not left or self.nodes[rank].allreduce.is_behind, "left without a sum although it follows"
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
            if script.is_over or (node and (node.dead or node.work is not None)):
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

    def finish(self, node: ScriptNode) -> None:
        if not (node.work and node.mailbox.wants(node.work)) and self.choose(2):
            node.give_up()
            node.spin()
        else:
            super().finish(node)
