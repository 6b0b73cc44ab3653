"""Rank 0 of a script: the script as the server sees it, and the errors of scripts on other ranks."""

import math
from collections.abc import Sequence

from psgc.aggregation.replica import Stepping
from psgc.backend import Array, Backend
from psgc.data.epochs import LEAST
from psgc.errors import RunFailed, UserError
from psgc.server.events import Report
from psgc.torch.calls import held_out
from psgc.torch.fingerprint import differing
from psgc.torch.hand_over import HandOver, ScriptReplica

WAITING_BYTES = 1 << 20  # bytes of sums that may wait for a script, which only steps between (long) chunks
MOST_WAITING = 64  # sums that may wait; others keep the messages that a stopped rank does not receive


class ScriptDriver:
    """The script of rank 0 as its server sees it (`psgc.server.driver`): it makes the calls, and the steps.

    gradient: number of entries of the gradient; the loss and the number of examples follow in a vector
    attached: the objects attached to the run, on rank 0
    is_alike: whether all ranks have the same state, as at the beginning of a run
    """

    last_step, ends_steps = math.inf, False

    def __init__(
        self,
        hand_over: HandOver,
        replica: ScriptReplica,
        gradient: int,
        hosts: Sequence[str],
        backend: Backend,
        attached: Sequence[object] = (),
        is_alike: bool = True,
    ) -> None:
        self.replica: Stepping = replica
        self.is_alike = is_alike
        self._attached = attached
        self._hand_over, self._gradient, self._hosts = hand_over, gradient, hosts
        self._to_host = backend.to_host
        self._ended: dict[int, tuple[int, str]] = {}  # scripts that have ended, by worker: iteration, reason
        self._mistakes: dict[int, tuple[int, str]] = {}  # scripts that the user's mistake has ended, likewise
        self._usual = 0.0  # mean cost of a chunk of the first call

    def differing(self, one: bytes, other: bytes) -> Sequence[str]:
        return differing(one, other, self._attached)

    def waiting(self, nbytes: int) -> int:
        return min(MOST_WAITING, WAITING_BYTES // nbytes)

    def is_whole(self, iteration: int) -> bool | None:
        if self._hand_over.is_ended or self._hand_over.called > iteration:
            return False
        return self._hand_over.is_whole if self._hand_over.called == iteration else None

    def may_begin(self, iteration: int) -> bool | None:
        if self._hand_over.is_ended:
            return False
        return True if self._hand_over.called >= iteration else None

    def costs(self, iteration: int, num_chunks: int) -> list[float]:
        """The costs of the chunks of the next iteration, relative to an average chunk."""
        costs = self._hand_over.costs
        self._usual = self._usual or sum(costs) / num_chunks
        return [max(LEAST, cost / self._usual) for cost in costs] or [1.0] * num_chunks

    def num_sums(self, iteration: int) -> int:
        return self._hand_over.num_sums

    def is_over(self) -> bool:
        return self._hand_over.is_ended

    def loss(self, iteration: int, vector: Array) -> float | None:
        loss, examples = self._to_host(vector[self._gradient : self._gradient + 2]).tolist()
        return loss / examples if examples and math.isfinite(loss) else None

    def held_out(self, sums: Sequence[float]) -> tuple[float | None, float | None]:
        return held_out(self._hand_over.names, sums)

    def reported(self, report: Report) -> None:
        is_there = self._hand_over.called == report.iteration  # else the script is already at a later call
        if is_there and report.loss != self._hand_over.signature:
            raise RunFailed(
                f"worker {report.worker} on {self._hosts[report.worker]}, iteration {report.iteration}: its script "
                "makes another call than that of rank 0; every rank must make the same calls, for the same batches"
            )

    def ended(self, worker: int, iteration: int, text: str, is_mistake: bool) -> None:
        (self._mistakes if is_mistake else self._ended)[worker] = iteration, text

    def over_on(self) -> set[int]:
        return {*self._ended, *self._mistakes, *([0] if self._hand_over.is_ended else [])}

    def due(self) -> list[tuple[int, str]]:
        for worker, (iteration, text) in self._mistakes.items():
            if self._hand_over.called >= iteration:  # else the script of rank 0 will raise the same error itself
                raise UserError(f"worker {worker} on {self._hosts[worker]}: {text}")
        gone = {
            worker: text
            for worker, (iteration, text) in self._ended.items()
            if text or self._hand_over.called >= iteration
        }
        for worker in gone:
            del self._ended[worker]
        return [(worker, text or "its script has ended, that of rank 0 has not") for worker, text in gone.items()]
