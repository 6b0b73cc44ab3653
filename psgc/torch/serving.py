"""A script as its rank sees it: as a replica, which takes sums and states, and on rank 0 as the server's driver."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from psgc.aggregation.replica import Snapshot, Stepping
from psgc.backend import Array, Backend
from psgc.data.epochs import LEAST
from psgc.errors import UserError
from psgc.server.events import Report
from psgc.torch.calls import held_out
from psgc.torch.fingerprint import differing
from psgc.torch.hand_over import COUNT, HandOver, ScriptState

WAITING_BYTES = 1 << 20  # bytes of sums that may wait for a script, which only steps between (long) chunks
MOST_WAITING = 64  # sums that may wait; others keep the messages that a stopped rank does not receive


class ScriptReplica:
    """The script of a rank as its replica (`psgc.aggregation.replica`).

    A snapshot is the state of the script, as a vector in the memory of the host. It can only be made in a whole call.

    dtype: the dtype of vectors
    backend: the backend whose arrays the gradients are
    """

    reads_gradients = True
    gives_back = False  # the script keeps a gradient as `.grad`
    params: Array = np.empty(0)  # the parameters are in the script's model

    def __init__(self, hand_over: HandOver, dtype: Any, backend: Backend) -> None:
        self._hand_over, self._backend = hand_over, backend
        self._dtype = np.dtype(dtype)
        self._snapshot: Snapshot | None = None  # the snapshot at `steps`, if one was needed
        self.steps = -1
        self.is_stepping = False  # the script was given the sum of `steps`, and has not made the step

    def start(self, steps: int, params: Array) -> None:
        if steps != self.steps:
            self.steps, self._snapshot = steps, None

    def load(self, snapshot: Snapshot) -> None:
        self.steps, self._snapshot = snapshot.steps, None
        self._hand_over.bring(ScriptState(snapshot.steps, blob_of(self._backend.to_host(snapshot.vectors[0]))))

    def snapshot(self) -> Snapshot | None:
        if self.is_stepping or self._hand_over.called != self.steps or not self._hand_over.is_whole:
            return None
        if self._snapshot is None and (blob := self._hand_over.state(self.steps)) is not None:
            self._snapshot = Snapshot(self.steps, (vector_of(blob, self._dtype),), {})
        return self._snapshot

    def step(self, gradient: Array, digest: bool = False) -> None:
        self.is_stepping, self._snapshot = True, None
        self._hand_over.give(self.steps, gradient)  # it may be overwritten: blocks to other ranks are copies

    def poll(self, wait: bool = False) -> bool:
        """Whether the script has made the step. wait: count the step as made as soon as the script has the sum."""
        if not self.is_stepping or not (wait or self._hand_over.has_come_back(self.steps)):
            return False
        self.is_stepping = False
        self.steps += 1
        return True

    def digest(self) -> bytes:
        """The digest of everything that decides the next step; empty until the script has made its call."""
        return b"" if self.is_stepping else self._hand_over.digest(self.steps)


def vector_of(blob: bytes | bytearray, dtype: np.dtype[Any]) -> np.ndarray:
    """Bytes as a vector, with their length in front and padding at the end.

    >>> blob_of(vector_of(b"some bytes", np.dtype(np.float32)))
    b'some bytes'
    """
    memory = np.zeros(-(-(COUNT + len(blob)) // dtype.itemsize) * dtype.itemsize, np.uint8)
    memory[:COUNT] = np.frombuffer(len(blob).to_bytes(COUNT, "little"), np.uint8)
    memory[COUNT : COUNT + len(blob)] = np.frombuffer(blob, np.uint8)
    return memory.view(dtype)


def blob_of(vector: np.ndarray) -> bytes:
    whole = np.ascontiguousarray(vector).view(np.uint8)
    return whole[COUNT : COUNT + int.from_bytes(whole[:COUNT].tobytes(), "little")].tobytes()


OTHER_CALL = (
    "its script makes another call than that of rank 0; every rank must make the same calls, for the same batches"
)


class ScriptDriver:
    """The script of rank 0 as its server sees it (`psgc.server.driver`): it makes the calls, and the steps.

    gradient: number of entries of the gradient; the loss and the number of examples follow in a vector
    attached: the objects attached to the run, on rank 0
    is_alike: whether all ranks have the same state, as at the beginning of a run
    look: is called in each poll of the server
    """

    last_step, ends_steps = math.inf, False
    look: Callable[[], object] = staticmethod(lambda: None)

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
            where = f"worker {report.worker} on {self._hosts[report.worker]}, iteration {report.iteration}"
            raise UserError(f"{where}: {OTHER_CALL}")

    def ended(self, worker: int, iteration: int, text: str, is_mistake: bool) -> None:
        (self._mistakes if is_mistake else self._ended)[worker] = iteration, text

    def ended_ranks(self) -> set[int]:
        return {*self._ended, *self._mistakes, *([0] if self._hand_over.is_ended else [])}

    def due(self) -> list[tuple[int, str]]:
        self.look()
        for worker, (iteration, text) in self._mistakes.items():
            # else the script of rank 0 will raise the same error itself
            if self._hand_over.called >= iteration or self._hand_over.is_ended:
                raise UserError(f"worker {worker} on {self._hosts[worker]}: {text}")
        gone = {
            worker: text
            for worker, (iteration, text) in self._ended.items()
            if text or self._hand_over.called >= iteration
        }
        for worker in gone:
            del self._ended[worker]
        return [(worker, text or "its script has ended, that of rank 0 has not") for worker, text in gone.items()]
