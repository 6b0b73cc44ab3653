"""How the state of a replica reaches a rank that has fallen behind: in blocks, from another rank.

Blocks come from any rank that was told to give. Replicas agree to the last bit, so it does not matter from which.
"""

from dataclasses import dataclass

from psgc.aggregation.pool import Pool
from psgc.aggregation.state_messages import State, state_records
from psgc.backend import Array, Backend, copy
from psgc.messages import BlockName, pack_block, stamp
from psgc.transport import Sending, Transport

WINDOW = 2  # blocks under way to one rank


@dataclass(slots=True)
class _Gift:
    """vectors: of the state, (dim,) each; next: (vector, block) that is to be sent; under_way: (handle, buffer)."""

    iteration: int
    vectors: list[Array]
    next: tuple[int, int]
    under_way: list[tuple[Sending, Array]]


class Giver:
    """Sends the state of this rank to others."""

    def __init__(self, transport: Transport, pool: Pool, backend: Backend) -> None:
        self._transport, self._pool, self._backend = transport, pool, backend
        self._gifts: dict[int, _Gift] = {}  # by receiver
        self._ended: list[tuple[Sending, Array]] = []  # sends of gifts that were given up

    def give(self, dest: int, iteration: int, vectors: list[Array], numbers: dict[int, float]) -> None:
        """Begin to send this state, which is at the beginning of `iteration`, to `dest`."""
        self.stop(dest)
        self._transport.remember(dest)
        self._transport.send(dest, state_records(iteration, len(vectors), numbers))
        self._gifts[dest] = _Gift(iteration, vectors, (0, 0), [])

    def stop(self, dest: int) -> None:
        """Send `dest` no more of a state."""
        if (gift := self._gifts.pop(dest, None)) is not None:
            self._ended += gift.under_way

    def skipped(self, iteration: int, receivers: tuple[int, ...]) -> None:
        """A map leaves out all but these: what others get would be of no use to them."""
        for dest in [dest for dest, gift in self._gifts.items() if gift.iteration <= iteration]:
            if dest not in receivers:
                self.stop(dest)

    @property
    def is_busy(self) -> bool:
        """Whether a state is being sent."""
        return bool(self._gifts)

    def poll(self) -> None:
        """Send what may be sent now."""
        self._ended = self._still_under_way(self._ended)
        for dest, gift in [*self._gifts.items()]:
            gift.under_way = self._still_under_way(gift.under_way)
            while len(gift.under_way) < WINDOW and gift.next[0] < len(gift.vectors):
                self._send_block(dest, gift)
            if not gift.under_way:
                del self._gifts[dest]

    def _still_under_way(self, sends: list[tuple[Sending, Array]]) -> list[tuple[Sending, Array]]:
        left = []
        for sending, buffer in sends:
            if sending.is_done:
                self._pool.sent(buffer, sending)
                self._pool.give_back(buffer)
            else:
                left.append((sending, buffer))
        return left

    def _send_block(self, dest: int, gift: _Gift) -> None:
        number, block = gift.next
        vector, room = gift.vectors[number], self._pool.room
        start, stop = block * room, min((block + 1) * room, gift.vectors[number].size)
        buffer = self._pool.take()
        copy(self._backend, buffer[: stop - start], vector[start:stop])
        message = stamp(
            self._pool.message(buffer, stop - start),
            gift.iteration,
            pack_block(BlockName(0, 0, number, block, is_state=True)),
        )
        gift.under_way.append((self._transport.send_vector(dest, message), buffer))
        gift.next = (number, block + 1) if stop < vector.size else (number + 1, 0)


class Receiver:
    """Puts the state of another rank together. dim: entries of a vector."""

    def __init__(self, pool: Pool, backend: Backend, dim: int) -> None:
        self._pool, self._backend, self._dim = pool, backend, dim
        self._iteration, self._completed = -1, -1
        self._state: State | None = None
        self._vectors: dict[int, Array] = {}
        self._missing: dict[int, set[int]] = {}  # by vector the blocks that have not come

    def announced(self, state: State) -> None:
        """The numbers of a state are here."""
        if self._is_for(state.iteration):
            self._state = state

    def arrived(self, iteration: int, name: BlockName, buffer: Array) -> None:
        """A block of a state is here, which is not needed after that."""
        number, block, room = name.role, name.block, self._pool.room
        if self._is_for(iteration) and block * room < self._dim:
            if number not in self._vectors:
                self._vectors[number] = self._backend.xp.empty(self._dim, self._pool.dtype)
                self._missing[number] = set(range(-(-self._dim // room)))
            target = self._vectors[number][block * room : (block + 1) * room]
            copy(self._backend, target, buffer[: target.size])
            self._missing[number].discard(block)
        self._pool.give_back(buffer)

    def _is_for(self, iteration: int) -> bool:
        """Whether something is of the newest state that has been heard of; an older one is dropped."""
        if iteration > self._iteration:
            self._iteration, self._state = iteration, None
            self._vectors, self._missing = {}, {}
        return iteration == self._iteration > self._completed

    def complete(self) -> tuple[int, list[Array], dict[int, float]] | None:
        """The iteration, the vectors and the numbers of a state, once, when all of it is here."""
        state = self._state
        if state is None or len(self._vectors) < state.vectors or any(self._missing.values()):
            return None
        vectors = [self._vectors[number] for number in range(state.vectors)]
        self._completed = self._iteration
        self._state, self._vectors, self._missing = None, {}, {}
        return self._iteration, vectors, state.numbers
