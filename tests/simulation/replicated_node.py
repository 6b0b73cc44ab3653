"""One worker of a simulated world whose parameters the world knows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.aggregation.replica import Replica
from psgc.workers.injection import Injector
from tests.simulation.node import Node


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


class ReplicatedNode(Node):
    """check: called when its replica is at another iteration; params: what they are, by iteration."""

    def __init__(
        self, *arguments: Any, check: Callable[[Replica], None], params: dict[int, bytes], **others: Any
    ) -> None:
        super().__init__(*arguments, **others)
        self._check, self._params = check, params

    def poll(self) -> None:
        before = self.allreduce.steps
        super().poll()
        if self.allreduce.steps > before:
            self._check(self.allreduce.replica)

    def check_params(self, iteration: int, params: np.ndarray) -> None:
        assert params.tobytes() == self._params[iteration], "parameters of another iteration"
