"""The coded all-reduce of one rank over MPI: carries out what its `Exchange` says, on arrays.

Every block that is sent lies in a buffer of its own, with its stamp behind it: an accumulator is copied into one block
by block, a block of the gradient is summed into one. So accumulators are never tied up by MPI. Buffers are used again
and again. One that was being sent to a rank that has left is not, since that rank may still read it one day.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from psgc.aggregation import protocol as part
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.pool import Pool
from psgc.aggregation.protocol import BlockKey
from psgc.aggregation.slices import block_entries
from psgc.backend import Array, Backend, copy, part_length
from psgc.iteration import Moment
from psgc.messages import BlockName, pack_block, stamp
from psgc.transport import Sending, Transport

LONG = 4.0  # times what sends usually take, after which the destination is held
LEAST_LONG = 0.05  # seconds
LOOKS, LONGEST_NAP = 4.0, 2e-3  # looks at MPI while a block is sent, and seconds between two of them at most
SHORT, SHORT_NAP = 1 << 16, 2e-4  # bytes of a gradient, and seconds between two looks for one that is shorter
OTHER_LOOKS = 4.0  # times as many looks while no block is sent or awaited: for control messages

Accumulators = Mapping[tuple[int, int], Array]  # (role, serial) -> (part_length,)


@dataclass(slots=True)
class _UnderWay:
    """size: bytes; event: what follows when it has ended; is_needed: whether its buffer is needed after that."""

    handle: Sending
    size: int
    event: part.Sent
    buffer: Array
    is_needed: bool
    since: float


class Blocks:
    """coding_matrix: R, (num_workers, parts); dim: entries of the gradient.

    step: called with an iteration and its gradient (dim,), which is not written to until `stepped`.
    have: called with iteration, attempt and number of each slice that is here.
    behind: called with the iteration that this rank cannot follow.
    at: called at steps at which faults can be injected.
    refused: called with who has sent what no correct rank sends, and what that is.
    """

    def __init__(
        self,
        transport: Transport,
        pool: Pool,
        backend: Backend,
        coding_matrix: np.ndarray,
        dim: int,
        step: Callable[[int, Array], object],
        have: Callable[[int, int, int], object],
        behind: Callable[[int], object],
        at: Callable[[Moment, int], object],
        refused: Callable[[int, str], object],
    ) -> None:
        self._transport, self._pool, self._backend = transport, pool, backend
        self._dtype = pool.dtype
        self._rows = coding_matrix.astype(self._dtype)
        self._parts = coding_matrix.shape[1]
        self._dim, self._entries, self._columns = dim, part_length(dim, self._parts), dim // self._parts
        self._step, self._have, self._behind, self._at, self._refused = step, have, behind, at, refused
        self.exchange = Exchange(transport.rank, self._parts)
        self._accumulators: Accumulators = {}  # of the newest map
        self._buffers: dict[BlockKey, Array] = {}
        self._sendings: list[_UnderWay] = []
        self._gradients: dict[int, Array] = {}
        self._spare: list[Array] = []  # gradients that are not used
        self._usual = LEAST_LONG / LONG  # seconds that a send takes
        self._carried: Counter[int] = Counter()  # by iteration: bytes that have come or left

    # what happens

    def mapped(self, map: Map, accumulators: Accumulators) -> None:
        """A map has come. accumulators: of this rank; they stay as they are until the next iteration begins here."""
        self._accumulators = accumulators
        for rank in map.receivers:
            self._transport.remember(rank)
        self._carried = Counter({number: size for number, size in self._carried.items() if number >= map.iteration})
        self._bring(part.Mapped(map, block_entries(map.slices, self._dtype.itemsize)))

    def arrived(self, source: int, iteration: int, name: BlockName, buffer: Array, length: int) -> None:
        """A block of `length` entries is here, in a buffer of the pool."""
        self._carried[iteration] += length * self._dtype.itemsize
        contributor = Contributor(source, name.role, name.serial) if name.role else None
        event = part.Arrived(source, BlockKey(iteration, name.attempt, name.block, contributor), length)
        if event.key in self._buffers:
            self._pool.give_back(buffer)
            self._refuse(event)
            return
        self._buffers[event.key] = buffer
        self._bring(event)

    def carried(self, iteration: int) -> int:
        """Bytes of blocks of this iteration that have come or left."""
        return self._carried[iteration]

    def drop_accumulators(self) -> None:
        """A new iteration begins here: the accumulators of those before are not needed any more."""
        self._accumulators = {}

    @property
    def nap(self) -> float:
        """Seconds between two looks at MPI, a fraction of what a block takes: many looks cost time as well.

        What a short block takes are the looks themselves, of both ends.
        """
        longest = LONGEST_NAP if self._dim * self._dtype.itemsize > SHORT else SHORT_NAP
        return min(longest, self._usual / LOOKS) / (1 if self.is_busy else OTHER_LOOKS)

    @property
    def is_busy(self) -> bool:
        """Whether something is left to be sent, or awaited."""
        return bool(self._sendings) or self.exchange.is_busy

    def chosen(self, iteration: int, others: dict[int, int]) -> None:
        """The gradient is to be made of version 0 of each slice; others: version by slice where it is not."""
        self._bring(part.Chosen(iteration, others))

    def closed(self, iteration: int, others: dict[int, int]) -> None:
        """The step is to be made with these versions."""
        self._bring(part.Closed(iteration, others))

    def stepped(self, reuse: bool = True) -> None:
        """The step that was to be made is made. reuse: whether the memory of its gradient is free again."""
        gradient = self._gradients.pop(self.exchange.steps)
        if reuse:
            self._spare.append(gradient)
        self._bring(part.Stepped())

    def loaded(self, iteration: int) -> None:
        """The replica is at the beginning of `iteration`."""
        for past in [past for past in self._gradients if past < iteration]:
            self._spare.append(self._gradients.pop(past))
        self._bring(part.Loaded(iteration))

    def dropped(self) -> None:
        """The replica is wrong, and cannot be gone on from."""
        self._bring(part.Dropped())

    def left(self, rank: int) -> None:
        """`rank` takes no part any more."""
        self._transport.forget(rank)
        self._bring(part.RankLeft(rank))

    def poll(self) -> None:
        """Go on with what has been sent, and past destinations that take long."""
        now = time.monotonic()
        long = max(LEAST_LONG, LONG * self._usual)
        sendings, self._sendings = self._sendings, []
        ended: list[_UnderWay] = []
        for sending in sendings:
            (ended if sending.handle.is_done else self._sendings).append(sending)
        for sending in ended:
            took = now - sending.since
            self._usual += (min(took, long) - self._usual) / 16
            self._carried[sending.event.send.key.iteration] += sending.size
            self._pool.sent(sending.buffer, sending.handle)
            if not sending.is_needed:
                self._pool.give_back(sending.buffer)
            if took < long:
                self._bring(part.TakesLong(sending.event.send.dest, False))
            self._bring(sending.event)
        for dest in {sending.event.send.dest for sending in self._sendings if now - sending.since > long}:
            self._bring(part.TakesLong(dest))

    # what follows

    def _bring(self, event: part.Event) -> None:
        for instruction in self.exchange.handle(event):
            match instruction:
                case part.SendBlock():
                    self._send(instruction)
                case part.SumBlock(key, contributors):
                    self._sum(key, contributors)
                case part.Place(key):
                    self._place(key)
                case part.Drop(key):
                    self._release(key)
                case part.Refuse(refused):
                    self._release(refused.key)
                    self._refuse(refused)
                case part.Have(iteration, attempt, number):
                    self._have(iteration, attempt, number)
                case part.Step(iteration):
                    self._step(iteration, self.gradient(iteration))
                case part.FallBehind(iteration):
                    self._behind(iteration)
                case part.Forget(iteration, attempt):
                    self._forget(iteration, attempt)

    def _send(self, send: part.SendBlock) -> None:
        """The block of an accumulator is copied now, that of the gradient is ready."""
        key, contributor = send.key, send.key.contributor
        block = self.exchange.block(key)
        entries = block.stop - block.start
        if contributor is None:
            buffer, entries = self._buffers[key], self._parts * entries
        else:
            buffer = self._pool.take()
            accumulator = self._accumulators[contributor.role, contributor.serial]
            copy(self._backend, buffer[:entries], accumulator[block.start : block.stop])
            self._stamp(buffer, entries, key)
        handle = self._transport.send_vector(send.dest, self._pool.message(buffer, entries))
        self._at("sending" if contributor else "passing_on", key.iteration)
        size = entries * self._dtype.itemsize
        self._sendings.append(_UnderWay(handle, size, part.Sent(send), buffer, contributor is None, time.monotonic()))

    def _stamp(self, buffer: Array, entries: int, key: BlockKey) -> None:
        _, role, serial = key.contributor or (0, 0, 0)
        name = BlockName(key.attempt, serial, role, key.number)
        stamp(self._pool.message(buffer, entries), key.iteration, pack_block(name))

    def _sum(self, key: BlockKey, contributors: Iterable[Contributor]) -> None:
        """Part k of the block is the sum over contributors j of R[j, k] y_j."""
        block, buffer = self.exchange.block(key), self._pool.take()
        size = block.stop - block.start
        whole = buffer[: self._parts * size]
        work = whole if isinstance(whole, self._backend.xp.ndarray) else self._backend.xp.empty(whole.size, self._dtype)
        for place, contributor in enumerate(contributors):
            coded_key = key._replace(contributor=contributor)
            if contributor.rank == self._transport.rank:
                coded = self._accumulators[contributor.role, contributor.serial][block.start : block.stop]
            else:
                coded = self._backend.asarray(self._buffers[coded_key][:size])
            row = self._rows[contributor.role - 1]
            if place == 0 and self._parts == 1:  # one pass in place of two
                self._backend.xp.multiply(coded, float(row[0]), out=work)
            else:
                if place == 0:
                    work[:] = 0
                self._backend.combine(work.reshape(self._parts, size), row[:, None], coded[None])
            if contributor.rank != self._transport.rank:
                self._release(coded_key)
        if work is not whole:
            copy(self._backend, whole, work)
        self._stamp(buffer, whole.size, key)
        self._buffers[key] = buffer
        self._at("summing", key.iteration)

    def _place(self, key: BlockKey) -> None:
        (owner, first, last), gradient = self.exchange.block(key), self.gradient(key.iteration)
        buffer, size = self._buffers[key], last - first
        stop = min(last, self._columns)
        for row in range(self._parts):
            start = row * self._columns
            part_of_row = buffer[row * size : row * size + stop - first]
            copy(self._backend, gradient[start + first : start + stop], part_of_row)
        if last > self._columns:  # the last column, of the entries that are left over
            rest = gradient[self._parts * self._columns :]
            copy(self._backend, rest, buffer[size - 1 : self._parts * size : size][: rest.size])
        if owner != self._transport.rank:
            self._release(key)

    def gradient(self, iteration: int) -> Array:
        """(dim,): the gradient, as far as it is here."""
        if iteration not in self._gradients:
            spare = self._spare.pop() if self._spare else self._backend.empty(self._dim, self._dtype)
            self._gradients[iteration] = spare
        return self._gradients[iteration]

    def _refuse(self, event: part.Arrived) -> None:
        iteration, attempt, number, contributor = event.key
        what = "a sum" if contributor is None else f"role {contributor.role}"
        where = f"block {number} of {what}, attempt {attempt} of iteration {iteration}"
        self._refused(event.source, f"{where}, with {event.length} entries, which it was not to send")

    def _release(self, key: BlockKey) -> None:
        self._pool.give_back(self._buffers.pop(key))

    def _forget(self, iteration: int, attempt: int | None) -> None:
        self._at("passed_on", iteration)
        for key in [key for key in self._buffers if key.iteration == iteration and attempt in (None, key.attempt)]:
            self._release(key)
        if attempt is None and iteration in self._gradients and iteration != self.exchange.steps:
            self._spare.append(self._gradients.pop(iteration))
