"""One rank's part in the exchanges, over MPI: it sends, receives and sums blocks, and its replica makes the steps.

`Exchange` decides, and this class carries out its instructions on the arrays of `Blocks`. Ranks that have fallen behind
get the state of a replica.
"""

from collections.abc import Sequence

import numpy as np

from psgc.aggregation import protocol
from psgc.aggregation.blocks import Accumulators, Blocks, Sums
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.pool import Link, Pool
from psgc.aggregation.protocol import Arrived, BlockKey
from psgc.aggregation.replica import Snapshot, Stepping, is_checked
from psgc.aggregation.shared import HostMemory
from psgc.aggregation.slices import block_entries
from psgc.aggregation.state_transfer import Giver, Receiver
from psgc.backend import Array, Backend
from psgc.errors import ProtocolError
from psgc.iteration import Moment
from psgc.messages import Entry
from psgc.transport import SMALL, Transport, Vector
from psgc.vectors import unpack_block

LOOKS, LONGEST_NAP = 4.0, 2e-3  # polls of MPI while a block is sent; most seconds between two of them
SHORT, SHORT_NAP = 1 << 16, 2e-4  # bytes of a short gradient, and the most seconds between two polls for it
FEW_NOTES = 16  # notes between the ranks of a host in an iteration
OTHER_LOOKS = 4.0  # times as many polls while no block is sent or awaited, for control messages


class Listener:
    """Called with what happens in the exchanges of a rank. The methods here do nothing."""

    def have(self, iteration: int, attempt: int, number: int) -> None:
        """Slice `number` is here, summed in this attempt."""

    def behind(self, iteration: int) -> None:
        """This rank cannot follow `iteration`, and needs the state of another rank."""

    def at(self, moment: Moment, iteration: int) -> None:
        """A step of the protocol at which faults can be injected."""

    def stepping(self, iteration: int, gradient: Array) -> None:
        """The replica is about to make the step of `iteration`."""

    def refused(self, source: int, what: str) -> None:
        """`source` has sent a malformed message."""


class AllReduce:
    """One rank's part in the exchanges of a run.

    replica: the replica of this rank
    exchange: decides what to send and sum
    position: where the replica is, and which iterations it follows
    blocks, pool: the arrays and the buffers
    receiver: of states
    link: the sends of blocks
    """

    def __init__(
        self, transport: Transport, backend: Backend, sums: Sums, replica: Stepping, listener: Listener | None = None
    ) -> None:
        self._transport, self._sums, self._listener = transport, sums, listener or Listener()
        self.replica = replica
        self.exchange = Exchange(transport.rank, sums.parts)
        self.position = self.exchange.position
        self.pool = Pool(backend, sums.dim, sums.parts, sums.dtype)
        self.link = Link(transport, self.pool)
        shared, memory = transport.shared, None
        if shared.memory is not None and len(ranks := shared.of_host(transport.rank)) > 1:
            memory = HostMemory(ranks, shared.memory, sums.entries, sums.dtype)
        self.blocks = Blocks(transport.rank, backend, self.pool, sums, memory)
        self._giver = Giver(transport, self.pool, backend)
        self.receiver = Receiver(self.pool, backend)
        self._comes_whole = memory is not None or sums.dim * sums.dtype.itemsize < SMALL
        self._to_give: dict[int, int] = {}  # receiver -> iteration whose state it must get

    def open(self) -> None:
        """Post the receives of blocks."""
        self.pool.open(self._transport)

    def start(self, iteration: int, params: Array) -> None:
        """The replica begins here, with `params` (dim,) and the optimizer as it is."""
        self.replica.start(iteration, params)
        self._loaded(iteration)

    @property
    def steps(self) -> int:
        """The iteration that the replica has reached; -1 while it has no parameters."""
        return self.position.steps

    @property
    def is_behind(self) -> bool:
        """Whether only the state of another rank helps the replica, and no such state waits for the end of a step."""
        waiting = self.receiver.waiting
        return self.position.is_behind and not (waiting is not None and self.position.can_use(waiting))

    @property
    def nap(self) -> float:
        """Seconds between two polls of MPI: a fraction of the time that a block takes, since polls cost time too.

        For short blocks the polls of both ends are what takes the time.
        """
        longest = LONGEST_NAP if self._sums.dim * self._sums.dtype.itemsize > SHORT else SHORT_NAP
        return min(longest, self.link.usual / LOOKS) / (1 if self._is_exchanging else OTHER_LOOKS)

    @property
    def _is_exchanging(self) -> bool:
        return self.link.is_sending or self.exchange.is_busy

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be sent or received."""
        return self._is_exchanging or self._giver.is_busy

    @property
    def needs_looks(self) -> bool:
        """Whether something moves only while this rank polls MPI.

        Small blocks do not: they arrive whole, and ranks of this host ring the bell for them and for notes.
        """
        sends = self.link.is_sending or self._giver.is_busy
        return sends or (self.exchange.is_busy and not (self._comes_whole and self._transport.is_woken))

    @property
    def is_moving(self) -> bool:
        """Whether `poll` may advance without a message, because another thread of this rank may be ready."""
        return self.replica.is_stepping or bool(self._to_give)

    def digest(self) -> bytes:
        """The digest of the replica, 16 bytes, at iterations at which replicas are compared; else empty."""
        return self.replica.digest() if self._is_checked(self.steps) else b""

    # arrivals

    def arrived(self, message: Vector) -> None:
        """A block has come."""
        source, iteration, length = message.source, message.iteration, message.length
        try:
            name = unpack_block(message.chunk)
            if iteration < 0 or length > self.pool.room:
                raise ProtocolError(f"a block of {length} entries, of iteration {iteration}")
            buffer = self.pool.receive(self._transport, message.buffer)
            if name.is_state:
                self.receiver.arrived(source, iteration, name, buffer, length)
                return
        except ProtocolError as error:
            self._listener.refused(source, str(error))
            return
        self.link.came(iteration, length)
        contributor = Contributor(source, name.role, name.serial) if name.role else None
        event = Arrived(source, BlockKey(iteration, name.attempt, name.block, contributor), length)
        if not length:
            self.pool.give_back(buffer)
            self._bring(event)
        elif self.blocks.keep(event.key, buffer):
            self._bring(event)
        else:
            self._refuse(event)

    def mapped(self, map: Map, accumulators: Accumulators) -> None:
        """A map has come. accumulators: of this rank; they do not change until the next iteration begins here."""
        if not map.attempt:
            self._giver.skipped(map.iteration, map.receivers)
        self.blocks.accumulators = accumulators
        for rank in map.receivers:
            self._transport.remember(rank)
        self.link.forget_before(map.iteration)
        within_host = len(set(self._transport.hosts)) == 1  # on every rank or on none
        self._bring(protocol.Mapped(map, block_entries(map.slices, self._sums.dtype.itemsize, within_host)))

    def drop_accumulators(self) -> None:
        """A new iteration begins here: drop the accumulators of earlier ones."""
        self.blocks.accumulators = {}

    def chosen(self, iteration: int, others: dict[int, int]) -> None:
        """Make the gradient of `iteration` from version 0 of each slice, or from the version that `others` has for it.

        On rank 0, which has all of them. The step waits for `closed`.
        """
        self._bring(protocol.Chosen(iteration, others))

    def closed(self, iteration: int, others: dict[int, int]) -> None:
        """Every rank makes the step of `iteration` with these versions, given as for `chosen`."""
        self._bring(protocol.Closed(iteration, others))

    def evaluated(self, iteration: int, sums: Sequence[float]) -> None:
        """`iteration` was an evaluation with these sums. The replica takes them like a gradient."""
        if self.exchange.phase(iteration) != "past":
            self.blocks.gradients[iteration] = np.array(sums)
            self._bring(protocol.Evaluated(iteration))

    def left(self, rank: int) -> None:
        """`rank` is lost."""
        self._to_give.pop(rank, None)
        self._giver.stop(rank)
        self.pool.spare(self._transport, rank)
        self._transport.forget(rank)
        self._bring(protocol.RankLeft(rank))

    def give(self, dest: int, iteration: int) -> None:
        """Send `dest` the state of the replica at the beginning of `iteration` or a later one, once it is there."""
        self._to_give[dest] = iteration

    @property
    def owed(self) -> frozenset[int]:
        """The ranks that are to get a state of this rank, which has not begun to send it."""
        return frozenset(self._to_give)

    def drop(self) -> None:
        """The replica of this rank is wrong: only the state of another rank helps it."""
        self._bring(protocol.Dropped())

    def announced(self, source: int, entry: Entry) -> None:
        """A STATE record has come, about a state that `source` gives this rank."""
        try:
            self.receiver.announced(source, entry)
        except ProtocolError as error:
            self._listener.refused(source, str(error))

    def poll(self) -> bool:
        """Advance. Returns whether the replica has reached another iteration. Raises what a step raises."""
        self._look_at_sends()
        has_moved = self._has_stepped()
        if not self.replica.is_stepping:
            has_moved = self._load() or has_moved
        self._give()
        self._giver.poll()
        return has_moved

    def finish_step(self) -> None:
        """Wait for the end of the step in progress. Raises what the step raises."""
        self._has_stepped(wait=True)

    # events and instructions

    def _bring(self, event: protocol.Event) -> None:
        self._carry_out(event)
        while self.link.has_sent:  # small blocks are sent at once, so more sends may begin
            self._look_at_sends()

    def _look_at_sends(self) -> None:
        for event in self.link.poll():
            self._carry_out(event)

    def _carry_out(self, event: protocol.Event) -> None:
        missed = None  # an iteration
        for instruction in self.exchange.handle(event):
            match instruction:
                case protocol.Publish():
                    self.blocks.publish(instruction)
                case protocol.SendBlock():
                    self._send(instruction)
                case protocol.SumBlock(key):
                    self.blocks.sum(instruction, self.exchange.routes(key))
                    self._listener.at("summing", key.iteration)
                case protocol.Relay(key):
                    self.blocks.relay(key, self.exchange.routes(key))
                case protocol.Place(key):
                    if not self.blocks.place(key, self.exchange.routes(key), self.replica.reads_gradients):
                        missed = key.iteration
                case protocol.Drop(key):
                    self.blocks.release(key)
                case protocol.Refuse(refused):
                    self.blocks.release(refused.key)
                    self._refuse(refused)
                case protocol.Have(iteration, attempt, number):
                    self._listener.have(iteration, attempt, number)
                case protocol.Step(iteration) if iteration != missed:
                    gradient = self.blocks.gradient(iteration)
                    self._listener.stepping(iteration, gradient)
                    self.replica.step(gradient, digest=self._is_checked(iteration + 1))
                case protocol.FallBehind(iteration):
                    self._listener.behind(iteration)
                case protocol.Forget(iteration, attempt):
                    self._listener.at("passed_on", iteration)
                    self.blocks.forget(iteration, attempt)
                    if attempt is None and iteration != self.steps:
                        self.blocks.forget_gradient(iteration)
        if missed is not None:
            self._carry_out(protocol.Missed(missed))

    def _send(self, send: protocol.SendBlock) -> None:
        key, routes = send.key, self.exchange.routes(send.key)
        if routes.is_near(self._transport.rank, send.dest):
            self.link.note(send, self.blocks.note(key), of_few=len(routes.blocks) <= FEW_NOTES)
        else:
            self.link.send(send, *self.blocks.message(key, routes))
        self._listener.at("sending" if key.contributor else "passing_on", key.iteration)

    def _refuse(self, event: Arrived) -> None:
        iteration, attempt, number, contributor = event.key
        what = "a sum" if contributor is None else f"role {contributor.role}"
        where = f"block {number} of {what}, attempt {attempt} of iteration {iteration}"
        self._listener.refused(event.source, f"{where}, with {event.length} entries, which it was not to send")

    def _has_stepped(self, wait: bool = False) -> bool:
        has_stepped = self.replica.poll(wait)
        if has_stepped:
            self.blocks.forget_gradient(self.steps, reuse=self.replica.gives_back)
            self._bring(protocol.Stepped())
        return has_stepped

    def _is_checked(self, iteration: int) -> bool:
        return is_checked(iteration, self._sums.first) or iteration == self._sums.last

    def _loaded(self, iteration: int) -> None:
        for past in [past for past in self.blocks.gradients if past < iteration]:
            self.blocks.forget_gradient(past)
        self._bring(protocol.Loaded(iteration))

    def _load(self) -> bool:
        """Load a state that has come whole. Returns whether there was one."""
        if (found := self.receiver.complete()) is None or not self.position.can_use(found[0]):
            return False
        iteration, vectors, numbers = found
        self.replica.load(Snapshot(iteration, tuple(vectors), numbers))
        self._loaded(iteration)
        return True

    def _give(self) -> None:
        for dest, iteration in [*self._to_give.items()]:
            if self.replica.is_stepping or self.steps < iteration or not self.position.is_at(self.steps):
                continue
            if (snapshot := self.replica.snapshot()) is None:
                continue
            del self._to_give[dest]
            self._giver.give(dest, self.steps, [*snapshot.vectors], snapshot.numbers)
