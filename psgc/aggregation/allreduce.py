"""How every rank sums: it exchanges blocks with the others, and its replica follows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.aggregation.blocks import Accumulators, Blocks
from psgc.aggregation.map import Map
from psgc.aggregation.pool import Pool
from psgc.aggregation.replica import Snapshot, Stepping, is_checked
from psgc.aggregation.state_messages import State
from psgc.aggregation.state_transfer import Giver, Receiver
from psgc.backend import Array, Backend, part_length
from psgc.errors import ProtocolError
from psgc.iteration import Moment
from psgc.messages import unpack_block
from psgc.transport import Transport, Vector


def summing_matrix(coding_matrix: np.ndarray, transfer: str) -> np.ndarray:
    """The matrix R, (num_workers, parts), of the accumulators that the ranks sum.

    With `per_chunk` rank 0 has decoded the gradient: it is the only accumulator, in a code of one part.
    """
    return coding_matrix if transfer == "combined" else np.ones((len(coding_matrix), 1))


class AllReduce:
    """One rank's part. coding_matrix: R, (num_workers, parts); dim: entries of the gradient; replica: of this rank.

    first, last: the iterations that the run begins with and ends before.
    have: called with iteration, attempt and number of each slice that is here.
    behind: called with the iteration that this rank cannot follow, until the state of another one is here.
    at: called at steps of the protocol at which faults can be injected.
    stepping: called before each step with its iteration and gradient.
    refused: called with who has sent what no correct rank sends, and what that is.
    """

    def __init__(
        self,
        transport: Transport,
        backend: Backend,
        coding_matrix: np.ndarray,
        dim: int,
        dtype: Any,
        replica: Stepping,
        first: int,
        last: int,
        have: Callable[[int, int, int], object] = lambda *_: None,
        behind: Callable[[int], object] = lambda _: None,
        at: Callable[[Moment, int], object] = lambda *_: None,
        stepping: Callable[[int, Array], object] = lambda *_: None,
        refused: Callable[[int, str], object] = lambda *_: None,
    ) -> None:
        self._transport, self._stepping, self._refused = transport, stepping, refused
        self._first, self._last = first, last
        self.replica = replica
        self._pool = Pool(backend, dim, coding_matrix.shape[1], dtype)
        self._blocks = Blocks(
            *(transport, self._pool, backend, coding_matrix, dim), self._step, have, behind, at, refused
        )
        self._giver = Giver(transport, self._pool, backend)
        self._receiver = Receiver(self._pool, backend)
        self._to_give: dict[int, int] = {}  # receiver -> iteration whose state it is to be given
        self.entries = part_length(dim, coding_matrix.shape[1])  # of the coded vector

    def open(self) -> None:
        """Be ready for blocks."""
        self._pool.open(self._transport)

    def start(self, iteration: int, params: Array) -> None:
        """The replica begins here: `params` (dim,), and the optimizer as it is."""
        self.replica.start(iteration, params)
        self._blocks.loaded(iteration)

    @property
    def steps(self) -> int:
        """The iteration that the replica is at; -1 when it has no parameters yet."""
        return self._blocks.exchange.steps

    @property
    def is_behind(self) -> bool:
        """Whether only the state of another rank gets the replica on, and none waits here for the end of its step."""
        it, waiting = self._blocks.exchange, self._receiver.waiting
        return it.is_behind and not (waiting is not None and it.can_use(waiting))

    def is_at(self, iteration: int) -> bool:
        """Whether gradients of `iteration` can be computed here, although it may be behind."""
        return self._blocks.exchange.is_at(iteration)

    @property
    def nap(self) -> float:
        """Seconds between two looks at MPI."""
        return self._blocks.nap

    @property
    def is_busy(self) -> bool:
        """Whether something is left to be sent, or awaited."""
        return self._blocks.is_busy or self._giver.is_busy

    def gradient(self, iteration: int) -> Array:
        """(dim,): the gradient, as far as it is here."""
        return self._blocks.gradient(iteration)

    def digest(self) -> bytes:
        """Of the replica, 16 bytes, at the iterations at which replicas are compared; else nothing."""
        return self.replica.digest() if self._is_checked(self.steps) else b""

    def carried(self, iteration: int) -> int:
        """Bytes of blocks of this iteration that have come or left."""
        return self._blocks.carried(iteration)

    def awaited(self, iteration: int) -> set[int]:
        """The ranks whose accumulators this one lacks for the slices that it owns."""
        return self._blocks.exchange.awaited(iteration)

    # what comes

    def arrived(self, message: Vector) -> None:
        """A block has come."""
        source, iteration, length = message.source, message.iteration, message.length
        try:
            name = unpack_block(message.chunk)
            if iteration < 0 or length > self._pool.room:
                raise ProtocolError(f"a block of {length} entries, of iteration {iteration}")
            buffer = self._pool.receive(self._transport, message.buffer)
            if name.is_state:
                self._receiver.arrived(source, iteration, name, buffer, length)
            else:
                self._blocks.arrived(source, iteration, name, buffer, length)
        except ProtocolError as error:
            self._refused(source, str(error))

    def mapped(self, map: Map, accumulators: Accumulators) -> None:
        """A map has come. accumulators: of this rank; they stay as they are until the next iteration begins here."""
        if not map.attempt:
            self._giver.skipped(map.iteration, map.receivers)
        self._blocks.mapped(map, accumulators)

    def drop_accumulators(self) -> None:
        """A new iteration begins here: the accumulators of those before are not needed any more."""
        self._blocks.drop_accumulators()

    def chosen(self, iteration: int, others: dict[int, int]) -> None:
        """Make the gradient of `iteration` of version 0 of each slice; others: version by slice where it is not.

        On rank 0, where all of these are. No step is made before `closed`.
        """
        self._blocks.chosen(iteration, others)

    def closed(self, iteration: int, others: dict[int, int]) -> None:
        """Every rank makes the step of `iteration` with these versions."""
        self._blocks.closed(iteration, others)

    def left(self, rank: int) -> None:
        """`rank` takes no part any more."""
        self._to_give.pop(rank, None)
        self._giver.stop(rank)
        self._pool.spare(self._transport, rank)
        self._blocks.left(rank)

    def give(self, dest: int, iteration: int) -> None:
        """Send `dest` the state of the replica at the beginning of `iteration` or a later one, once it is there."""
        self._to_give[dest] = iteration

    def drop(self) -> None:
        """The replica of this rank is wrong: only the state of another rank gets it on."""
        self._blocks.dropped()

    def announced(self, source: int, state: State) -> None:
        """The numbers of a state that `source` gives this rank are here."""
        try:
            self._receiver.announced(source, state)
        except ProtocolError as error:
            self._refused(source, str(error))

    def poll(self) -> bool:
        """Go on. Whether the replica is at another iteration than before. Raises what a step raises."""
        self._blocks.poll()
        has_moved = self._has_stepped()
        if not self.replica.is_stepping:
            has_moved = self._load() or has_moved
        self._give()
        self._giver.poll()
        return has_moved

    def finish_step(self) -> None:
        """Wait for the step that is being made. Raises what it raises."""
        self._has_stepped(wait=True)

    # what follows

    def _has_stepped(self, wait: bool = False) -> bool:
        has_stepped = self.replica.poll(wait)
        if has_stepped:
            self._blocks.stepped(reuse=self.replica.gives_back)
        return has_stepped

    def _step(self, iteration: int, gradient: Array) -> None:
        self._stepping(iteration, gradient)
        self.replica.step(gradient, digest=self._is_checked(iteration + 1))

    def _is_checked(self, iteration: int) -> bool:
        return is_checked(iteration, self._first) or iteration == self._last

    def _load(self) -> bool:
        """Whether a state that this rank waited for is here."""
        if (found := self._receiver.complete()) is None or not self._blocks.exchange.can_use(found[0]):
            return False
        iteration, vectors, numbers = found
        self.replica.load(Snapshot(iteration, tuple(vectors), numbers))
        self._blocks.loaded(iteration)
        return True

    def _give(self) -> None:
        for dest, iteration in [*self._to_give.items()]:
            if self.replica.is_stepping or self.steps < iteration:
                continue
            if (snapshot := self.replica.snapshot()) is None:
                continue
            del self._to_give[dest]
            self._giver.give(dest, self.steps, [*snapshot.vectors], snapshot.numbers)
