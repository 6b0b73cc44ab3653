"""The state of a replica travels in blocks to a rank that has fallen behind.

All blocks of a state come from one giver, since two givers may have the same state of a script in other words. Blocks
may come before the records with the size of the state. They are kept until then.

The numbers in the state go first, as STATE records, with `last` in the last one. The first record has chunk = -1, start
= the number of vectors that follow in blocks, and seconds = their number of entries. Then comes one record for each
number: chunk = its index, start = its value. The index is that of its name among all sorted names in the optimizer's
state. The names without a number are those of the vectors 1, 2, ... in this order. Vector 0 is the parameters.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from psgc.aggregation.pool import Pool
from psgc.backend import Array, Backend, copy
from psgc.errors import ProtocolError
from psgc.messages import Entry, Kind, RecordList, Records, record
from psgc.transport import Sending, Transport
from psgc.vectors import BlockName, pack_block, stamp

WINDOW = 2  # blocks under way to one rank
NAMES = 1 << 10  # in an optimizer's state, at most
MOST = 1 << 48  # entries of a vector; a larger number is malformed, since no memory holds so many


@dataclass(frozen=True, slots=True)
class AnnouncedState:
    """A replica's state at the start of an iteration: number of vectors, their entries, and numbers by index."""

    iteration: int
    vectors: int
    entries: int
    numbers: dict[int, float]


def state_records(state: AnnouncedState) -> list[Records]:
    """The STATE records of `state`."""
    said = [(-1, float(state.vectors), float(state.entries))]
    said += [(index, value, 0.0) for index, value in sorted(state.numbers.items())]
    return [
        record(Kind.STATE, state.iteration, index, start=value, seconds=entries, last=place == len(said))
        for place, (index, value, entries) in enumerate(said, start=1)
    ]


class StateReader:
    """Reads STATE records of one sender."""

    def __init__(self) -> None:
        self._list = RecordList()

    def read(self, entry: Entry) -> AnnouncedState | None:
        """The state whose last record `entry` is, else None. Raises ProtocolError when the records are malformed."""
        if not (entries := self._list.read(entry)):
            return None
        head, *others = entries
        iteration, vectors, size = head["iteration"], head["start"], head["seconds"]
        numbers = {other["chunk"]: other["start"] for other in others}
        names = len(numbers) + vectors - 1  # not a whole number, or NaN, when the first record is malformed
        if (
            head["chunk"] != -1
            or iteration < 0
            or not (vectors >= 1 and names <= NAMES and vectors == int(vectors))
            or not (1 <= size <= MOST and size == int(size))
            or len(numbers) < len(others)
            or not all(0 <= index < names for index in numbers)
            or any(other["iteration"] != iteration for other in others)
        ):
            raise ProtocolError(
                f"a malformed state of iteration {iteration}: {vectors} vectors of {size}, numbers {numbers}"
            )
        return AnnouncedState(iteration, int(vectors), int(size), numbers)


@dataclass(slots=True)
class _Gift:
    """A state on its way. vectors: of one length; next: (vector, block) to send; under_way: (handle, buffer)."""

    iteration: int
    vectors: list[Array]
    next: tuple[int, int]
    under_way: list[tuple[Sending, Array]]


class Giver:
    """Sends the state of this rank to others."""

    def __init__(self, transport: Transport, pool: Pool, backend: Backend) -> None:
        self._transport, self._pool, self._backend = transport, pool, backend
        self._gifts: dict[int, _Gift] = {}  # by receiver
        self._ended: list[tuple[Sending, Array]] = []  # sends of states that were given up

    def give(self, dest: int, iteration: int, vectors: list[Array], numbers: dict[int, float]) -> None:
        """Begin to send `dest` this state of the beginning of `iteration`."""
        self.stop(dest)
        self._transport.remember(dest)
        self._transport.send(dest, state_records(AnnouncedState(iteration, len(vectors), vectors[0].size, numbers)))
        self._gifts[dest] = _Gift(iteration, vectors, (0, 0), [])

    def stop(self, dest: int) -> None:
        """Stop sending `dest` a state."""
        if (gift := self._gifts.pop(dest, None)) is not None:
            self._ended += gift.under_way

    def skipped(self, iteration: int, receivers: tuple[int, ...]) -> None:
        """A map has only these receivers: states for other ranks are of no use to them any more."""
        for dest in [dest for dest, gift in self._gifts.items() if gift.iteration <= iteration]:
            if dest not in receivers:
                self.stop(dest)

    @property
    def is_busy(self) -> bool:
        """Whether a state is being sent."""
        return bool(self._gifts)

    def poll(self) -> None:
        """Send the blocks that may be sent now."""
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


@dataclass(slots=True)
class _Incoming:
    """A state that is coming. state: None before its records; missing: (vector, block); early: blocks before them."""

    iteration: int
    state: AnnouncedState | None = None
    vectors: list[Array] = field(default_factory=list)
    missing: set[tuple[int, int]] = field(default_factory=set)
    early: list[tuple[BlockName, Array, int]] = field(default_factory=list)


class Receiver:
    """Receives states of other ranks. The first complete one is used, and states before it are dropped.

    incoming: by giver, the newest state
    """

    def __init__(self, pool: Pool, backend: Backend) -> None:
        self._pool, self._backend = pool, backend
        self.incoming: dict[int, _Incoming] = {}
        self._readers: defaultdict[int, StateReader] = defaultdict(StateReader)  # by giver
        self._completed = -1

    def announced(self, source: int, entry: Entry) -> None:
        """A STATE record has come. Raises ProtocolError when it, or an earlier block, does not belong to a state."""
        if (state := self._readers[source].read(entry)) is None:
            return
        if (incoming := self._of(source, state.iteration)) is None or incoming.state is not None:
            return
        incoming.state = state
        incoming.vectors = [self._backend.xp.empty(state.entries, self._pool.dtype) for _ in range(state.vectors)]
        blocks = range(-(-state.entries // self._pool.room))
        incoming.missing = {(number, block) for number in range(state.vectors) for block in blocks}
        self._drop_before(state.iteration)
        early, incoming.early = incoming.early, []
        for block in early:
            self._take(incoming, *block)

    def arrived(self, source: int, iteration: int, name: BlockName, buffer: Array, length: int) -> None:
        """A block of a state has come, with `length` entries. The caller may reuse the buffer.

        Raises ProtocolError when no correct rank sends it.
        """
        if (incoming := self._of(source, iteration)) is None:
            self._pool.give_back(buffer)
        elif incoming.state is None:
            incoming.early.append((name, buffer, length))
        else:
            self._take(incoming, name, buffer, length)

    def _of(self, source: int, iteration: int) -> _Incoming | None:
        """The incoming state that this belongs to; None if it is of no use any more."""
        known = self.incoming.get(source)
        if iteration <= self._completed or (known is not None and iteration < known.iteration):
            return None
        if known is None or iteration > known.iteration:
            self._drop(source)
            known = self.incoming[source] = _Incoming(iteration)
        return known

    def _take(self, incoming: _Incoming, name: BlockName, buffer: Array, length: int) -> None:
        number, block, room = name.role, name.block, self._pool.room
        is_known = number < len(incoming.vectors)
        target = incoming.vectors[number][block * room : (block + 1) * room] if is_known else buffer[:0]
        is_possible = 0 < length == target.size
        if is_possible and (number, block) in incoming.missing:
            copy(self._backend, target, buffer[: target.size])
            incoming.missing.remove((number, block))
        self._pool.give_back(buffer)
        if not is_possible:
            of = f"vector {number} of a state of iteration {incoming.iteration}"
            raise ProtocolError(f"block {block} of {of}, with {length} entries, which it was not to send")

    def _drop(self, source: int) -> None:
        if (incoming := self.incoming.pop(source, None)) is not None:
            for _, buffer, _ in incoming.early:
                self._pool.give_back(buffer)

    def _drop_before(self, iteration: int) -> None:
        for source in [source for source, incoming in self.incoming.items() if incoming.iteration < iteration]:
            self._drop(source)

    @property
    def waiting(self) -> int | None:
        """The iteration of the newest complete state that is unused; None without one."""
        whole = (it.iteration for it in self.incoming.values() if it.state is not None and not it.missing)
        return max((iteration for iteration in whole if iteration > self._completed), default=None)

    def complete(self) -> tuple[int, list[Array], dict[int, float]] | None:
        """The iteration, the vectors and the numbers of a complete state, once; None without one."""
        for incoming in self.incoming.values():
            if incoming.state is not None and not incoming.missing:
                self._completed = incoming.iteration
                self._drop_before(incoming.iteration + 1)
                return incoming.iteration, incoming.vectors, incoming.state.numbers
        return None
