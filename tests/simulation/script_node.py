"""One rank of a simulated world with scripts: a script that makes the steps, and a worker with the production loop."""

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from psgc.aggregation import replica
from psgc.backend import Backend
from psgc.errors import PsgcError, RunFailed
from psgc.messages import Kind, record
from psgc.run.ending import CalledOff
from psgc.torch import hand_over
from psgc.torch.hand_over import HandOver, ScriptState
from psgc.torch.serving import ScriptReplica
from psgc.torch.working import ScriptLoop
from psgc.workers.reports import SERVER
from psgc.workers.work import Work
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.scripts import ScriptWorld

OTHER = 0.5  # in the signature of another call


class WatchedHandOver(HandOver):
    """Tells the world what the script is given."""

    def __init__(self, world: "ScriptWorld", rank: int, state: Callable[[], bytes]) -> None:
        super().__init__(0, state=state)
        self.move(world, rank)

    def move(self, world: "ScriptWorld", rank: int) -> None:
        """It is of this rank of another world from now on."""
        self._world, self._of = world, rank

    def can_give_state(self, iteration: int) -> bool:
        self._world.script_rests(self._of)
        with mock.patch.object(hand_over, "REST", 0.0):
            return super().can_give_state(iteration)

    def give(self, iteration: int, vector: Any) -> None:
        self._world.check_sum(self._of, iteration, vector)
        super().give(iteration, vector)


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
        self.replica = ScriptReplica(self.hand_over, "float64", Backend())

    def move(self, world: "ScriptWorld", rank: int) -> None:
        """It is of this rank of another world from now on."""
        self._world, self._rank = world, rank
        self.hand_over.move(world, rank)

    def count(self, what: str, times: int = 1) -> None:
        self._world.counts[what] += times

    @property
    def signature(self) -> float:
        return self.iteration + OTHER * self._world.does(self._rank, "another", self.iteration)

    def call(self) -> None:
        costs = [1.0] * self._world.plan.num_chunks
        self.is_in_call, content = True, self._content()
        self.came[self.iteration] = content, self._has_loaded
        self._has_loaded = False
        digest = blake2b(content, digest_size=16).digest() if replica.is_checked(self.iteration, 0) else b""
        is_whole, term = self.iteration not in self._world.case.partial, self.hand_over.term
        self.hand_over.call(self.iteration, is_whole, self.signature, costs, digest, term=term)

    def take_answer(self) -> None:
        """The newest call is answered, or made again in another term."""
        self.is_in_call = False
        try:
            answer = self.hand_over.answer()
        except (PsgcError, CalledOff) as error:
            self.error = error
            self.end()
            return
        if answer is None:
            self._world.counts["calls repeated"] += 1
            self.call()
            return
        if isinstance(answer, ScriptState):
            faults = [(fault.kind, fault.worker) for fault in self._world.case.faults]
            is_wrong = ("differs", self._rank) in faults  # then it may make the same call again, as the others make it
            goes_back = self._rank in self._world.ahead
            self._world.ahead.discard(self._rank)
            self._world.counts["gone back"] += answer.iteration < self.iteration
            assert goes_back or answer.iteration > self.iteration - is_wrong
            self.iteration, self._has_loaded = answer.iteration, True
            self.params[:], self.velocity[:] = np.split(np.frombuffer(answer.blob), 2)
            self._world.counts["states loaded"] += 1
        else:
            self.velocity[:] = 0.5 * self.velocity + answer
            self.params -= 0.1 * self.velocity
            self.iteration += 1
            answer.fill(np.nan)  # it is the script's
        if self._world.does(self._rank, "differs", self.iteration):
            self._world.counts["differs"] += 1
            self.params += self._rank

    def may_do(self, iteration: int) -> bool:
        """Whether it may do a chunk of this iteration. Of one that is over at rank 0 it counts for nothing."""
        return iteration == self.iteration or iteration < self._world.iteration

    def end(self) -> None:
        self.is_over = True
        self.hand_over.end(term=self.hand_over.term)

    def _state(self) -> bytes:
        assert self.is_in_call, "the state of a script that is between two calls"
        return self._content()

    def _content(self) -> bytes:
        return np.concatenate([self.params, self.velocity]).tobytes()


class ScriptNode(Node, ScriptLoop):
    """One worker. script: of this rank; has_left: its process has left the run."""

    def __init__(self, *arguments: Any, script: Script, **others: Any) -> None:
        self.script, self._waits, self._has_said_goodbye, self.has_left = script, False, False, False
        super().__init__(*arguments, hand_over=script.hand_over, replica=script.replica, **others)
        script.hand_over.alert = lambda: setattr(self, "waiting", False)

    @property
    def waiting(self) -> bool:  # type: ignore[override]
        return self._waits or self.is_elsewhere

    @waiting.setter
    def waiting(self, waits: bool) -> None:
        self._waits = waits

    @property
    def is_elsewhere(self) -> bool:  # type: ignore[override]
        script = self.script
        return self._has_said_goodbye or not script.is_in_call or script.hand_over.is_due()

    @property
    def loss(self) -> float:  # type: ignore[override]
        return self.script.signature

    def loss_of(self, piece: tuple[int, ...]) -> float:
        return self.loss

    def next_work(self) -> Work:
        work = self.mailbox.take(self.script.hand_over.is_due, self.joins)
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
        return self._stopped and not self._has_said_goodbye and not self.end.pending()[SERVER]

    def spin(self) -> None:
        super().spin()
        if self.dead:
            return
        if self.may_say_goodbye:
            self._has_said_goodbye = True
            self.mailbox.stop()
            self.end.send(SERVER, [record(Kind.GOODBYE)])
        if self._in_order is not None and not (self.has_left or self.is_orphaned):
            self.has_left = True
            self._hand_over.stop(CalledOff() if self.calls is None else RunFailed("the script of rank 0 has ended"))
