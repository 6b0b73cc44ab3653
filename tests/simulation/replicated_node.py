"""One worker of a simulated world with aggregation `allreduce`: as `node`, with the production `ReplicatedLoop`."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from psgc.aggregation.allreduce import AllReduce
from psgc.aggregation.replica import Replica
from psgc.workers.injection import Injector
from psgc.workers.replicated import ReplicatedLoop
from tests.simulation.mesh import MeshEnd
from tests.simulation.node import Node


class Killed(BaseException):
    """The process ends here."""


class Told(Injector):
    """Tells the world at which step of the protocol a worker is."""

    def __init__(self, at: Callable[[str, int], None]) -> None:
        super().__init__()
        self._tell = at

    def at(self, step: Any, iteration: int) -> None:
        self._tell(step, iteration)


class SlowReplica(Replica):
    """A step is not made before `may_end`."""

    may_end = False

    @property
    def is_unfinished(self) -> bool:
        return self.is_stepping and not self.may_end

    def poll(self, wait: bool = False) -> bool:
        if self.is_unfinished and not wait:
            return False
        self.may_end = False
        return super().poll(wait)


class MeshNode(Node):
    """Its process ends in the middle of a turn as well."""

    end: MeshEnd

    def spin(self) -> None:
        with suppress(Killed):
            super().spin()

    def die(self, kept: int) -> None:
        if not self.dead:
            self.dead = True
            self.end.cut(kept)


class ReplicatedNode(MeshNode, ReplicatedLoop):
    """check: called when its replica is at another iteration; params: what they are, by iteration."""

    def __init__(
        self, *arguments: Any, check: Callable[[Replica], None], params: dict[int, bytes], **others: Any
    ) -> None:
        super().__init__(*arguments, **others)
        self._check, self._params = check, params

    @property
    def allreduce(self) -> AllReduce:
        return self._allreduce

    def _poll(self) -> None:
        before = self._allreduce.steps
        super()._poll()
        if self._allreduce.steps > before:
            self._check(self._allreduce.replica)

    def _stepping(self, iteration: int, gradient: np.ndarray) -> None:
        super()._stepping(iteration, gradient)
        self._is_over(iteration)

    def check_params(self, iteration: int, params: np.ndarray) -> None:
        assert params.tobytes() == self._params[iteration], "parameters of another iteration"
